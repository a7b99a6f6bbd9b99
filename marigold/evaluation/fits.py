"""How a protocol aligns a prediction to metres: one class per kind of fit, chosen in configs/protocol.

A fit maps (prediction, ground truth, valid) to depth in metres, all (1, 1, H, W). Clipping to the
benchmark's range is not part of the fit: it follows in `protocol.py`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.depth.alignment import apply_affine, fit_affine, fit_log_ransac, fit_robust
from marigold.depth.mapping import MAPPING_OF, MAPPINGS, TINY_DEPTH
from marigold.depth.prefit import fit_through
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.known_points import FromPoints
from marigold.types import Prediction

Map = Float[Tensor, "1 1 H W"]
Mask = Bool[Tensor, "1 1 H W"]
Thinning = Callable[[Tensor], Tensor]
"""Reduces a map to the pixels that the fit sees; the same for prediction, ground truth and mask."""


class LeastSquares:
    """Unweighted least squares of a quantity of the true depth on (prediction, 1), before any clipping."""

    def __init__(self, *, quantity: str) -> None:
        if quantity not in MAPPINGS:
            raise EvaluationError(f"quantity={quantity}: unknown; known are {', '.join(MAPPINGS)}")
        self.quantity = quantity

    def __call__(self, prediction: Prediction, target: Map, valid: Mask, thin: Thinning) -> Map:
        """Depth in metres; raises EvaluationError if no pixel is left to fit."""
        # Disparities <= 0 have no depth: as after MiDaS, they are excluded from the fit but not from the metrics.
        usable = valid & (prediction.depth > 0) if MAPPINGS[self.quantity].positive else valid
        seen = thin(usable)
        if not seen.any():
            raise EvaluationError("no valid pixel with a positive prediction to fit on")
        # Invalid depths may be 0, whose reciprocal would spoil the sums; the 1 m that replaces them is masked out.
        return self._fitted(prediction, thin(torch.where(usable, target, 1)), seen, thin)

    def _fitted(self, prediction: Prediction, target: Tensor, seen: Tensor, thin: Thinning) -> Map:
        """`target` and `seen` are thinned."""
        quantity = MAPPINGS[self.quantity]
        values = prediction.depth
        # Metric depth is converted to the fitted quantity first; TINY_DEPTH keeps it finite.
        if prediction.space == "metric_depth":
            values = quantity.of_depth(values.clamp_min(TINY_DEPTH))
        return quantity.to_depth(apply_affine(values, fit_affine(thin(values), quantity.of_depth(target), seen)))


class Prefit(LeastSquares):
    """Least squares of a quantity of the true depth over scale and shift of the prediction *in its own space*.

    Criterion and pixels as in `LeastSquares`, but the two parameters belong to the prediction's mapping: one yardstick
    for all spaces. A prediction that is affine in the quantity gets what `LeastSquares` gives it; metric depth counts
    as affine depth.
    """

    def _fitted(self, prediction: Prediction, target: Tensor, seen: Tensor, thin: Thinning) -> Map:
        own, quantity = MAPPINGS[MAPPING_OF.get(prediction.space, "depth")], MAPPINGS[self.quantity]
        if own is quantity:  # a linear problem with a closed form
            return super()._fitted(prediction, target, seen, thin)
        values = prediction.depth
        return own.to_depth(apply_affine(values, fit_through(thin(values), target, seen, own, quantity)))


class LogRansac:
    """Seeded RANSAC line of log(depth + 1) on the prediction, clipped to [1e-3, largest true depth].

    Pixel-Perfect Depth, which leaves the draws unseeded. A slope that is not positive falls back to the
    ratio of the means, in logs.
    """

    def __init__(self, *, trials: int, seed: int) -> None:
        self.trials = trials
        self.seed = seed

    def __call__(self, prediction: Prediction, target: Map, valid: Mask, thin: Thinning) -> Map:
        """Depth in metres."""
        values = prediction.depth
        if prediction.space == "metric_depth":
            values = values.clamp_min(0).log1p()
        # log(depth + 1) is finite at 0 m; expm1 is its inverse.
        line = fit_log_ransac(thin(values), thin(target), thin(valid), trials=self.trials, seed=self.seed)
        return apply_affine(values, line).expm1().clamp(1e-3, float(target[valid].max()))


class Robust:
    """Least absolute errors of depth on the prediction, weighted by 1 / depth, on a 64x64 grid (MoGe)."""

    def __call__(self, prediction: Prediction, target: Map, valid: Mask, thin: Thinning) -> Map:
        """Depth in metres."""
        values = prediction.depth
        return apply_affine(values, fit_robust(thin(values), thin(target), thin(valid)))


class BestConstant:
    """The constant depth of lowest AbsRel, whatever was predicted.

    sum |c - g| / g over the valid pixels g is least at the median of g weighted by 1 / g.
    """

    def __call__(self, prediction: Prediction, target: Map, valid: Mask, thin: Thinning) -> Map:
        """Depth in metres, the same everywhere."""
        depth = target[valid].double().sort().values
        weight = (1 / depth).cumsum(0)  # |c - g| / g is piecewise linear in c with its kink at g
        return torch.full_like(target, float(depth[torch.searchsorted(weight, weight[-1] / 2)]))


Fit = LeastSquares | LogRansac | Robust | BestConstant | FromPoints
