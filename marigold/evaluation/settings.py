"""What a person chooses for an evaluation: the plain keys of configs/eval.yaml, checked before anything is read."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from marigold.evaluation.errors import EvaluationError

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Sampler:
    """How a diffusion model is sampled; None leaves the choice to the checkpoint.

    `exact`: the networks see one member at a time, so that no kernel's choice, and no bit of a result, depends
    on `batch_size`. Otherwise they see `batch_size` members at once, None by free memory.
    """

    steps: int | None
    ensemble_size: int
    ensemble_method: str
    reduction: str
    processing_resolution: int
    batch_size: int | None
    exact: bool

    def __post_init__(self) -> None:
        """Refuse what `exact` would hide; raises EvaluationError."""
        if self.batch_size is not None and self.batch_size < 1:
            raise EvaluationError(f"sampler.batch_size={self.batch_size}: expected at least 1, or null")

    def arguments(self, default_steps: int | None) -> dict[str, Any]:
        """Arguments of a MarigoldDepth's call."""
        chosen = asdict(self)
        if chosen.pop("exact"):
            chosen["batch_size"] = 1
        return {**chosen, "steps": default_steps if self.steps is None else self.steps}


@dataclass(frozen=True)
class Panel:
    """How many images of which kind the picture shows."""

    worst: int
    median: int


@dataclass(frozen=True)
class EvalSettings:
    """The plain keys of configs/eval.yaml."""

    checkpoint: str | None
    predictor: str | None
    predictions: str | None
    space: str | None
    prediction_unit: float
    precision: str
    seed: int
    seeds: int
    limit: int | None
    on_error: str
    metrics: list[str]
    output: str | None
    device: str | None
    threads: int

    def __post_init__(self) -> None:
        """Refuse what could only fail after the first image; raises EvaluationError."""
        chosen = [key for key in ("checkpoint", "predictor", "predictions") if getattr(self, key)]
        if len(chosen) != 1:
            raise EvaluationError(
                f"give exactly one of checkpoint=DIR, predictor=MODULE:FUNCTION and predictions=DIR; "
                f"got {', '.join(chosen) or 'none'}"
            )
        for key, allowed in (("precision", tuple(PRECISIONS)), ("on_error", ("raise", "report"))):
            if getattr(self, key) not in allowed:
                raise EvaluationError(f"{key}={getattr(self, key)}: expected one of {', '.join(allowed)}")
        missing = {"abs_rel", "delta1"} - set(self.metrics)
        if missing:
            raise EvaluationError(f"metrics={self.metrics}: the tables need {', '.join(sorted(missing))} too")
        for key in ("seeds", "threads"):
            if getattr(self, key) < 1:
                raise EvaluationError(f"{key}={getattr(self, key)}: expected at least 1")

    def refuse_unused(self, kind: str, keys: Sequence[str]) -> None:
        """Raise EvaluationError if one of `keys`, which do nothing for this kind of predictor, was given."""
        unused = {"precision": "float32", "space": None, "prediction_unit": 1.0}
        for key in keys:
            if getattr(self, key) != unused[key]:
                raise EvaluationError(f"{key}={getattr(self, key)} does nothing for {kind}; leave it out")

    @property
    def all_seeds(self) -> range:
        """`seeds` of them, counted up from `seed`."""
        return range(self.seed, self.seed + self.seeds)
