"""How a figure changes with one setting: ensemble size or denoising steps, as in the paper's ablations."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, runtime_checkable
from typing import Protocol as Interface

from torch import Tensor

from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.evaluate import Row, Summary, judge, score
from marigold.evaluation.protocol import Protocol
from marigold.evaluation.settings import PRECISIONS, Sampler
from marigold.types import DepthSample, Prediction
from marigold.visualization import curves

AXES = {"ensemble": "ensemble size", "steps": "denoising steps"}
Key = tuple[str, int]  # the line that a point is on, and its place on it
Predict = Callable[[DepthSample], dict[Key, Prediction]]


@runtime_checkable
class EnsembleModel(Interface):
    """What curves need of a MarigoldDepth, which lives on a floor beside this one."""

    def members(self, image: Tensor, **arguments: Any) -> Any: ...

    def combine(self, members: Any, **arguments: Any) -> Prediction: ...

    def with_spacing(self, spacing: str) -> "EnsembleModel": ...


@dataclass(frozen=True)
class SweepSettings:
    """The plain keys of configs/sweep.yaml."""

    curve: str
    checkpoint: str
    ensemble_sizes: list[int]
    steps: list[int]
    spacings: list[str]
    precision: str
    seed: int
    limit: int | None
    metrics: list[str]
    output: str | None
    device: str | None
    threads: int

    def __post_init__(self) -> None:
        """Refuse what could only fail after the first image; raises EvaluationError."""
        for key, allowed in (("curve", tuple(AXES)), ("precision", tuple(PRECISIONS))):
            if getattr(self, key) not in allowed:
                raise EvaluationError(f"{key}={getattr(self, key)}: expected one of {', '.join(allowed)}")
        if not self.metrics or self.metrics[0] != "abs_rel":
            raise EvaluationError(f"metrics={self.metrics}: abs_rel, which is drawn, has to be the first")
        for key in ("ensemble_sizes", "steps"):
            values = getattr(self, key)
            if not values or min(values) < 1 or len(set(values)) < len(values):
                raise EvaluationError(f"{key}={values}: expected different numbers from 1 on")


def over_sizes(model: EnsembleModel, settings: SweepSettings, chosen: Sampler) -> Predict:
    """sample -> predictions of every ensemble size, of which the smaller ones use members of the largest."""
    members_of, combine = _arguments(settings, chosen)

    def predict(sample: DepthSample) -> dict[Key, Prediction]:
        members = model.members(
            sample.image[None], steps=chosen.steps, ensemble_size=max(settings.ensemble_sizes), **members_of
        )
        return {
            (chosen.ensemble_method, size): model.combine(members.first(size), **combine)
            for size in settings.ensemble_sizes
        }

    return predict


def over_steps(model: EnsembleModel, settings: SweepSettings, chosen: Sampler) -> Predict:
    """sample -> predictions of every number of denoising steps, one line per spacing of the timesteps."""
    members_of, combine = _arguments(settings, chosen)
    spaced = {spacing: model.with_spacing(spacing) for spacing in settings.spacings}

    def predict(sample: DepthSample) -> dict[Key, Prediction]:
        found = {}
        for spacing, sampled in spaced.items():
            for steps in settings.steps:
                members = sampled.members(
                    sample.image[None], steps=steps, ensemble_size=chosen.ensemble_size, **members_of
                )
                found[spacing, steps] = sampled.combine(members, **combine)
        return found

    return predict


def _arguments(settings: SweepSettings, chosen: Sampler) -> tuple[dict[str, Any], dict[str, Any]]:
    """What all points have in common: arguments of `members`, and of `combine`."""
    arguments = chosen.arguments(default_steps=None)
    members_of = {"seed": settings.seed} | {key: arguments[key] for key in ("processing_resolution", "batch_size")}
    return members_of, {"method": chosen.ensemble_method, "reduction": chosen.reduction}


@dataclass(frozen=True)
class Point:
    """One point of a curve: on line `line` at `value`, judged over all images."""

    line: str
    value: int
    summary: Summary

    @property
    def percent(self) -> float:
        """AbsRel in percent."""
        return 100 * self.summary.metrics["abs_rel"].mean


def judge_points(
    points: Predict,
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


def write_curve(folder: Path, points: Sequence[Point], axis: str, title: str, facts: Mapping[str, Any]) -> None:
    """Write points.csv, curve.png and, with the facts behind them, sweep.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_points(folder / "points.csv", points, axis.replace(" ", "_"))
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        lines.setdefault(point.line, []).append((point.value, point.percent))
    curves(folder / "curve.png", lines, axis, "AbsRel %", title)
    (folder / "sweep.json").write_text(json.dumps(facts, indent=1))


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
