"""From metres to the training target: the 2 % and 98 % quantiles of a map become -1 and +1."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# The upper half of a float32 (sign, exponent, 7 bits of mantissa) names its bucket.
_BUCKET_SHIFT = 16


def normalize_depth(
    depth: Float[Tensor, "*batch H W"], valid: Bool[Tensor, "*batch H W"], quantile: float = 0.02
) -> Float[Tensor, "*batch H W"]:
    """Map each depth map to [-1, 1], near = -1, far = +1.

    `depth` is in metres, (1, H, W) or (B, 1, H, W); the quantiles `quantile` and `1 - quantile` (linear
    interpolation) are taken over the pixels of each map that are valid and above 0. The other pixels get what
    the formula gives them and must not count in a loss. Raises ValueError for a map without such a pixel,
    with equal quantiles, or with NaN. Source: Ke et al., CVPR 2024, section 3.2; `quantile` as published.
    """
    if not 0 <= quantile < 0.5:
        raise ValueError(f"quantile must be in [0, 0.5), got {quantile}")
    height, width = depth.shape[-2:]
    maps = depth.detach().float().reshape(-1, height, width)
    masks = valid.reshape(-1, height, width)
    normalized = torch.empty_like(maps)
    for index, (one, mask) in enumerate(zip(maps, masks, strict=True)):
        where = f"depth map {index} of {len(maps)}"
        low, high = _quantiles(one, mask, (quantile, 1 - quantile), where)
        if low == high:
            raise ValueError(
                f"{where}: the quantiles {quantile:g} and {1 - quantile:g} are both {low:g} m, so the map has no "
                "range to normalise; leave this sample out or check its units and its mask"
            )
        torch.sub(one, low, out=normalized[index])
        normalized[index].mul_(2 / (high - low)).sub_(1).clamp_(-1, 1)
        if normalized[index].amin().isnan():
            raise ValueError(f"{where} has NaN; mark unknown depth as 0 and invalid when reading it")
    return normalized.reshape(depth.shape)


def _quantiles(
    depth: Float[Tensor, "H W"], valid: Bool[Tensor, "H W"], levels: tuple[float, ...], where: str
) -> list[float]:
    # Not torch.quantile: it refuses more than 16 million elements and sorts all of them. Unknown pixels
    # become 0, which sorts before every valid depth, so the maps need not be compressed either.
    known = valid & (depth > 0)
    count = int(known.count_nonzero())
    if count == 0:
        raise ValueError(f"{where} has no valid pixel with depth above 0; leave this sample out")
    values = torch.where(known, depth, 0).flatten()
    unknown = values.numel() - count
    positions = [level * (count - 1) for level in levels]
    floors = [math.floor(position) for position in positions]
    ranks = [rank for floor in floors for rank in (floor, min(floor + 1, count - 1))]
    found = _order_statistics(values, [unknown + rank for rank in ranks])
    if not math.isfinite(found[-1]):
        raise ValueError(f"{where}: its largest valid depths are infinite; mark them as invalid")
    return [
        lower + (upper - lower) * (position - floor)
        for lower, upper, position, floor in zip(found[::2], found[1::2], positions, floors, strict=True)
    ]


def _order_statistics(values: Float[Tensor, "N"], ranks: list[int]) -> list[float]:
    """The elements of ascending rank `ranks` of float32 values >= 0: one histogram, then one small bucket each.

    The bits of a positive float order like the number itself, which makes the buckets.
    """
    buckets = values.view(torch.int32) >> _BUCKET_SHIFT
    below = torch.bincount(buckets).cumsum(0)
    members: dict[int, Tensor] = {}
    found = []
    for rank in ranks:
        bucket = int(torch.searchsorted(below, rank, right=True))
        if bucket not in members:
            members[bucket] = values[buckets == bucket].sort().values
        before = int(below[bucket - 1]) if bucket else 0
        found.append(float(members[bucket][rank - before]))
    return found
