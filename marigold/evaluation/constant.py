"""The best that a prediction without any structure can score: a floor to compare with."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def best_constant(target: Float[Tensor, "1 H W"], valid: Bool[Tensor, "1 H W"]) -> float:
    """The constant depth in metres with the lowest AbsRel on this one map.

    sum |c - g| / g over the valid pixels is least at the median of g weighted by 1 / g. Raises ValueError
    without a valid pixel.
    """
    depth = target[valid].double().sort().values
    if depth.numel() == 0:
        raise ValueError("best_constant: no valid pixel")
    weight = (1 / depth).cumsum(0)
    return depth[torch.searchsorted(weight, weight[-1] / 2)].item()


def constant_abs_rel(target: Float[Tensor, "1 H W"], valid: Bool[Tensor, "1 H W"]) -> float:
    """AbsRel of `best_constant`: chosen with the ground truth at hand, so no constant does better."""
    depth = target[valid].double()
    return ((best_constant(target, valid) - depth).abs() / depth).mean().item()
