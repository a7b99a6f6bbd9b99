"""A metric over one setting, ensemble size or denoising steps, as in the paper's ablations: its table and its plot."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from marigold.evaluation.rows import Summary
from marigold.files import write_atomically
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
    """Write points.csv, curve.png and, with the facts behind them, sweep.json."""
    write_points(folder / "points.csv", points, axis.replace(" ", "_"))
    lines: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        lines.setdefault(point.line, []).append((point.value, point.percent))
    curves(folder / "curve.png", lines, axis, "AbsRel %", title)
    write_atomically(folder / "sweep.json", json.dumps(facts, indent=1))


def write_points(path: Path, points: Sequence[Point], axis: str) -> None:
    """A csv with one line per point: means and deviations over images in full precision."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
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
    write_atomically(path, buffer.getvalue())
