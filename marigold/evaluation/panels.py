"""Panels of an evaluation: image | prediction | ground truth | error of chosen samples."""

from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F

from marigold.evaluation.protocol import Protocol
from marigold.evaluation.rows import Predict, Row, align
from marigold.types import DepthSample
from marigold.visualization import PanelRow, panel


def worst_and_median(rows: Sequence[Row], worst: int, median: int) -> list[tuple[str, Row]]:
    """("worst", row) for the `worst` images by AbsRel, then ("median", row) for those around the median."""
    ranked = sorted((row for row in rows if row.error is None), key=lambda row: (-row.metrics["abs_rel"], row.name))
    # No image twice if there are few
    first = max(worst, (len(ranked) - median) // 2)
    return [("worst", row) for row in ranked[:worst]] + [("median", row) for row in ranked[first : first + median]]


def draw_panel(
    path: Path,
    chosen: Sequence[tuple[int, str]],
    predict: Predict,
    samples: Sequence[DepthSample],
    protocol: Protocol,
    name: str,
) -> None:
    """Predict the chosen samples (index, caption) of the data set `name` and draw one line each."""
    lines = []
    for index, caption in chosen:
        aligned = align(predict, protocol.shown(samples[index]), protocol)
        # The predictor's image at the evaluated size
        image = F.interpolate(aligned.image[None], aligned.depth.shape[-2:], mode="area")[0]
        lines.append(PanelRow(caption, image, aligned.depth[0], aligned.target[0], aligned.valid[0]))
    panel(path, lines, f"{name} under protocol '{protocol.name}'")
