"""Depth mappings: the quantity in which a model is affine, its training target, and the way back to metres.

A mapping is a monotone function of depth. A model is trained on its values, normalised to [-1, 1], and predicts them
up to scale and shift; a protocol fits scale and shift in the same quantity.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.types import Space

LARGEST_LOG = 5.0  # exp(5) = 148 m; the bound FE2E uses
SMALLEST_DISPARITY = 1e-3  # 1 km; the bound of the reference's disparity alignment
TINY_DEPTH = 1e-6  # metres; the bound of every evaluated depth


@dataclass(frozen=True)
class Mapping:
    """A monotone function of depth in metres, and its bounded inverse.

    `space` is the space of predictions of a model trained on it. `increasing`: far pixels have larger values, so far
    is +1 in the training target; otherwise near is. `positive`: only pixels with a positive prediction enter a fit, as
    in the disparity protocols.
    """

    space: Space
    of_depth: Callable[[Tensor], Tensor]
    to_depth: Callable[[Tensor], Tensor]
    increasing: bool
    positive: bool


def _invert(disparity: Tensor) -> Tensor:
    return disparity.clamp_min(SMALLEST_DISPARITY).reciprocal()


MAPPINGS: dict[str, Mapping] = {
    "depth": Mapping("affine_depth", lambda depth: depth, lambda value: value, increasing=True, positive=False),
    "disparity": Mapping("affine_disparity", torch.reciprocal, _invert, increasing=False, positive=True),
    "sqrt_disparity": Mapping(
        "affine_sqrt_disparity", torch.rsqrt, lambda root: _invert(root.square()), increasing=False, positive=True
    ),
    "log_depth": Mapping(
        "affine_log_depth", torch.log, lambda log: log.clamp_max(LARGEST_LOG).exp(), increasing=True, positive=True
    ),
}
MAPPING_OF: dict[str, str] = {mapping.space: name for name, mapping in MAPPINGS.items()}
"""Space -> the name of its mapping."""


def normalize_depth(
    depth: Float[Tensor, "*batch H W"],
    valid: Bool[Tensor, "*batch H W"],
    quantile: float = 0.02,
    mapping: str = "depth",
) -> Float[Tensor, "*batch H W"]:
    """Map each depth map to [-1, 1]: the quantiles of the mapped depth become -1 and +1, values beyond are clipped.

    `depth` is in metres, (1, H, W) or (B, 1, H, W); the quantiles `quantile` and `1 - quantile` (linear
    interpolation) are taken over the pixels of each map that are valid and above 0. The formula is applied
    to the other pixels too; they must not enter a loss. Raises ValueError for a map without such a pixel,
    with equal quantiles, or with NaN. Source: Ke et al., CVPR 2024, eq. 3; `quantile` as published.
    """
    return normalize(depth, valid, quantile, mapping)[0]


def normalize(
    depth: Float[Tensor, "*batch H W"], valid: Bool[Tensor, "*batch H W"], quantile: float, mapping: str
) -> tuple[Float[Tensor, "*batch H W"], Float[Tensor, "B"]]:
    """As `normalize_depth`, and the half range (high - low) / 2 of every map, in units of the mapped depth.

    A normalised value times the half range is the mapped depth up to a shift.
    """
    if not 0 <= quantile < 0.5:
        raise ValueError(f"quantile must be in [0, 0.5), got {quantile}")
    of_depth = MAPPINGS[mapping].of_depth
    height, width = depth.shape[-2:]
    maps = depth.detach().float().reshape(-1, height, width)
    masks = valid.reshape(-1, height, width)
    normalized, half_range = torch.empty_like(maps), torch.empty(len(maps))
    for index, (one, mask) in enumerate(zip(maps, masks, strict=True)):
        where = f"depth map {index} of {len(maps)}"
        low, high = _quantiles(one, mask, (quantile, 1 - quantile), mapping, where)
        if low == high:
            raise ValueError(
                f"{where}: the quantiles {quantile:g} and {1 - quantile:g} of its {mapping} are both {low:g}, so the "
                "map has no range to normalise; leave this sample out or check its units and its mask"
            )
        # Unknown depth is 0: an infinite disparity, which the clip below makes finite.
        torch.sub(of_depth(one), low, out=normalized[index])
        half_range[index] = (high - low) / 2
        normalized[index].mul_(2 / (high - low)).sub_(1).clamp_(-1, 1)
        if normalized[index].amin().isnan():
            raise ValueError(f"{where} has NaN; mark unknown depth as 0 and invalid when reading it")
    return normalized.reshape(depth.shape), half_range


def _quantiles(
    depth: Float[Tensor, "H W"], valid: Bool[Tensor, "H W"], levels: tuple[float, ...], mapping: str, where: str
) -> list[float]:
    # Not torch.quantile: it refuses more than 16 million elements, and numpy's sort is vectorised.
    known = np.flatnonzero((valid & (depth > 0)).cpu().numpy())
    if not known.size:
        raise ValueError(f"{where} has no valid pixel with depth above 0; leave this sample out")
    ordered = np.sort(depth.cpu().numpy().reshape(-1).take(known))
    if not MAPPINGS[mapping].increasing:
        ordered = ordered[::-1]  # the smallest disparity belongs to the largest depth
    last = known.size - 1
    positions = [level * last for level in levels]
    floors = [math.floor(position) for position in positions]
    depths = ordered[[rank for floor in floors for rank in (floor, min(floor + 1, last))]]
    if not np.isfinite(depths).all():
        raise ValueError(f"{where}: its largest valid depths are infinite; mark them as invalid")
    found = MAPPINGS[mapping].of_depth(torch.from_numpy(depths)).tolist()
    return [
        lower + (upper - lower) * (position - floor)
        for lower, upper, position, floor in zip(found[::2], found[1::2], positions, floors, strict=True)
    ]
