"""The points of a depth map in one self-contained HTML file with a rotatable view: no server, no requests."""

import base64
import html
import json
import math
from pathlib import Path
from string import Template
from typing import BinaryIO

import numpy as np
from jaxtyping import Float
from torch import Tensor

from marigold.depth.point_cloud import is_known, thinned, unproject
from marigold.pictures import eight_bits
from marigold.types import Camera

LARGEST_CLOUD = 200_000  # points; 20 bytes of HTML each
_PAGE = Path(__file__).with_name("viewer.html")


def write_viewer(
    file: BinaryIO,
    depth: Float[Tensor, "1 H W"],
    camera: Camera,
    image: Float[Tensor, "3 H W"],
    *,
    title: str,
    unit: str,
    largest: int = LARGEST_CLOUD,
) -> None:
    """Write a page that shows the points in the image's colours, first as `camera` sees them.

    `depth` is planar, in `unit`, which the caption names; a map of more than `largest` pixels is thinned to an even
    grid. Raises ValueError if no depth is known (positive and finite).
    """
    _, height, width = depth.shape
    rows, columns = thinned(height, width, largest)
    points = unproject(depth, camera)[rows, columns].float()
    known = is_known(points[..., 2])
    if not known.any():
        raise ValueError("no points: depth is unknown at every pixel")
    shown, colours = points[known].numpy(), eight_bits(image[:, rows, columns])[known.numpy()]
    scene = {
        "count": len(shown),
        "width": width,
        "height": height,
        "lens": [camera.fx, camera.fy, camera.cx - width / 2, camera.cy - height / 2],
        "stride": math.ceil(math.sqrt(height * width / known.numel())),  # width of a point in pixels of the image
        "middle": float(np.median(shown[:, 2])),
        "farthest": float(np.linalg.norm(shown, axis=1).max()),
        "positions": _base64(shown.astype("<f4")),
        "colours": _base64(colours),
    }
    caption = f"{len(shown):,} of {height * width:,} points, in {unit}"
    page = Template(_PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(title), caption=html.escape(caption), scene=json.dumps(scene)
    )
    file.write(page.encode())


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
