"""Combine affine-invariant predictions of one image: closed-form alignment, then median or mean."""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

# Pixels sorted at once: small enough for the cache, large enough to hide the cost of a call, and at most torch's
# grain of parallel work, so that its threads are not woken for every exchange of two rows.
_PIECE = 2**15
_PIECE_MOMENTS = 2**14  # of a short sum
_PIECE_DEVICE = 2**20  # of either, on a GPU
_SAMPLE = 2**12  # pixels on which clipped members are found and refitted
_CLIPPED = 0.05  # share of pixels at a member's own lowest and highest value from which it counts as clipped
_CLIPPED_AWAY = 0.75  # and from which too little of it is left
_AGREES = 0.8  # share of the members' median correlation with the consensus below which a member is left out
_LARGEST = 1e15
_NEGLIGIBLE = 1e-12  # a member this much flatter than the others carries no information


class EnsembleResult(NamedTuple):
    """`scale[i] * member[i] + shift[i]` lies in the frame of `depth`; `uncertainty` is in units of `depth`."""

    depth: Float[Tensor, "1 1 H W"]
    uncertainty: Float[Tensor, "1 1 H W"]
    scale: Float[Tensor, "E"]
    shift: Float[Tensor, "E"]


def ensemble_depth(
    depth: Float[Tensor, "E 1 H W"],
    *,
    method: str = "procrustes",
    reduction: str = "median",
    alignment: str = "affine",
) -> EnsembleResult:
    """Align the members in closed form and reduce them to one map in [0, 1] with its uncertainty.

    The scales are the top eigenvector of the members' correlation matrix over their standard deviations: the
    minimum of all pairwise squared differences at fixed total variance. `alignment="scale"` does the same
    about 0 and divides by the maximum; `"none"` reduces the members as they are and keeps their units.
    A member whose correlation with the consensus is below 0.8 times the members' median correlation (so every
    constant or inverted one) is left out; its scale and shift are its best fit >= 0.
    A member with more than 5 % of its pixels at its minimum or maximum was clipped, as a decoder's output is: its
    scale and shift are refitted to the consensus on the other pixels ("affine" only).
    The median of an even number is the lower one, as torch.median's; the uncertainty is the median absolute
    deviation, or the standard deviation under `reduction="mean"`. A constant result is 0 everywhere.
    Raises ValueError naming the members that are not finite, for a consensus below 0 under `alignment="scale"` and
    for a `method` other than "procrustes". Source: the objective of Ke et al., CVPR 2024, eq. 4, squared and
    with the constraint that it lacks.
    """
    if method != "procrustes":
        raise ValueError(f"ensemble method {method!r}: expected 'procrustes'")
    if reduction not in ("median", "mean") or alignment not in ("affine", "scale", "none"):
        raise ValueError(
            "reduction is 'median' or 'mean' and alignment 'affine', 'scale' or 'none'; "
            f"got {reduction!r} and {alignment!r}"
        )
    if not depth.numel():
        raise ValueError(f"nothing to ensemble: the members have the shape {tuple(depth.shape)}")
    members = depth.detach().flatten(1)
    members = members.to(torch.promote_types(depth.dtype, torch.float32))
    mean, covariance = _moments(members)
    # Half the time of isfinite; and beyond `_LARGEST` sums of squares leave float32.
    bad = (~(mean.abs() + covariance.diagonal().clamp(min=0).sqrt() < _LARGEST)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"ensemble member(s) {', '.join(map(str, bad))} of {len(members)} have NaN, infinity or values above "
            f"{_LARGEST:g}; predictions are expected in [0, 1]"
        )
    kept, scale, shift = _align(mean, covariance, alignment)
    if alignment == "affine":
        _fit_clipped(members, kept, scale, shift)
    if len(kept) < len(members):
        members = members[kept]
    center, spread = _reduce(members, scale[kept], shift[kept], reduction)
    low, extent = _frame(center, alignment)
    shape = depth.shape[-2:]
    return EnsembleResult(
        center.sub_(low).div_(extent).reshape(1, 1, *shape),
        spread.div_(extent).reshape(1, 1, *shape),
        (scale / extent).to(members),
        ((shift - low) / extent).to(members),
    )


def _moments(members: Float[Tensor, "E N"]) -> tuple[Float[Tensor, "E"], Float[Tensor, "E E"]]:
    """Mean and covariance, streamed: short sums in the members' precision, and their sums in float64, on the CPU.

    Centred on a first guess, so that nothing cancels. The covariance of float32 maps then errs by some 1e-6 of
    a variance and the mean by 1e-8, in half the time of float64 products.
    """
    pixels = members.shape[1]
    guess = members[:, :_PIECE_MOMENTS].mean(1, keepdim=True)
    total, gram = [], []
    for piece in members.split(_PIECE_MOMENTS if members.device.type == "cpu" else _PIECE_DEVICE, dim=1):
        centered = piece - guess
        total.append(centered.sum(1, keepdim=True))
        gram.append(centered @ centered.mT)
    offset = torch.stack(total).double().sum(0) / pixels
    second = torch.stack(gram).double().sum(0) / pixels
    return (guess.double() + offset).squeeze(1).cpu(), (second - offset @ offset.mT).cpu()


def _align(
    mean: Float[Tensor, "E"], covariance: Float[Tensor, "E E"], alignment: str
) -> tuple[list[int], Float[Tensor, "E"], Float[Tensor, "E"]]:
    """Return the members that are kept, and every member's scale and shift into their common frame."""
    everyone, zeros = list(range(len(mean))), torch.zeros_like(mean)
    if alignment == "none":
        return everyone, zeros + 1, zeros
    affine = alignment == "affine"
    second = covariance if affine else covariance + torch.outer(mean, mean)
    size = second.diagonal().clamp(min=0).sqrt()
    noise = torch.finfo(torch.float32).eps * mean.abs() if affine else zeros
    informative = (size > noise) & (size > _NEGLIGIBLE * size.max()) & (size > 1 / _LARGEST)
    kept = informative.nonzero().flatten()
    if not len(kept):
        return everyone, zeros, zeros
    size = torch.where(informative, size, 1.0)
    correlation = second / torch.outer(size, size)
    while True:
        weight = _leading_vector(correlation[kept][:, kept])
        agreement = correlation[kept][:, kept] @ weight
        positive = agreement > 0
        agrees = positive & (agreement >= _AGREES * agreement[positive].median())
        if bool(agrees.all()):
            break
        kept = kept[agrees]
    # In units of its standard deviation, a dropped member gets its regression on the mean of the others.
    strength = (correlation[:, kept] @ weight).clamp(min=0) / len(kept) ** 0.5
    strength[kept] = weight * len(kept) ** 0.5
    scale = torch.where(informative, strength / size, 0.0)
    return kept.tolist(), scale, -scale * mean if affine else zeros


def _fit_clipped(
    members: Float[Tensor, "E N"], kept: list[int], scale: Float[Tensor, "E"], shift: Float[Tensor, "E"]
) -> None:
    """Match clipped members to the consensus in mean and deviation, on their unclipped pixels, in place.

    Clipping lowers a member's deviation, so its scale comes out too large for the unclipped pixels.
    """
    sample = members[:, :: max(1, members.shape[1] // _SAMPLE)].contiguous()
    low, high = sample.aminmax(dim=1, keepdim=True)
    inside = (sample > low) & (sample < high)
    share = (1 - inside.to(sample).mean(1)).tolist()
    clipped = [index for index in kept if _CLIPPED < share[index] < _CLIPPED_AWAY]
    if not clipped:
        return
    consensus = (scale[kept].to(sample) @ sample[kept] + shift[kept].sum().to(sample)).div_(len(kept)).double()
    for index in clipped:
        own, common = sample[index][inside[index]].double(), consensus[inside[index]]
        ratio = float(common.std(correction=0) / own.std(correction=0))
        if 0 < ratio < math.inf:
            scale[index], shift[index] = ratio, float(common.mean()) - ratio * float(own.mean())


def _leading_vector(correlation: Float[Tensor, "K K"]) -> Float[Tensor, "K"]:
    """The eigenvector of the largest eigenvalue, its sign the majority's."""
    vector = torch.linalg.eigh(correlation).eigenvectors[:, -1]
    balance = vector.sum()
    if balance.abs() < 1e-9:  # two opposite camps: the first member decides, on every machine alike
        balance = vector[vector.abs() > 0.5 * vector.abs().max()][0]
    return -vector if balance < 0 else vector


def _reduce(
    members: Float[Tensor, "E N"], scale: Float[Tensor, "E"], shift: Float[Tensor, "E"], reduction: str
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Return centre and spread of the aligned members at every pixel."""
    center, spread = members.new_empty(members.shape[1]), members.new_empty(members.shape[1])
    size = _PIECE if members.device.type == "cpu" else _PIECE_DEVICE
    scale, shift = scale.to(members)[:, None], shift.to(members)[:, None]
    buffer = members.new_empty(len(members), min(size, members.shape[1]))
    for piece, center_piece, spread_piece in zip(
        members.split(size, dim=1), center.split(size), spread.split(size), strict=True
    ):
        # A third of the time of addcmul, which does not vectorise over a broadcast scale.
        aligned = torch.mul(piece, scale, out=buffer[:, : piece.shape[1]]).add_(shift)
        if reduction == "mean":
            torch.mean(aligned, 0, out=center_piece)
            torch.std(aligned, 0, correction=min(1, len(aligned) - 1), out=spread_piece)
        else:
            _median_and_deviation(aligned, center_piece, spread_piece)
    return center, spread


def _median_and_deviation(members: Float[Tensor, "E N"], median: Tensor, deviation: Tensor) -> None:
    """Write the lower median of every column, and the lower median of the distances to it.

    Sorting the few members by exchanging whole rows takes a twentieth of torch.median's time. In sorted order the
    c + 1 members nearest the median c are neighbours, so the largest distance is at one end of a window.
    """
    rows = list(members.unbind())
    spare = torch.empty_like(rows[0])
    for low, high in _exchanges(len(rows)):
        torch.minimum(rows[low], rows[high], out=spare)
        torch.maximum(rows[low], rows[high], out=rows[high])
        rows[low], spare = spare, rows[low]
    half = (len(rows) - 1) // 2
    median.copy_(rows[half])
    torch.sub(rows[2 * half], median, out=deviation)
    for start in range(half):
        below = torch.sub(median, rows[start], out=rows[start])
        above = torch.sub(rows[start + half], median, out=spare)
        torch.minimum(deviation, torch.maximum(below, above, out=spare), out=deviation)


@lru_cache
def _exchanges(count: int) -> tuple[tuple[int, int], ...]:
    """Batcher's merge exchange (Knuth, The Art of Computer Programming 3, algorithm 5.2.2 M) for `count` rows."""
    pairs = []
    top = 1 << max(count - 1, 0).bit_length() >> 1
    stride = top
    while stride:
        reach, parity, distance = top, 0, stride
        while True:
            pairs += [(i, i + distance) for i in range(count - distance) if i & stride == parity]
            if reach == stride:
                break
            distance, reach, parity = reach - stride, reach >> 1, stride
        stride >>= 1
    return tuple(pairs)


def _frame(center: Float[Tensor, "N"], alignment: str) -> tuple[float, float]:
    """Return the offset to subtract from the result and the extent to divide it by."""
    if alignment == "none":
        return 0.0, 1.0
    low, high = (float(value) for value in center.aminmax())
    if alignment == "scale":
        if low < 0:
            raise ValueError(f"scale-only ensembling needs members of 0 or more, but their consensus reaches {low:g}")
        low = 0.0
    return low, high - low if high > low else 1.0
