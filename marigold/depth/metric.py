"""From affine-invariant to metric with a few known distances: a robust line, and its residual as a kriged surface.

The line brings the prediction to metres; what it leaves at the points is interpolated over the pixels, where two
pixels are close if they are so in the image *and* in the prediction: the residual may jump where the prediction does.
"""

import logging
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from scipy.spatial import cKDTree
from torch import Tensor

from marigold.depth.alignment import huber_line
from marigold.depth.mapping import MAPPING_OF, MAPPINGS
from marigold.types import Prediction

logger = logging.getLogger(__name__)

SMOOTHING = 0.01  # chosen on the validation rooms, as the next one; in image heights, as all lengths here
DEPTH_LENGTH = 0.6  # the prediction's range in image heights: how far apart the nearest and the farthest pixel are
MOST_POINTS = 2000  # in one solve
BEYOND = 4.0  # depth is between the nearest point's over this and the farthest one's times this

_NEIGHBOURS = 8
_DEVIATIONS = 6.0  # robust standard deviations from which a point disagrees
_DEVIATIONS_PER_MAD = 1.4826
_ELEMENTS = 2**16  # of a piece of the matrix of distances: bounded memory, and it stays in the processor's cache


class MetricDepth(NamedTuple):
    """Metric depth of an image, how far off it is likely to be, and what became of the points.

    `depth` and `uncertainty` (the expected absolute error) are in metres; depth is positive and finite. `scale` and
    `shift` are the line's, from the prediction to its mapping's quantity. `used` are the points that entered:
    neither an outlier nor thinned.
    """

    depth: Float[Tensor, "1 H W"]
    uncertainty: Float[Tensor, "1 H W"]
    scale: float
    shift: float
    used: Bool[Tensor, "N"]
    outliers: Bool[Tensor, "N"]


def metric_depth(
    prediction: Prediction,
    points: Float[Tensor, "N 2"],
    metres: Float[Tensor, "N"],
    *,
    method: str = "residual",
    smoothing: float = SMOOTHING,
    depth_length: float = DEPTH_LENGTH,
    name: str = "image",
) -> MetricDepth:
    """Dense metric depth from a prediction of one image and the metres (planar z) of a few of its points.

    `points` are x, y in the prediction's pixels, (0, 0) is the centre of the first one. `method` is "fit", the robust
    line alone, or "residual", which adds the interpolated residual. `smoothing` 0 meets every point; `depth_length` is
    the range of the prediction in image heights. The result is the same for every order of the points, and for every
    affine change of the prediction up to rounding. Of more than
    `MOST_POINTS` points some are left out of the residual, which is logged, as outliers are. Raises ValueError, naming
    the image and the point, for a prediction that is not finite, a distance that is not positive or a point beyond the
    image, and for points that determine no scale.
    """
    if method not in ("fit", "residual"):
        raise ValueError(f"method={method!r}: expected fit or residual")
    if len(prediction.depth) != 1:
        raise ValueError(f"{name}: one image at a time, got a batch of {len(prediction.depth)}")
    if not bool(prediction.depth.isfinite().all()):
        raise ValueError(f"{name}: the prediction is not finite")
    check_points((prediction.depth.shape[-2], prediction.depth.shape[-1]), points, metres, name)
    mapping = MAPPINGS[MAPPING_OF.get(prediction.space, "depth")]
    low, high = (float(value) for value in prediction.depth.aminmax())
    # The prediction's own scale and shift end here.
    pred = (prediction.depth[0, 0].detach().cpu().double() - low) / (high - low or 1.0)
    # In one order, whatever order the points came in, so that every rounding is the same.
    order = torch.from_numpy(np.lexsort(torch.cat([metres[None].double(), points.T.double()]).cpu().numpy()))
    places, known = points.cpu().double()[order], metres.cpu().double()[order]
    values, seen = mapping.of_depth(known), sample(pred, places)

    slope, offset = _line(seen, values, name)
    joint = torch.cat([places / len(pred), depth_length * seen[:, None]], 1)
    wrong = _outliers(joint, values - (slope * seen + offset))
    slope, offset = _line(seen[~wrong], values[~wrong], name)
    kept = _thinned(~wrong)
    _state(name, order, places, known, wrong, kept)
    residual = values - (slope * seen + offset)

    bounds = float(known[~wrong].min()) / BEYOND, float(known[~wrong].max()) * BEYOND
    value = slope * pred + offset
    if method == "residual":
        added, error = _Surface.through(joint[kept], residual[kept], smoothing).at(pred * depth_length)
        value += added
    else:
        error = torch.full_like(pred, float(residual[~wrong].abs().mean()))
    depth, one, other = (
        mapping.to_depth(value + change * error).clamp(*bounds).float() for change in (0.0, 1.0, -1.0)
    )
    scale = slope / (high - low or 1.0)
    used, outliers = torch.zeros_like(wrong), torch.zeros_like(wrong)
    used[order], outliers[order] = kept, wrong
    device = prediction.depth.device
    return MetricDepth(
        depth[None].to(device),
        ((one - other).abs() / 2)[None].to(device),
        scale,
        offset - scale * low,
        used.to(device),
        outliers.to(device),
    )


def sample(values: Float[Tensor, "H W"], places: Float[Tensor, "N 2"]) -> Float[Tensor, "N"]:
    """Bilinear values at x, y in pixels, where (0, 0) is the centre of the first one; in float64."""
    size = torch.tensor([values.shape[1], values.shape[0]], dtype=torch.float64)
    grid = (places.double() + 0.5) / size * 2 - 1
    return F.grid_sample(
        values.double()[None, None], grid[None, None], padding_mode="border", align_corners=False
    ).flatten()


def check_points(size: tuple[int, int], points: Float[Tensor, "N 2"], metres: Float[Tensor, "N"], name: str) -> None:
    """Raise ValueError for fewer than two points, and for one outside of (height, width) or without a distance."""
    if len(points) < 2:
        raise ValueError(f"{name}: scale and shift need two known points, got {len(points)}")
    height, width = size
    inside = ((points >= -0.5) & (points <= points.new_tensor([width - 0.5, height - 0.5]))).all(1)  # False for NaN
    for bad, what in (
        (~inside, f"is not inside the image of {width} x {height} pixels"),
        (~((metres > 0) & metres.isfinite()), "has no positive and finite distance"),
    ):
        for index in bad.nonzero().flatten().tolist()[:1]:
            x, y = points[index].tolist()
            raise ValueError(f"{name}: point {index} (x={x:g}, y={y:g}, {float(metres[index]):g} m) {what}")


def _line(seen: Float64[Tensor, "N"], values: Float64[Tensor, "N"], name: str) -> tuple[float, float]:
    if float(values.max()) == float(values.min()):
        return 0.0, float(values[0])
    if float(seen.max() - seen.min()) < 1e-9:
        raise ValueError(
            f"{name}: the prediction is the same at all {len(seen)} points and their distances are not, so there is "
            "no scale; give points where the prediction differs"
        )
    return huber_line(seen.numpy(), values.numpy())


def _outliers(joint: Float64[Tensor, "N 3"], residual: Float64[Tensor, "N"]) -> Bool[Tensor, "N"]:
    """Points at which the line *and* the neighbours in the joint space disagree."""
    wrong = torch.zeros(len(joint), dtype=torch.bool)
    if len(joint) < 2 + _NEIGHBOURS // 2:
        return wrong
    for _ in range(3):  # the neighbours' median is a better one without those that are known to be wrong
        good = (~wrong).nonzero().flatten()
        count = min(_NEIGHBOURS + 1, len(good))
        _, nearest = cKDTree(joint[good].numpy()).query(joint.numpy(), k=count)
        near = good[torch.from_numpy(nearest)]
        others = residual[near].where(near != torch.arange(len(joint))[:, None], torch.nan)
        local = residual - others.nanmedian(1).values
        now = _far_off(residual, good) & _far_off(local, good)
        if torch.equal(now, wrong):
            break
        wrong = now
    return wrong


def _far_off(error: Float64[Tensor, "N"], good: Int[Tensor, "M"]) -> Bool[Tensor, "N"]:
    deviation = _DEVIATIONS_PER_MAD * float(error[good].abs().median())
    return error.abs() > _DEVIATIONS * deviation


def _thinned(good: Bool[Tensor, "N"]) -> Bool[Tensor, "N"]:
    """At most `MOST_POINTS` of the good points, drawn without regard to their place."""
    index = good.nonzero().flatten()
    if len(index) <= MOST_POINTS:
        return good
    drawn = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:MOST_POINTS]
    return torch.zeros_like(good).index_fill(0, index[drawn], True)


def _state(
    name: str,
    order: Int[Tensor, "N"],
    places: Float64[Tensor, "N 2"],
    known: Float64[Tensor, "N"],
    wrong: Bool[Tensor, "N"],
    kept: Bool[Tensor, "N"],
) -> None:
    """Say which points did not enter."""
    if wrong.any():
        named = [
            f"{int(order[i])} (x={places[i, 0]:g}, y={places[i, 1]:g}, {known[i]:g} m)"
            for i in wrong.nonzero().flatten().tolist()
        ]
        more = f" and {len(named) - 10} more" if len(named) > 10 else ""
        logger.warning(
            "%s: %d of %d points are outliers: %s%s", name, len(named), len(wrong), ", ".join(named[:10]), more
        )
    thinned = int((~wrong & ~kept).sum())
    if thinned:
        logger.warning("%s: the residual is interpolated from %d points, drawn of %d", name, MOST_POINTS, len(wrong))


class _Surface(NamedTuple):
    """A sum of weights x -|q - node| and a constant over the joint space; its error grows with the distance."""

    nodes: Float64[Tensor, "N 3"]
    weights: Float64[Tensor, "N"]
    constant: float
    growth: float

    @classmethod
    def through(cls, nodes: Float64[Tensor, "N 3"], residual: Float64[Tensor, "N"], smoothing: float) -> "_Surface":
        """The surface through the residual, up to smoothing."""
        count = len(nodes)
        distance = torch.cdist(nodes, nodes)
        # -|h| is conditionally positive definite (the variogram of a Brownian surface), so that with the constant's
        # row there is one solution: [-D + smoothing I, 1; 1', 0] [w; c] = [r; 0].
        system = torch.ones(count + 1, count + 1, dtype=torch.float64)
        system[:count, :count] = smoothing * torch.eye(count, dtype=torch.float64) - distance
        system[count, count] = 0
        inverse = torch.linalg.inv(system)
        solution = inverse[:, :count] @ residual
        # Leave one out in closed form: the error at a point of the surface through all others.
        missed = (solution[:count] / inverse.diagonal()[:count]).abs()
        nearest = distance.fill_diagonal_(math.inf).amin(1).sqrt()
        growth = float(missed.sum() / nearest.sum())
        return cls(nodes, solution[:count], float(solution[count]), growth)

    def at(self, depth: Float64[Tensor, "H W"]) -> tuple[Float64[Tensor, "H W"], Float64[Tensor, "H W"]]:
        """The surface at every pixel, and its expected absolute error; `depth` is the pixels' third coordinate."""
        height, width = depth.shape
        value, error = (
            torch.empty(height * width, dtype=torch.float64),
            torch.empty(height * width, dtype=torch.float64),
        )
        size = max(1, _ELEMENTS // len(self.nodes))
        for start in range(0, height * width, size):
            index = torch.arange(start, min(start + size, height * width))
            place = torch.stack([index % width / height, index // width / height, depth.flatten()[index]], 1)
            distance = torch.cdist(place.double(), self.nodes, compute_mode="use_mm_for_euclid_dist")
            value[index] = self.constant - distance @ self.weights
            error[index] = self.growth * distance.amin(1).sqrt()
        return value.view(height, width), error.view(height, width)
