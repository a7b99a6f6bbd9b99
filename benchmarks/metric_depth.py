"""Metric depth from known points on the rendered rooms and a real image: the line, points alone, and the residual.

`python scripts/benchmark.py metric_depth CHECKPOINT` evaluates what is not in its results yet and prints the tables of
docs/metric.md: MAE in metres of the pixels that are not points. It needs the rooms, make data, and the extra
`samples`.
"""

import argparse
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.timing import add_rows, read_rows
from benchmarks.timing import table as markdown
from marigold.config import installed
from marigold.data.errors import DataError
from marigold.depth.alignment import fit_affine
from marigold.depth.metric import MetricDepth, metric_depth
from marigold.evaluation.known_points import interpolate
from marigold.evaluation.sparse import PATTERNS, DrawnPoints
from marigold.evaluation_set import open_samples
from marigold.files import atomic_file
from marigold.model.guided import guided
from marigold.model.pipeline import MarigoldDepth
from marigold.types import DepthSample, Prediction
from marigold.visualization import DEPTH_COLOURS, ERROR_COLOURS, colour

COUNTS, PHOTO_COUNTS = (10, 50, 150, 500), (20, 100, 500)
METHODS = ("least squares", "fit", "points alone", "residual, no colour", "residual", "guided")
EXPECTED = "{}, expected"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py metric_depth", description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, default=Path("data"), help="paths.data")
    parser.add_argument("--dataset", nargs="+", default=["rooms", "motorcycle"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--patterns", nargs="+", choices=PATTERNS, default=list(PATTERNS))
    parser.add_argument("--limit", type=int, help="so many images of each set only")
    parser.add_argument("--guided", action="store_true", help="Marigold-DC too, 50 steps")
    parser.add_argument("--output", type=Path, default=Path("runs/metric_depth.jsonl"))
    parser.add_argument("--picture", type=Path, help="draw the first two images of each set with 150 points")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    logging.getLogger(metric_depth.__module__).setLevel(logging.ERROR)  # true depth has no outliers to name
    model = MarigoldDepth.from_pretrained(options.checkpoint)
    done = {(row["set"], row["image"]) for row in read_rows(options.output)}
    for dataset in options.dataset:
        for sample in samples(dataset, options):
            if (dataset, sample.name) not in done:
                # All rows of an image or none: an image that is there is not evaluated again.
                add_rows(options.output, rows(sample, dataset, model, options))
    if options.picture:
        shown = [sample for dataset in options.dataset for sample in itertools.islice(samples(dataset, options), 2)]
        picture(options.picture, shown, model)
    for dataset in options.dataset:
        print(table([row for row in read_rows(options.output) if row["set"] == dataset], dataset), flush=True)


def samples(dataset: str, options: argparse.Namespace) -> Iterator[DepthSample]:
    """The images of a data set of configs/dataset."""
    with initialize_config_dir(str(installed("configs")), version_base="1.3"):
        config = compose("eval", [f"dataset={dataset}", f"paths.data={options.data.absolute()}"])
    try:
        found, _ = open_samples(config.dataset, "marigold", "dataset.reader")
    except DataError as error:
        raise SystemExit(str(error)) from error
    for index in range(len(found) if options.limit is None else min(options.limit, len(found))):
        yield found[index]


def rows(
    sample: DepthSample, dataset: str, model: MarigoldDepth, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The errors of every method on an image, a row per pattern, seed and number of points."""
    counts = PHOTO_COUNTS if dataset == "motorcycle" else COUNTS
    size = resolution(sample)
    prediction = model(sample.image[None], processing_resolution=size)
    for pattern, seed, count in itertools.product(options.patterns, range(options.seeds), counts):
        points = DrawnPoints(count, seed, pattern).draw(sample.valid, sample.name)
        x, y = points.long().unbind(1)
        # Pixels whose depth is given are not evaluated.
        metres, others = sample.depth[0, y, x], sample.valid.clone()
        others[0, y, x] = False
        found = results(prediction, sample, points, metres)
        if options.guided:
            shown = sample.image[None]
            steered = guided(model, shown, points, metres, name=sample.name, processing_resolution=size)
            found["guided"] = (steered.depth[0], None)
        row: dict[str, Any] = {"set": dataset, "image": sample.name, "pattern": pattern, "seed": seed, "count": count}
        for method, (depth, uncertainty) in found.items():
            row[method] = float((depth - sample.depth).abs()[others].mean())
            if uncertainty is not None:
                row[EXPECTED.format(method)] = float(uncertainty[others].mean())
        yield row


def resolution(sample: DepthSample) -> int:
    """At which an image is predicted: a larger one at 128 pixels, as the quickstart has seen nothing larger."""
    return 128 if sample.depth.shape[2] > 128 else 0


def results(
    prediction: Prediction, sample: DepthSample, points: Tensor, metres: Tensor
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Depth and uncertainty by every method in closed form."""
    x, y = points.long().unbind(1)
    known = torch.zeros_like(sample.valid)[None]
    known[0, 0, y, x] = True
    # Scale and shift alone, with the least squared error of depth at the points.
    line = fit_affine(prediction.depth, sample.depth[None], known)

    def ours(method: str, image: Tensor | None) -> MetricDepth:
        return metric_depth(prediction, points, metres, method=method, image=image, name=sample.name)

    return {
        "least squares": ((line.scale * prediction.depth[0] + line.shift).float(), None),
        "fit": ours("fit", None)[:2],
        "points alone": (interpolate(points, metres, sample.depth), None),
        "residual, no colour": ours("residual", None)[:2],
        "residual": ours("residual", sample.image)[:2],
    }


def picture(path: Path, shown: list[DepthSample], model: MarigoldDepth) -> None:
    """Points on the image | fit | residual | error of both, a line per image."""
    figure = Figure(figsize=(15, 2.6 * len(shown)), layout="constrained")
    for line, sample in zip(figure.subplots(len(shown), 5, squeeze=False), shown, strict=True):
        points = DrawnPoints(150, 0, "random").draw(sample.valid, sample.name)
        x, y = points.long().unbind(1)
        metres, valid = sample.depth[0, y, x], sample.valid[0].numpy()
        prediction = model(sample.image[None], processing_resolution=resolution(sample))
        found = results(prediction, sample, points, metres)
        # Colours by the true depth, so that all maps of a line can be compared.
        low, high = np.quantile(sample.depth[0].numpy()[valid], [0.02, 0.98])
        line[0].imshow(sample.image.permute(1, 2, 0).numpy())
        marks = {"s": 9, "edgecolors": "k", "linewidths": 0.3}
        line[0].scatter(*points.T.numpy(), c=metres.numpy(), cmap=DEPTH_COLOURS, vmin=low, vmax=high, **marks)
        line[0].set_title(f"{sample.name.split()[0]}: 150 points", fontsize=8)
        for axis, beside, method in zip(line[1:3], line[3:], ("fit", "residual"), strict=True):
            depth = found[method][0][0]
            axis.imshow(colour(depth.numpy(), low, high))
            axis.set_title(f"{method}, {low:.1f} to {high:.1f} m", fontsize=8)
            error = (depth - sample.depth[0]).abs().numpy()
            beside.imshow(colour(error, 0, 1, colours=ERROR_COLOURS, known=valid))
            beside.set_title(f"error of {method}: {error[valid].mean():.3f} m; yellow 1 m", fontsize=8)
        for axis in line:
            axis.set_axis_off()
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=75)


def table(found: list[dict[str, Any]], dataset: str) -> str:
    """Mean errors per pattern and method, beside least squares, and the uncertainty beside the error."""
    images, seeds, patterns, counts = (
        sorted({row[key] for row in found}) for key in ("image", "seed", "pattern", "count")
    )
    lines = []
    for pattern, method in itertools.product(patterns, [key for key in found[0] if key in METHODS]):
        cells = []
        for count in counts:
            rows = [row for row in found if (row["pattern"], row["count"]) == (pattern, count)]
            error, squares = (fmean(row[key] for row in rows) for key in (method, "least squares"))
            share = f"{error / squares:.2f}"
            if EXPECTED.format(method) in rows[0]:
                share += f"; {fmean(row[EXPECTED.format(method)] for row in rows) / error:.2f}"
            cells.append(f"{error:.3f} ({share})")
        lines.append([pattern, method, *cells])
    return (
        f"{dataset}, {len(images)} images, {len(seeds)} seeds: MAE in metres (share of least squares; uncertainty as "
        f"a share of the error)\n{markdown(('points', 'method', *counts), lines)}"
    )
