"""A metric over one setting, ensemble size or denoising steps, as in the paper's ablations: its table and its plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from marigold.evaluation.rows import Summary
from marigold.files import csv_text, write_atomically
from marigold.visualization import curves


@dataclass(frozen=True)
class Point:
    """One point of a curve: on line `line` at `value`, evaluated on all images."""

    line: str
    value: int
    summary: Summary

    @property
    def percent(self) -> float:
        """AbsRel in percent."""
        return 100 * self.summary.metrics["abs_rel"].mean


def write_curve(folder: Path, points: Sequence[Point], axis: str, title: str, facts: Mapping[str, object]) -> None:
    """Write points.csv (means and deviations over images), curve.png and, with the facts behind them, sweep.json."""
    metrics = list(points[0].summary.metrics)  # the same at every point
    statistics = [f"{metric}_{part}" for metric in metrics for part in ("mean", "std")]
    table: list[list[object]] = [["line", axis.replace(" ", "_"), "images", *statistics]]
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        scores = [point.summary.metrics[metric] for metric in metrics]
        values = [value for score in scores for value in (score.mean, score.std_over_images)]
        table.append([point.line, point.value, point.summary.count, *values])
        lines.setdefault(point.line, []).append((point.value, point.percent))
    write_atomically(folder / "points.csv", csv_text(table))
    curves(folder / "curve.png", lines, axis, "AbsRel %", title)
    write_atomically(folder / "sweep.json", json.dumps(facts, indent=1))
