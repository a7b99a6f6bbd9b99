"""How a diffusion model is sampled: one set of settings for inference, evaluation, curves and validation."""

from dataclasses import asdict, dataclass
from typing import Any


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
