"""Images of depth and plots of metrics: a colour map, panels of image | prediction | truth | error, curves, bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure
from numpy import ndarray
from torch import Tensor

from marigold.files import atomic_file

DEPTH_COLOURS = "Spectral"  # red is near, blue is far
ERROR_COLOURS = "magma"
LARGEST_ERROR = 0.5  # relative error of the brightest colour
UNKNOWN = (40, 40, 40)
WIDTH = 320  # pixels of a map in a panel


@dataclass(frozen=True)
class PanelRow:
    """One line of a panel: image, predicted and true depth in metres, and a caption."""

    caption: str
    image: Float[Tensor, "3 H W"]
    depth: Float[Tensor, "1 H W"]
    target: Float[Tensor, "1 H W"]
    valid: Bool[Tensor, "1 H W"]


def colour(
    values: Float[ndarray, "H W"],
    low: float,
    high: float,
    *,
    colours: str = DEPTH_COLOURS,
    known: Bool[ndarray, "H W"] | None = None,
) -> UInt8[ndarray, "H W 3"]:
    """RGB image of a map: `low` to `high` over the colour map, dark grey where it is not `known`."""
    # A constant map has no range: 1e-12 makes it 0 everywhere and not NaN.
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    image = matplotlib.colormaps[colours](np.nan_to_num(scaled), bytes=True)[..., :3]
    if known is not None:
        image = np.where(known[..., None], image, np.array(UNKNOWN, dtype=np.uint8))
    return np.ascontiguousarray(image)


def panel(path: Path, rows: Sequence[PanelRow], title: str = "") -> None:
    """Write a png with one line per row: image, prediction, ground truth, relative error.

    Prediction and ground truth share their colours: the 2 % to 98 % range of the true depth. Maps wider than
    WIDTH pixels are thinned to it.
    """
    heights = [row.image.shape[1] / row.image.shape[2] for row in rows]
    inches = 3.2
    figure = Figure(figsize=(4 * inches, sum(heights) * inches + 0.35 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), 4, squeeze=False, height_ratios=heights)
    for line, row in zip(axes, rows, strict=True):
        images = _images(row, max(1, row.image.shape[2] // WIDTH))
        for axis, image in zip(line, images, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_axis_off()
        line[0].set_title(row.caption, fontsize=8, loc="left")
    for axis, heading in zip(axes[0], ("", "prediction", "ground truth", "relative error"), strict=True):
        axis.set_title(heading, fontsize=8, loc="right")
    figure.suptitle(
        f"{title}\nrelative error: black 0 to yellow {LARGEST_ERROR:.0%}; dark grey: not evaluated".strip(), fontsize=9
    )
    _save(path, figure, 100)


def _images(row: PanelRow, step: int) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    # Subsampled rather than averaged: means would mix known and unknown pixels.
    image = row.image[:, ::step, ::step].permute(1, 2, 0).clamp(0, 1).cpu().numpy()
    depth, target, valid = (part[0, ::step, ::step].cpu().numpy() for part in (row.depth, row.target, row.valid))
    # Quantiles, so that a few far pixels do not use up the colours.
    known = target[valid] if valid.any() else target[target > 0]
    low, high = np.quantile(known, [0.02, 0.98]) if known.size else (0.0, 1.0)
    error = np.abs(depth - target) / np.where(valid, target, 1)
    return (
        (image * 255).astype(np.uint8),
        colour(depth, low, high),
        colour(target, low, high, known=target > 0),
        colour(error, 0, LARGEST_ERROR, colours=ERROR_COLOURS, known=valid),
    )


def curves(path: Path, lines: dict[str, list[tuple[int, float]]], axis: str, metric: str, title: str) -> None:
    """Write a png with one line per entry of `lines`: (value, metric) over a logarithmic `axis`."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    values = sorted({value for points in lines.values() for value, _ in points})
    # Members and steps grow by a factor from point to point; matplotlib's own ticks would be powers of 10.
    axes.set_xscale("log")
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.set(xlabel=axis, ylabel=metric)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend()
    _save(path, figure, 150)


def bars(
    path: Path, panels: dict[str, dict[str, float]], title: str, spreads: dict[str, dict[str, float]] | None = None
) -> None:
    """Write a png of horizontal bars: a panel per key of `panels`, a row per name in any of them, each with its value.

    `spreads` are half lengths of whiskers, by the same keys.
    """
    names = list(dict.fromkeys(name for values in panels.values() for name in values))
    figure = Figure(figsize=(3.2 + 2.4 * len(panels), 1.2 + 0.3 * len(names)), layout="constrained")
    rows = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for index, (axes, (panel, values)) in enumerate(zip(rows, panels.items(), strict=True)):
        places, whiskers = [names.index(name) for name in values], None
        if spreads is not None:
            whiskers = [spreads[panel][name] for name in values]
        axes.barh(places, values.values(), xerr=whiskers, color=f"C{index}", error_kw={"lw": 1, "capsize": 2})
        for place, value, beyond in zip(places, values.values(), whiskers or [0.0] * len(values), strict=True):
            # Beyond the whisker, which would cross it.
            end = (value + beyond, place)
            digits = max(0, 2 - len(str(int(value))) + 1)
            axes.annotate(f"{value:.{digits}f}", end, (3, 0), textcoords="offset points", va="center", fontsize=8)
        axes.margins(x=0.2)
        axes.set_title(panel, fontsize=9)
        axes.grid(alpha=0.3, axis="x")
    rows[0].set_yticks(range(len(names)), names)
    rows[0].invert_yaxis()  # of all panels: the axis is shared
    figure.suptitle(title, fontsize=10)
    _save(path, figure, 150)


def _save(path: Path, figure: Figure, dpi: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=dpi)
