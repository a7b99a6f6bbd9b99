"""From affine-invariant to metric: the scale and shift per image that make a prediction fit its target."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.depth.streaming import valid_pieces

Method = Literal["least_squares", "huber"]

# P5's settings are those of scikit-learn's RANSACRegressor(max_trials=1000), which its authors call.
_RANSAC_CONFIDENCE = 0.99
_ROBUST_GRID = 64  # P6: MoGe aligns on a 64 x 64 grid


class AffineFit(NamedTuple):
    """Per image: aligned = scale * pred + shift; float64."""

    scale: Float[Tensor, "B"]
    shift: Float[Tensor, "B"]


def apply_affine(pred: Float[Tensor, "B 1 H W"], fit: AffineFit) -> Float[Tensor, "B 1 H W"]:
    """Return scale * pred + shift per image, in the prediction's dtype."""
    scale, shift = (value.to(pred.dtype)[:, None, None, None] for value in fit)
    return torch.addcmul(shift, pred, scale)


def fit_affine(
    pred: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
) -> AffineFit:
    """Least squares of the target on (pred, 1) over the valid pixels of each image, unweighted.

    The target may be depth, disparity, its root or log depth: whatever space the prediction is affine in. The
    closed form from centred moments, streamed in float64; scale and shift (B,) are float64. A constant
    prediction gets scale 0 and the target's mean as shift. Raises ValueError with the index in the batch of an
    image that has no valid pixel or a value that is not finite at one. Source: Ke et al., CVPR 2024, section 4.1.
    """
    fits = [_fit_image(pred[index], target[index], valid[index], index) for index in range(len(pred))]
    scale, shift = torch.tensor(fits, dtype=torch.float64, device=pred.device).reshape(-1, 2).unbind(1)
    return AffineFit(scale, shift)


def _fit_image(
    pred: Float[Tensor, "1 H W"], target: Float[Tensor, "1 H W"], valid: Bool[Tensor, "1 H W"], index: int
) -> tuple[float, float]:
    rows = []
    for x, y in valid_pieces(pred, target, valid):
        low, high = x.aminmax()
        mean_x, mean_y = x.mean(), y.mean()
        x, y = x.sub_(mean_x), y.sub_(mean_y)
        rows.append(torch.stack((low, high, mean_x, mean_y, torch.dot(x, x), torch.dot(x, y), low.new_tensor(len(x)))))
    if not rows:
        raise ValueError(f"image {index} of the batch has no valid pixel to align the prediction on")
    # The moments of the pieces, about their own means, add up about the common mean (Chan et al., 1983).
    low, high, mean_x, mean_y, moment_xx, moment_xy, count = torch.stack(rows).unbind(1)
    weight = count / count.sum()
    x, y = torch.dot(weight, mean_x), torch.dot(weight, mean_y)
    if not bool(torch.isfinite(x + y)):
        raise ValueError(f"image {index} of the batch has NaN or infinity at a valid pixel")
    if low.amin() == high.amax():
        return 0.0, float(y)
    variance = moment_xx.sum() + torch.dot(count, (mean_x - x) ** 2)
    covariance = moment_xy.sum() + torch.dot(count, (mean_x - x) * (mean_y - y))
    scale = covariance / variance
    return float(scale), float(y - scale * x)
