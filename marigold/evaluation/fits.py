"""How a protocol brings a prediction into metres: one class per kind of fit, chosen in configs/protocol.

A fit maps (prediction, ground truth, valid) to depth in metres, all (1, 1, H, W). Clipping to the
benchmark's range is not its business: it comes after, in `protocol.py`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.depth.alignment import apply_affine, fit_affine, fit_log_ransac, fit_robust
from marigold.depth.mapping import MAPPINGS
from marigold.evaluation.errors import EvaluationError
from marigold.types import Prediction

Map = Float[Tensor, "1 1 H W"]
Mask = Bool[Tensor, "1 1 H W"]
Thinning = Callable[[Tensor], Tensor]
"""Reduces a map to the pixels that the fit sees; the same for prediction, ground truth and mask."""

TINY_DEPTH = 1e-6


class LeastSquares:
    """Unweighted least squares of a quantity of the true depth on (prediction, 1), before any clipping."""

    def __init__(self, *, quantity: str) -> None:
        if quantity not in MAPPINGS:
            raise EvaluationError(f"quantity={quantity}: unknown; known are {', '.join(MAPPINGS)}")
        self.quantity = quantity

    def __call__(self, prediction: Prediction, target: Map, valid: Mask, thin: Thinning) -> Map:
        """Depth in metres; raises EvaluationError where no pixel is left to fit."""
        quantity = MAPPINGS[self.quantity]
        values = prediction.depth
        usable = valid & (values > 0) if quantity.positive else valid
        if prediction.space == "metric_depth":
            values = quantity.of_depth(values.clamp_min(TINY_DEPTH))
        usable_thin = thin(usable)
        if not usable_thin.any():
            raise EvaluationError("no valid pixel with a positive prediction to fit on")
        # Invalid depths may be 0, whose reciprocal would poison the sums; 1 m is never looked at.
        wanted = quantity.of_depth(torch.where(usable, target, torch.ones_like(target)))
        return quantity.to_depth(apply_affine(values, fit_affine(thin(values), thin(wanted), usable_thin)))


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
        line = fit_log_ransac(thin(values), thin(target), thin(valid), trials=self.trials, seed=self.seed)
        return apply_affine(values, line).expm1().clamp(1e-3, float(target[valid].max()))


class Robust:
    """Least absolute errors of depth on the prediction, weighted by 1 / depth, on a 64x64 grid (MoGe)."""

    def __call__(self, prediction: Prediction, target: Map, valid: Mask, thin: Thinning) -> Map:
        """Depth in metres."""
        values = prediction.depth
        return apply_affine(values, fit_robust(thin(values), thin(target), thin(valid)))


class BestConstant:
    """The constant depth of lowest AbsRel, whatever was predicted: no fitted constant does better.

    sum |c - g| / g over the valid pixels g is least at the median of g weighted by 1 / g.
    """

    def __call__(self, prediction: Prediction, target: Map, valid: Mask, thin: Thinning) -> Map:
        """Depth in metres, the same everywhere."""
        depth = target[valid].double().sort().values
        weight = (1 / depth).cumsum(0)
        return torch.full_like(target, float(depth[torch.searchsorted(weight, weight[-1] / 2)]))


Fit = LeastSquares | LogRansac | Robust | BestConstant
