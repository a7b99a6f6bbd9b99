"""From affine-invariant to metric depth with a few known distances: a robust line, and its residual interpolated.

The line brings the prediction to metres. Its residual at the points is interpolated over the pixels in a joint space,
where two pixels are close if they are close in the image, in the prediction and, if an image is given, in colour:
the residual may jump where the prediction or the colour does. docs/metric.md derives it and measures it.
"""

import logging
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy.spatial import cKDTree
from torch import Tensor

from marigold.depth.alignment import DEVIATIONS_PER_MAD, huber_line
from marigold.depth.mapping import MAPPING_OF, MAPPINGS, Mapping
from marigold.types import Prediction

logger = logging.getLogger(__name__)

# Chosen on the validation rooms; in image heights, as all lengths here.
SMOOTHING = 0.001
DEPTH_LENGTH = 1.0  # between the prediction's smallest and its largest value
COLOUR_LENGTH = 0.2  # between a channel's 0 and 1
MOST_POINTS = 2000  # in one solve
BEYOND = 4.0  # depth is at least the nearest point's over this, and at most the farthest one's times this

_NEIGHBOURS = 8
_GROSS = 0.4  # in log depth: an outlier is off by a factor of 1.5 at least,
_OFF_LINE, _OFF_NEIGHBOURS = 2.0, 3.0  # and by this many robust standard deviations,
_ALIKE = 0.1  # unless its log depth is this close to a neighbour's
_PRIOR_ERROR, _PRIOR_DISTANCE = 0.1, 0.3  # before any is measured: 10 % of the distance, 0.3 image heights off
_CALIBRATION = 1.2  # errors at edges exceed those at points; measured on the validation rooms, as the lengths are
_ELEMENTS = 2**18  # of the distance matrix at once, which then stays in the cache
_NAMED = 10  # outliers listed in a message


class MetricDepth(NamedTuple):
    """Metric depth of an image, its expected error, and the points that were used.

    `depth` and `uncertainty` (the expected absolute error) are in metres; depth is positive and finite. `scale` and
    `shift` are the line's, from the prediction to its mapping's quantity. `used` are the points that entered:
    neither outliers nor thinned out.
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
    image: Float[Tensor, "3 H W"] | None = None,
    method: str = "residual",
    smoothing: float = SMOOTHING,
    name: str = "image",
) -> MetricDepth:
    """Dense metric depth from a prediction of one image and the metres (planar z) of a few of its points.

    `points` are x, y in the prediction's pixels, (0, 0) is the centre of the first one; `image` is in [0, 1]. `method`
    is "fit", the robust line alone, or "residual", which adds the interpolated residual. With `smoothing` 0 every
    point is met. The result depends neither on the order of the points nor, up to rounding, on scale and shift of the
    prediction. Points beyond `MOST_POINTS` are left out at random; this is logged, as outliers are.
    Raises ValueError, naming the image and the point, for a prediction that is not finite, a distance that is not
    positive or a point beyond the image, and for points that determine no scale.
    """
    if method not in ("fit", "residual"):
        raise ValueError(f"method={method!r}: expected fit or residual")
    pixels = _Pixels.of(prediction, image, name)
    check_points(prediction.depth.shape, points, metres, name)
    mapping = MAPPINGS[MAPPING_OF.get(prediction.space, "depth")]
    drawn = _drawn(points, metres)
    places, known = points.cpu().double()[drawn], metres.cpu().double()[drawn]
    seen, joint = pixels.at(places)

    wrong = _outliers(joint, seen, known, mapping, name)
    used, outliers = (
        torch.zeros(len(points), dtype=torch.bool).index_fill(0, drawn[one], True) for one in (~wrong, wrong)
    )
    _state(name, points, metres, used, outliers)
    values = mapping.of_depth(known)
    joint, seen, known, values = (part[~wrong] for part in (joint, seen, known, values))

    prior = _prior(known, mapping)
    slope, offset = _line(seen, values, name)
    residual = values - (slope * seen + offset)
    surface = _Surface.through(joint, residual, smoothing, prior) if method == "residual" else None
    # In-sample errors of a line, which has two parameters
    typical = (float(residual.abs().sum()) + prior) / max(1, len(residual) - 1)
    depth, uncertainty = _dense(pixels, (slope, offset), surface, typical, mapping, known)
    scale, device = slope / pixels.range, prediction.depth.device
    return MetricDepth(
        depth.to(device),
        uncertainty.to(device),
        scale,
        offset - scale * pixels.low,
        used.to(device),
        outliers.to(device),
    )


def _dense(
    pixels: "_Pixels",
    line: tuple[float, float],
    surface: "_Surface | None",
    typical: float,
    mapping: Mapping,
    known: Float64[Tensor, "N"],
) -> tuple[Float[Tensor, "1 H W"], Float[Tensor, "1 H W"]]:
    """Return metres and their expected absolute error at every pixel: the line plus the surface of its residual.

    `typical` is the expected error of the line alone, in the mapping's quantity; `known` are the points' metres.
    """
    bounds = _bounds(known)
    depth, uncertainty = (torch.empty(1, *pixels.depth.shape) for _ in range(2))
    for piece, seen in pixels.pieces(len(known) if surface else 1):
        value, error = line[0] * seen + line[1], torch.full_like(seen, typical)
        if surface:
            added, error = surface.at(pixels.joint_of(piece, seen))
            value += added
        # Half the interval of depth that +- the error in the mapping's quantity spans.
        found, above, below = (mapping.to_depth(value + sign * error).clamp(*bounds) for sign in (0.0, 1.0, -1.0))
        depth.view(-1)[piece], uncertainty.view(-1)[piece] = found.float(), ((above - below).abs() / 2).float()
    return depth, uncertainty


def sample(values: Float[Tensor, "*channels H W"], places: Float[Tensor, "N 2"]) -> Float64[Tensor, "*channels N"]:
    """Sample bilinearly at x, y in pixels; (0, 0) is the first pixel's centre, and border values extend outwards."""
    last = torch.tensor([values.shape[-1] - 1, values.shape[-2] - 1], device=places.device)
    at = places.double().clamp_min(0).minimum(last)
    low = at.floor().long()
    (x, y), (right, down), (share_x, share_y) = (part.unbind(1) for part in (low, (low + 1).minimum(last), at - low))

    def row(y: Tensor) -> Tensor:
        return values[..., y, x].double().lerp(values[..., y, right].double(), share_x)

    return row(y).lerp(row(down), share_y)


def check_points(size: torch.Size, points: Float[Tensor, "N 2"], metres: Float[Tensor, "N"], name: str) -> None:
    """Raise ValueError for fewer than two points, and for one outside of `size` (..., H, W) or without a distance."""
    if len(points) < 2:
        raise ValueError(f"{name}: scale and shift need two known points, got {len(points)}")
    height, width = size[-2:]
    # NaN compares as False
    inside = ((points >= -0.5) & (points <= points.new_tensor([width - 0.5, height - 0.5]))).all(1)
    for right, what in (
        (inside, f"is not inside the image of {width} x {height} pixels"),
        ((metres > 0) & metres.isfinite(), "has no positive and finite distance"),
    ):
        if not bool(right.all()):
            index = int((~right).nonzero()[0])
            x, y = points[index].tolist()
            raise ValueError(f"{name}: point {index} (x={x:g}, y={y:g}, {float(metres[index]):g} m) {what}")


class _Pixels(NamedTuple):
    """Pixels of a prediction and their coordinates in the joint space, computed in pieces for bounded memory."""

    depth: Float[Tensor, "H W"]
    image: Float[Tensor, "3 H W"] | None
    low: float
    range: float

    @classmethod
    def of(cls, prediction: Prediction, image: Tensor | None, name: str) -> "_Pixels":
        depth = prediction.depth.detach().cpu()
        if len(depth) != 1:
            raise ValueError(f"{name}: one image at a time, got a batch of {len(depth)}")
        if image is not None and image.shape[1:] != depth.shape[2:]:
            raise ValueError(f"{name}: the image is {tuple(image.shape)} and the prediction {tuple(depth.shape)}")
        low, high = (float(value) for value in depth.aminmax())
        if not math.isfinite(high - low):
            raise ValueError(f"{name}: the prediction is not finite")
        image = None if image is None else image.detach().cpu()
        return cls(depth[0, 0], image, low, high - low or 1.0)

    def at(self, places: Float64[Tensor, "N 2"]) -> tuple[Float64[Tensor, "N"], Float64[Tensor, "N D"]]:
        """Return the prediction in [0, 1] at x, y in pixels, and joint coordinates in image heights."""
        seen = (sample(self.depth, places) - self.low) / self.range
        parts = [places / len(self.depth), DEPTH_LENGTH * seen[:, None]]
        if self.image is not None:
            parts.append(COLOUR_LENGTH * sample(self.image, places).T)
        return seen, torch.cat(parts, 1)

    def joint_of(self, piece: slice, seen: Float64[Tensor, "N"]) -> Float64[Tensor, "N D"]:
        """Return the joint coordinates of consecutive pixels whose prediction in [0, 1] is `seen`."""
        height, width = self.depth.shape
        index = torch.arange(piece.start, piece.stop)
        parts = [index % width / height, index // width / height, DEPTH_LENGTH * seen]
        if self.image is not None:
            parts.extend(COLOUR_LENGTH * self.image.flatten(1)[:, piece])
        return torch.stack([part.double() for part in parts], 1)

    def pieces(self, columns: int) -> Iterator[tuple[slice, Float64[Tensor, "N"]]]:
        """Yield consecutive pixels and their prediction in [0, 1], in pieces for a matrix of `columns` columns."""
        flat, size = self.depth.reshape(-1), max(1, _ELEMENTS // columns)
        for start in range(0, len(flat), size):
            piece = slice(start, min(start + size, len(flat)))
            yield piece, (flat[piece].double() - self.low) / self.range


def _drawn(points: Float[Tensor, "N 2"], metres: Float[Tensor, "N"]) -> Int[Tensor, "M"]:
    """Draw at most `MOST_POINTS` points, in an order that does not depend on the given one."""
    keys = torch.cat([metres[None].double(), points.T.double()]).cpu().numpy()
    order = torch.from_numpy(np.lexsort(keys))
    if len(order) <= MOST_POINTS:
        return order
    chosen = torch.randperm(len(order), generator=torch.Generator().manual_seed(0))[:MOST_POINTS]
    return order[chosen.sort().values]


def _line(seen: Float64[Tensor, "N"], values: Float64[Tensor, "N"], name: str) -> tuple[float, float]:
    if float(values.max()) == float(values.min()):
        return 0.0, float(values[0])
    if float(seen.max() - seen.min()) < 1e-9:
        raise ValueError(
            f"{name}: the prediction is the same at all {len(seen)} points and their distances differ, so no scale "
            "fits; give points where the prediction differs"
        )
    return huber_line(seen.numpy(), values.numpy())


def _outliers(
    joint: Float64[Tensor, "N D"], seen: Float64[Tensor, "N"], known: Float64[Tensor, "N"], mapping: Mapping, name: str
) -> Bool[Tensor, "N"]:
    """Find points far off the line *and* off the median of their neighbours in the joint space.

    Errors are compared in logarithms, with those usual in this image. A point as far away as one of its neighbours is
    on the same object: a depth edge is no outlier.
    """
    wrong, values = torch.zeros(len(joint), dtype=torch.bool), mapping.of_depth(known)
    if len(joint) < 2 * _NEIGHBOURS:
        return wrong
    for _ in range(5):  # each round refits line and neighbours without the outliers found so far
        good = (~wrong).nonzero().flatten()
        slope, offset = _line(seen[good], values[good], name)
        error = (known / mapping.to_depth(slope * seen + offset).clamp(*_bounds(known[good]))).log()
        _, nearest = cKDTree(joint[good].numpy()).query(joint.numpy(), k=min(_NEIGHBOURS + 1, len(good)))
        near = good[torch.from_numpy(nearest)]
        itself = near == torch.arange(len(joint))[:, None]
        local = error - error[near].masked_fill(itself, torch.nan).nanmedian(1).values
        before, wrong = wrong, _far_off(error, good, _OFF_LINE) & _far_off(local, good, _OFF_NEIGHBOURS)
        if torch.equal(before, wrong):
            break
    alike = (known[:, None] / known[near]).log().abs().masked_fill(itself, torch.inf).amin(1) < _ALIKE
    return wrong & ~alike


def _far_off(error: Float64[Tensor, "N"], good: Int[Tensor, "M"], deviations: float) -> Bool[Tensor, "N"]:
    usual = DEVIATIONS_PER_MAD * float(error[good].abs().median())
    return error.abs() > max(_GROSS, deviations * usual)


def _bounds(known: Float64[Tensor, "N"]) -> tuple[float, float]:
    return float(known.min()) / BEYOND, float(known.max()) * BEYOND


def _prior(known: Float64[Tensor, "N"], mapping: Mapping) -> float:
    """Return the expected error of a point before any is measured, in the mapping's quantity."""
    middle = known.median()
    return abs(float(mapping.of_depth(middle * (1 + _PRIOR_ERROR)) - mapping.of_depth(middle)))


def _state(name: str, points: Tensor, metres: Tensor, used: Bool[Tensor, "N"], outliers: Bool[Tensor, "N"]) -> None:
    """Log which points were left out."""
    wrong, entered = outliers.nonzero().flatten().tolist(), int((used | outliers).sum())
    if entered < len(points):
        logger.warning("%s: using %d of %d points, drawn at random", name, entered, len(points))
    if wrong:
        places = [f"{i} (x={points[i, 0]:g}, y={points[i, 1]:g}, {metres[i]:g} m)" for i in wrong[:_NAMED]]
        more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        logger.warning("%s: outliers left out: %s%s", name, ", ".join(places), more)


class _Surface(NamedTuple):
    """The function sum weight * -|q - node| + constant on the joint space; its error grows with the distance."""

    nodes: Float64[Tensor, "N D"]
    weights: Float64[Tensor, "N"]
    constant: float
    growth: float

    @classmethod
    def through(
        cls, nodes: Float64[Tensor, "N D"], residual: Float64[Tensor, "N"], smoothing: float, prior: float
    ) -> "_Surface":
        """Fit the residual up to smoothing; points in the same place are averaged."""
        nodes, place = torch.unique(nodes, dim=0, return_inverse=True)
        count = len(nodes)
        residual = torch.zeros(count, dtype=torch.float64).index_add_(0, place, residual) / place.bincount()
        distance = torch.cdist(nodes, nodes, compute_mode="donot_use_mm_for_euclid_dist")
        # -|h| is conditionally positive definite (minus the variogram of Brownian motion), so that with the constant's
        # row there is one solution: [-D + smoothing I, 1; 1', 0] [w; c] = [r; 0], docs/metric.md (1).
        system = torch.ones(count + 1, count + 1, dtype=torch.float64)
        system[:count, :count] = smoothing * torch.eye(count, dtype=torch.float64) - distance
        system[count, count] = 0
        inverse = torch.linalg.inv(system)
        weights, constant = (inverse[:, :count] @ residual).split([count, 1])
        # The error at a point of the surface through all the others, in closed form: (2)
        missed = (weights / inverse.diagonal()[:count]).nan_to_num().abs()
        # per distance to the nearest of them: (3)
        reach = distance.fill_diagonal_(math.inf).amin(1).nan_to_num(posinf=0)
        growth = _CALIBRATION * (float(missed.sum()) + prior) / (float(reach.sum()) + _PRIOR_DISTANCE)
        return cls(nodes, weights, float(constant), growth)

    def at(self, places: Float64[Tensor, "M D"]) -> tuple[Float64[Tensor, "M"], Float64[Tensor, "M"]]:
        """Evaluate the surface and its expected absolute error."""
        distance = torch.cdist(places, self.nodes, compute_mode="use_mm_for_euclid_dist")
        return self.constant - distance @ self.weights, self.growth * distance.amin(1)
