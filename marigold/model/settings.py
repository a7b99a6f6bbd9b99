"""What a depth checkpoint says about its predictions: the settings in its model_index.json."""

import json
from dataclasses import dataclass
from pathlib import Path

from marigold.model.backbone import BaseModelError
from marigold.types import Space

SPACE_OF: dict[str, Space] = {"depth": "affine_depth", "disparity": "affine_disparity"}


@dataclass(frozen=True)
class DepthSettings:
    """What a checkpoint says about its predictions, in diffusers' words; None where it says nothing."""

    prediction_type: str
    scale_invariant: bool
    shift_invariant: bool
    default_denoising_steps: int | None
    default_processing_resolution: int | None

    def __post_init__(self) -> None:
        """Refuse what is not depth; raises BaseModelError."""
        if self.prediction_type not in SPACE_OF:
            raise BaseModelError(
                f"the model predicts {self.prediction_type!r}; this package handles {', '.join(SPACE_OF)}"
            )
        if self.shift_invariant and not self.scale_invariant:
            raise BaseModelError("a model that is shift-invariant but not scale-invariant is not supported")


def read_settings(folder: Path) -> DepthSettings:
    """The settings in `folder`/model_index.json; raises BaseModelError for one that is broken or is not depth."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
    except json.JSONDecodeError as error:
        raise BaseModelError(f"{folder / 'model_index.json'} is not JSON: {error}") from error
    return DepthSettings(
        # Folders that are older than diffusers' pipeline do not say it; they are all depth.
        prediction_type=index.get("prediction_type") or "depth",
        scale_invariant=index.get("scale_invariant", True),
        shift_invariant=index.get("shift_invariant", True),
        default_denoising_steps=index.get("default_denoising_steps"),
        default_processing_resolution=index.get("default_processing_resolution"),
    )
