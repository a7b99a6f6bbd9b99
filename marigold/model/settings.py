"""What a depth checkpoint says about its predictions (model_index.json), and how it is sampled."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Sampling:
    """Arguments of a MarigoldDepth's call but for the seed; None leaves the choice to checkpoint or free memory.

    `exact`: the networks see one member at a time, so that no kernel's choice, and no bit of a result, depends
    on `batch_size`. Otherwise they see `batch_size` members at once.
    """

    steps: int | None = None
    ensemble_size: int = 1
    ensemble_method: str = "procrustes"
    reduction: str = "median"
    processing_resolution: int | None = None
    batch_size: int | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        """Refuse what `exact` would hide; raises ValueError."""
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"sampler.batch_size={self.batch_size}: expected at least 1, or null")

    def arguments(self, default_steps: int | None = None) -> dict[str, Any]:
        """Keyword arguments of a MarigoldDepth's call."""
        chosen = asdict(self)
        if chosen.pop("exact"):
            chosen["batch_size"] = 1
        return {**chosen, "steps": default_steps if self.steps is None else self.steps}
