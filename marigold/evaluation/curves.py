"""How a figure changes with one setting: ensemble size or denoising steps, as in the paper's ablations."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from marigold.evaluation.evaluate import Row, Summary, judge, score
from marigold.evaluation.protocol import Protocol
from marigold.types import DepthSample, Prediction

Predictor = Callable[[DepthSample], Prediction]
Key = tuple[str, int]  # the line that a point is on, and its place on it


@dataclass(frozen=True)
class Point:
    """One point of a curve: on line `line` at `value`, judged over all images."""

    line: str
    value: int
    summary: Summary


def judge_points(
    points: Callable[[DepthSample], dict[Key, Prediction]],
    samples: Sequence[DepthSample],
    protocol: Protocol,
    *,
    metrics: Sequence[str],
    rank: int = 0,
    world: int = 1,
    on_image: Callable[[], None] = lambda: None,
) -> dict[Key, list[Row]]:
    """Judge every point's prediction of samples rank, rank + world, ...; raises EvaluationError naming the image."""
    rows: dict[Key, list[Row]] = {}
    for index in range(rank, len(samples), world):
        sample = protocol.shown(samples[index])
        for key, prediction in points(sample).items():
            judged = judge(lambda _, prediction=prediction: prediction, sample, protocol)  # type: ignore[misc]
            rows.setdefault(key, []).append(score(judged, sample.name, metrics))
        on_image()
    return rows


def write_points(path: Path, points: Sequence[Point], axis: str) -> None:
    """A csv with one line per point: means and deviations over images in full precision."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        metrics = list(points[0].summary.metrics)
        statistics = [f"{metric}_{part}" for metric in metrics for part in ("mean", "std")]
        writer.writerow(["line", axis, "images", *statistics])
        for point in points:
            values = [
                repr(value)
                for metric in metrics
                for value in (point.summary.metrics[metric].mean, point.summary.metrics[metric].std)
            ]
            writer.writerow([point.line, point.value, point.summary.count, *values])
