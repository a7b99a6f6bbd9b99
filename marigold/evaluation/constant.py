"""What a prediction without any structure scores: two floors to compare with."""

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


def aligned_constant_abs_rel(target: Float[Tensor, "1 H W"], valid: Bool[Tensor, "1 H W"]) -> float:
    """AbsRel of a constant prediction after the least-squares alignment that every other prediction gets.

    Whatever the constant, the fit to the depth makes it the mean depth of the map. Raises ValueError without a
    valid pixel.
    """
    depth = target[valid].double()
    if depth.numel() == 0:
        raise ValueError("aligned_constant_abs_rel: no valid pixel")
    return ((depth.mean() - depth).abs() / depth).mean().item()
