"""The one evaluator, for validation and benchmark alike: samples and a predictor in, one row per image out."""

import itertools
import math
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from marigold.depth.boundary import boundary_f1
from marigold.depth.metrics import METRICS, compute_metrics
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.protocol import Judged, Protocol
from marigold.types import DepthSample, Prediction

BOUNDARY = "boundary_f1"
ALL_METRICS = (*METRICS, BOUNDARY)

Predict = Callable[[Tensor], Prediction]
"""(1, 3, H, W) photo in [0, 1] -> Prediction of batch 1."""
OnError = Literal["raise", "report"]


@dataclass(frozen=True)
class Row:
    """What one image scored; `error` says why it scored nothing (only with `on_error="report"`)."""

    name: str
    metrics: dict[str, float]
    error: str | None = None


@dataclass(frozen=True)
class Statistics:
    """Plain mean and (population) standard deviation over images."""

    mean: float
    std: float


@dataclass(frozen=True)
class Summary:
    """Means over images, of all of them and of each group; `failed` images are in neither."""

    count: int
    failed: int
    metrics: dict[str, Statistics]
    groups: dict[str, "Summary"] = field(default_factory=dict)


def evaluate(
    predict: Predict,
    samples: Sequence[DepthSample],
    protocol: Protocol,
    *,
    metrics: Sequence[str] = ALL_METRICS,
    rank: int = 0,
    world: int = 1,
    skip: Container[int] = (),
    on_row: Callable[[Row], None] | None = None,
    on_error: OnError = "raise",
) -> list[Row]:
    """Judge samples rank, rank + world, ... but those in `skip`: one row each, in that order.

    `predict` sees one photo at a time, (1, 3, H, W) in [0, 1]. `on_row` is called after every image.
    Raises EvaluationError naming the image; with `on_error="report"` such an image becomes a row with its
    `error`, and the others are still judged.
    """
    return evaluate_samples(
        lambda sample: predict(sample.image[None]),
        samples,
        protocol,
        metrics=metrics,
        rank=rank,
        world=world,
        skip=skip,
        on_row=on_row,
        on_error=on_error,
    )


def evaluate_samples(
    predict: Callable[[DepthSample], Prediction],
    samples: Sequence[DepthSample],
    protocol: Protocol,
    *,
    metrics: Sequence[str] = ALL_METRICS,
    rank: int = 0,
    world: int = 1,
    skip: Container[int] = (),
    on_row: Callable[[Row], None] | None = None,
    on_error: OnError = "raise",
) -> list[Row]:
    """`evaluate` for predictors that look up the sample's name, such as stored predictions."""
    unknown = sorted(set(metrics) - set(ALL_METRICS))
    if unknown:
        raise EvaluationError(f"unknown metric(s) {', '.join(unknown)}; known: {', '.join(ALL_METRICS)}")
    if not 0 <= rank < world:
        raise EvaluationError(f"rank {rank} is not one of {world} process(es)")
    rows = []
    for index in range(rank, len(samples), world):
        if index in skip:
            continue
        try:
            sample = protocol.shown(samples[index])
            row = score(judge(predict, sample, protocol), sample.name, metrics)
        except (ValueError, RuntimeError, OSError) as error:
            if on_error == "raise":
                raise
            row = Row(_name(samples, index), {}, str(error).splitlines()[0])
        rows.append(row)
        if on_row is not None:
            on_row(row)
    return rows


@torch.inference_mode()
def judge(predict: Callable[[DepthSample], Prediction], sample: DepthSample, protocol: Protocol) -> Judged:
    """Predict one sample, as the protocol shows it, and bring the prediction into metres; errors name the sample."""
    try:
        return protocol.judge(predict(sample), sample)
    except ValueError as error:
        raise EvaluationError(f"{sample.name}: {error}") from error


@torch.inference_mode()
def score(judged: Judged, name: str, metrics: Sequence[str]) -> Row:
    """The metrics of one image; raises EvaluationError naming image and metric for a value that is not finite."""
    per_pixel = [metric for metric in metrics if metric != BOUNDARY]
    values = {
        metric: float(value)
        for metric, value in compute_metrics(judged.depth, judged.target, judged.valid, per_pixel).items()
    }
    if BOUNDARY in metrics:
        values[BOUNDARY] = float(boundary_f1(judged.depth, judged.target, judged.valid))
    for metric, value in values.items():
        if not math.isfinite(value):
            raise EvaluationError(f"{name}: {metric} is {value}")
    return Row(name, {metric: values[metric] for metric in metrics})


def merge_rows(parts: Iterable[Iterable[Row]], expected: int) -> list[Row]:
    """The rows of all processes, sorted by name.

    Raises EvaluationError unless there are exactly `expected` of them, each image once: a prediction that
    was silently skipped, or a sample that two processes judged, would bias the mean.
    """
    rows = sorted((row for part in parts for row in part), key=lambda row: row.name)
    twice = sorted({a.name for a, b in itertools.pairwise(rows) if a.name == b.name})
    if twice:
        raise EvaluationError(f"{len(twice)} image(s) were judged more than once, first {twice[0]}")
    if len(rows) != expected:
        raise EvaluationError(f"{len(rows)} images were judged, the data set lists {expected}")
    return rows


def summarise(rows: Sequence[Row], groups: dict[str, str] | None = None) -> Summary:
    """The one place that averages: mean and standard deviation over images, also per group.

    `groups` maps a label to a part of the sample's name. Rows with an error are counted in `failed` and
    left out. Raises EvaluationError when no row is left.
    """
    good = [row for row in rows if row.error is None]
    if not good:
        raise EvaluationError(f"none of {len(rows)} image(s) could be judged")
    metrics = {metric: _statistics([row.metrics[metric] for row in good]) for metric in good[0].metrics}
    parts = {}
    for label, part in (groups or {}).items():
        members = [row for row in rows if part in row.name]
        if any(row.error is None for row in members):  # a limited evaluation may hold none of them
            parts[label] = summarise(members)
    return Summary(len(good), len(rows) - len(good), metrics, parts)


def _statistics(values: Sequence[float]) -> Statistics:
    # fsum is exact, so the mean depends neither on the order nor on the number of processes.
    mean = math.fsum(values) / len(values)
    return Statistics(mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values)))


def _name(samples: Sequence[DepthSample], index: int) -> str:
    names = getattr(samples, "names", None)
    return names[index] if names is not None else f"sample {index}"
