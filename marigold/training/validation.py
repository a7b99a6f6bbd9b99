"""Validation during training: the benchmark's evaluator and protocol, on small sets, with the live model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from marigold.data.base import DepthDataset
from marigold.evaluation.evaluate import evaluate, judge, merge_rows, summarise
from marigold.evaluation.protocol import Protocol
from marigold.evaluation.session import panel_row
from marigold.model.pipeline import MarigoldDepth
from marigold.types import DepthSample, Prediction
from marigold.visualization import panel

METRICS = ("abs_rel", "delta1")


@dataclass(frozen=True)
class ValidationSet:
    """A named set of samples and the protocol that judges them."""

    name: str
    samples: DepthDataset
    protocol: Protocol


@dataclass(frozen=True)
class Sampling:
    """How the model is sampled in validation; `panel` images of the first set are drawn."""

    steps: int
    ensemble_size: int
    seed: int
    panel: int


def validate(
    model: MarigoldDepth, sets: Sequence[ValidationSet], sampling: Sampling, accelerator: Accelerator, picture: Path
) -> dict[str, float]:
    """Judge the model on every set and draw the fixed panel; returns `NAME/abs_rel` and `NAME/delta1`.

    Every process takes its share of the images, and all return the same figures.
    """
    values: dict[str, float] = {}
    for part in sets:
        predict = partial(
            model,
            steps=sampling.steps,
            ensemble_size=sampling.ensemble_size,
            processing_resolution=part.protocol.benchmark.processing_resolution,
            seed=sampling.seed,
        )
        rank, world = accelerator.process_index, accelerator.num_processes
        rows = evaluate(predict, part.samples, part.protocol, metrics=METRICS, rank=rank, world=world)
        summary = summarise(merge_rows(gather_object([rows]), len(part.samples)))
        values |= {f"{part.name}/{metric}": summary.metrics[metric].mean for metric in METRICS}
        if part is sets[0] and accelerator.is_main_process and sampling.panel:
            _draw(picture, part, predict, sampling.panel)
    return values


def _draw(picture: Path, part: ValidationSet, predict: "partial[Prediction]", count: int) -> None:
    """The same evenly spaced samples every time, so that pictures of a run can be compared."""

    def predict_sample(sample: DepthSample) -> Prediction:
        image: Tensor = sample.image[None]
        return predict(image)

    lines = []
    count = min(count, len(part.samples))
    for index in (k * len(part.samples) // count for k in range(count)):
        sample = part.protocol.shown(part.samples[index])
        lines.append(panel_row(sample.name, judge(predict_sample, sample, part.protocol)))
    picture.parent.mkdir(parents=True, exist_ok=True)
    panel(picture, lines, f"{part.name} under protocol '{part.protocol.name}'")
