"""Settings of a depth checkpoint (model_index.json), and of its sampling."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from marigold.depth.mapping import MAPPINGS
from marigold.model.backbone import BaseModelError
from marigold.model.recipe import EXPORTED_FROM, KEY, VERSION, Switches, read_index, stored_switches


@dataclass(frozen=True)
class DepthSettings:
    """Settings that a checkpoint stores about its predictions; None where it has none.

    `recipe`: the training recipe as plain values, for further training; inference reads `switches` alone.
    """

    switches: Switches
    scale_invariant: bool = True
    shift_invariant: bool = True
    default_denoising_steps: int | None = None
    default_processing_resolution: int | None = None
    recipe: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Raise BaseModelError for an unsupported combination."""
        # Ensembling would have to fit shifts alone; no model is trained so.
        if self.shift_invariant and not self.scale_invariant:
            raise BaseModelError("a model that is shift-invariant but not scale-invariant is not supported")

    @property
    def stock(self) -> bool:
        """Whether diffusers' own Marigold pipeline samples such a model as this package does."""
        return self.switches.stock or EXPORTED_FROM in (self.recipe or {})

    def index(self) -> dict[str, Any]:
        """Return entries of model_index.json, diffusers' and ours.

        A model that diffusers' pipeline would sample wrongly names a U-Net class unknown to diffusers, so that it
        refuses the folder; scripts/export.py writes one that it reads.
        """
        switches = self.switches
        return {
            **({} if self.stock else {"_class_name": "MarigoldDepth", "unet": ["marigold", "UNet2DConditionModel"]}),
            "prediction_type": "depth" if MAPPINGS[switches.mapping].increasing else "disparity",
            "scale_invariant": self.scale_invariant,
            "shift_invariant": self.shift_invariant,
            "default_denoising_steps": self.default_denoising_steps,
            "default_processing_resolution": self.default_processing_resolution,
            # Without any, a model that was not trained here would be read back as the paper's.
            KEY: self.recipe or {"version": VERSION, **asdict(switches)},
        }


def read_settings(folder: Path, switches: Switches | None = None) -> DepthSettings:
    """Read the settings in `folder`/model_index.json; `switches` stand in for a missing recipe.

    Raises BaseModelError for a file that is broken or not of a depth model, and for `switches` beside a recipe.
    """
    index = read_index(folder)
    if switches is not None and KEY in index:
        raise BaseModelError(f"{folder} stores its own recipe; leave recipe=NAME out")
    return DepthSettings(
        switches=switches or stored_switches(index, folder / "model_index.json"),
        scale_invariant=index.get("scale_invariant", True),
        shift_invariant=index.get("shift_invariant", True),
        default_denoising_steps=index.get("default_denoising_steps"),
        default_processing_resolution=index.get("default_processing_resolution"),
        recipe=index.get(KEY),
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
        """Raise ValueError for a batch size that `exact` would hide."""
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"sampler.batch_size={self.batch_size}: expected at least 1, or null")

    def arguments(self, default_steps: int | None = None) -> dict[str, Any]:
        """Keyword arguments of a MarigoldDepth's call."""
        chosen = asdict(self)
        if chosen.pop("exact"):
            chosen["batch_size"] = 1  # kernels are chosen by shape, and others round otherwise
        return {**chosen, "steps": default_steps if self.steps is None else self.steps}
