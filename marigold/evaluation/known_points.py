"""Depth from a few known distances: the fit uses only those pixels, and the metrics only the others."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.spatial import QhullError
from torch import Tensor

from marigold.depth.metric import metric_depth
from marigold.types import DepthSample, Prediction

ALONE = "points_alone"
METHODS = ("residual", "fit", ALONE)
"""Metrics of the first have plain names; the other methods' get a prefix: `fit.mae`."""


class FromPoints:
    """Metric depth with the valid pixels as known points, by one of METHODS; see `marigold.depth.metric`."""

    def __init__(self, *, method: str, sample: DepthSample | None = None) -> None:
        self.method = method
        self._sample = sample  # its image guides the interpolation

    def __call__(
        self, prediction: Prediction, target: Float[Tensor, "1 1 H W"], valid: Bool[Tensor, "1 1 H W"], thin: Callable
    ) -> Float[Tensor, "1 1 H W"]:
        """Depth in metres, from all points: the protocol's `thin` is ignored."""
        y, x = valid[0, 0].nonzero(as_tuple=True)
        points, metres = torch.stack([x, y], 1), target[0, 0, y, x]
        if self.method == ALONE:
            return interpolate(points.cpu(), metres.cpu(), target[0])[None]
        with _quiet(metric_depth.__module__):  # outliers among true depths are not user errors
            return metric_depth(
                prediction, points.float(), metres, image=self._image(target), method=self.method
            ).depth[None]

    def _image(self, like: Float[Tensor, "1 1 H W"]) -> Float[Tensor, "3 H W"] | None:
        if self._sample is None:
            return None
        # At the evaluated size; an image of that size is unchanged
        return F.interpolate(self._sample.image[None].to(like.device), like.shape[2:], mode="area")[0]


def fits_from_points(sample: DepthSample) -> dict[str, FromPoints]:
    """The fits that `Protocol.align` applies to a sample's points, by method; the first has the key ""."""
    fits = {method: FromPoints(method=method, sample=sample) for method in METHODS}
    return {"": fits.pop(METHODS[0]), **fits}


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Silence the logger of that name below errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def interpolate(points: Tensor, metres: Float[Tensor, "N"], like: Float[Tensor, "1 H W"]) -> Float[Tensor, "1 H W"]:
    """Depth from points (N, 2), x, y in pixels: linear in Delaunay triangles, outside them the nearest point's."""
    height, width = like.shape[1:]
    grid = np.meshgrid(np.arange(width), np.arange(height))
    depth = NearestNDInterpolator(points.numpy(), metres.numpy())(*grid)
    try:
        linear = LinearNDInterpolator(points.numpy(), metres.numpy())(*grid)
    except QhullError:  # two points or collinear ones: no triangle
        linear = np.full_like(depth, np.nan)
    return torch.from_numpy(np.where(np.isnan(linear), depth, linear))[None].to(like)
