"""From affine-invariant to metric: the scale and shift per image that make a prediction fit its target."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from marigold.depth.reprojection import nearest_valid

Points = Float64[np.ndarray, "N"]
Line = tuple[float, float]  # scale and shift

# P5's authors call scikit-learn's RANSACRegressor(max_trials=1000); these are its settings.
_RANSAC_CONFIDENCE = 0.99
_ROBUST_GRID = 64  # P6: MoGe aligns on a 64 x 64 grid
DEVIATIONS_PER_MAD = 1.4826  # standard deviation of a normal sample in median absolute deviations
_HUBER_TUNING = 1.345  # standard deviations up to which errors are squared: Huber's 95 % efficiency


class AffineFit(NamedTuple):
    """Per image: aligned = scale * pred + shift; float64."""

    scale: Float[Tensor, "B"]
    shift: Float[Tensor, "B"]


def apply_affine(pred: Float[Tensor, "B 1 H W"], fit: AffineFit) -> Float[Tensor, "B 1 H W"]:
    """Return scale * pred + shift per image, in the prediction's dtype."""
    scale, shift = (value.to(pred.dtype)[:, None, None, None] for value in fit)
    return (pred * scale).add_(shift)  # a third of the time of a broadcasting addcmul


def fit_affine(
    pred: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
) -> AffineFit:
    """Least squares of the target on (pred, 1) over the valid pixels of each image, unweighted.

    The target may be depth, disparity, its root or log depth: whatever space the prediction is affine in. The
    closed form from centred moments in float64; scale and shift (B,) are float64. A constant prediction
    gets scale 0 and the target's mean as shift. Raises ValueError with the index in the batch of an image that has
    no valid pixel or a value that is not finite at one. Source: Ke et al., CVPR 2024, section 4.2.
    """
    return _fit_each(pred, target, valid, _line)


def fit_log_ransac(
    pred: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    *,
    trials: int = 1000,
    seed: int = 0,
) -> AffineFit:
    """Fit log(target + 1) = scale * pred + shift by RANSAC, per image: depth is exp(aligned) - 1.

    `target` is in metres. Inliers lie within the median absolute deviation of log(target + 1); trials stop when
    99 % sure; the best line is refitted on its inliers. Without a rising line the fit is the ratio of the means
    with shift 0. Every image starts from `seed`, so neither its batch nor its order matters. Raises ValueError
    as `fit_affine` does. Source: Pixel-Perfect Depth's evaluation (protocol `ppd`), scikit-learn's defaults.
    """
    return _fit_each(
        pred, target, valid, lambda x, y: _rising_line(x, np.log1p(y), trials, np.random.default_rng(seed))
    )


def fit_robust(
    pred: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
) -> AffineFit:
    """Least absolute errors of the target on (pred, 1), weighted by 1 / target, on a 64 x 64 grid, per image.

    `target` is in metres; each cell of the grid gives its valid pixel nearest to its centre. The minimum is
    exact, by linear programming. Raises ValueError as `fit_affine` does. Source: MoGe's evaluation (`moge`).
    """
    picked = torch.zeros_like(valid, memory_format=torch.contiguous_format)
    for mask, chosen in zip(valid, picked, strict=True):
        nearest = nearest_valid(mask[0], (_ROBUST_GRID, _ROBUST_GRID))
        chosen.view(-1)[nearest[nearest >= 0]] = True
    return _fit_each(pred, target, picked, lambda x, y: _least_absolute_line(x, y, 1 / y))


def valid_pixels(
    pred: Float[Tensor, "1 H W"], target: Float[Tensor, "1 H W"], valid: Bool[Tensor, "1 H W"]
) -> tuple[Points, Points]:
    """Both maps' values at valid pixels, float64 arrays; ValueError if there are none or any is not finite."""
    kept = np.flatnonzero(valid.cpu().numpy())  # three times as fast as torch's indexing by a mask
    x, y = (values.detach().double().cpu().numpy().reshape(-1).take(kept) for values in (pred, target))
    if not len(x):
        raise ValueError("no valid pixel")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("NaN or infinity at a valid pixel")
    return x, y


def _fit_each(pred: Tensor, target: Tensor, valid: Tensor, fit: Callable[[Points, Points], Line]) -> AffineFit:
    lines = []
    for index, maps in enumerate(zip(pred, target, valid, strict=True)):
        try:
            lines.append(fit(*valid_pixels(*maps)))
        except ValueError as error:
            raise ValueError(f"image {index} of the batch: {error}") from error
    return AffineFit(*torch.tensor(lines, dtype=torch.float64, device=pred.device).reshape(-1, 2).unbind(1))


def _line(x: Points, y: Points) -> Line:
    # About the first pixel and then about the mean: nothing cancels, and the moments of a constant are exactly 0.
    right, up = x - x[0], y - y[0]
    middle = right.mean()
    right -= middle
    variance = right @ right
    slope = float(right @ up / variance) if variance > 0 else 0.0
    return slope, float(y[0] + up.mean() - slope * (x[0] + middle))


def _rising_line(x: Points, y: Points, trials: int, generator: np.random.Generator) -> Line:
    tolerance = float(np.median(np.abs(y - np.median(y))))
    best = np.zeros(len(x), dtype=bool)
    needed, trial = float(trials), 0
    while len(x) > 1 and trial < needed:
        pair = generator.choice(len(x), 2, replace=False, shuffle=False)
        slope, intercept = _line(x[pair], y[pair])
        inliers = np.abs(slope * x + intercept - y) <= tolerance
        if inliers.sum() > best.sum():
            best = inliers
            missed = 1 - best.mean() ** 2  # the chance that a pair has an outlier
            needed = min(trials, math.log(1 - _RANSAC_CONFIDENCE) / math.log(missed)) if missed > 0 else 0
        trial += 1
    slope, intercept = _line(x[best], y[best]) if best.any() else (0.0, 0.0)
    if slope > 0:
        return slope, intercept
    return (float(y.mean() / x.mean()), 0.0) if x.mean() != 0 else (0.0, float(y.mean()))


def _least_absolute_line(x: Points, y: Points, weight: Points) -> Line:
    """Minimise sum weight |a x + b - y| through its dual: one bounded unknown per point, two constraints."""
    if np.ptp(x) == 0:
        order = np.argsort(y)
        total = np.cumsum(weight[order])
        return 0.0, float(y[order][np.searchsorted(total, total[-1] / 2)])
    middle, width = x.mean(), np.ptp(x)
    constraints = np.stack([(x - middle) / width, np.ones_like(x)])
    weight = weight / weight.max()
    bounds = np.stack([-weight, weight], axis=1)
    solution = scipy.optimize.linprog(-y, A_eq=constraints, b_eq=np.zeros(2), bounds=bounds, method="highs")
    if solution.status != 0:
        raise ValueError(f"the robust alignment found no solution: {solution.message}")
    slope, intercept = (-float(value) for value in solution.eqlin.marginals)
    return slope / width, intercept - slope * middle / width


def huber_line(x: Points, y: Points) -> Line:
    """Slope and intercept of y on x, which varies, under Huber's loss at 1.345 robust standard deviations; float64."""
    # The loss is convex; least absolute errors on a subset of the points give a start that no outlier has moved.
    step = -(-len(x) // _ROBUST_GRID**2)
    start = _least_absolute_line(x[::step], y[::step], np.ones_like(x[::step]))
    deviation = DEVIATIONS_PER_MAD * float(np.median(np.abs(start[0] * x + start[1] - y)))
    # Measurements on a perfect line have no spread; scipy asks for a positive one.
    tolerance = max(_HUBER_TUNING * deviation, 1e-9 * float(np.abs(y).max()))
    matrix = np.stack([x, np.ones_like(x)], axis=1)
    solution = scipy.optimize.least_squares(
        lambda line: matrix @ line - y, start, jac=lambda _: matrix, loss="huber", f_scale=tolerance, x_scale="jac"
    )
    return float(solution.x[0]), float(solution.x[1])
