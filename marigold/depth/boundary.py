"""Sharpness of depth edges, which AbsRel hardly sees: the scale-invariant boundary F1 of Depth Pro."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# A pair of neighbours is an edge if the farther is more than t times as deep; t from 1.05 to 1.25, weighted by t.
_THRESHOLDS = torch.linspace(1.05, 1.25, 10, dtype=torch.float64)
_NEAREST = 1e-6  # predictions at or below 0 have no ratio
_ROWS = 256  # rows of a piece, so that 24 megapixels need little memory


def boundary_f1(
    pred: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
) -> Float[Tensor, "B"]:
    """F1 of the prediction's depth edges, per image, in [0, 1] and float64.

    An edge lies between 4-neighbours, both valid, and knows which of them is nearer; `pred` and `target` are
    depths up to one common factor each. At each of ten thresholds F1 = 2 hits / (predicted + true); the result is
    their mean weighted by the threshold, over those at which either map has an edge; 1 if there is none. Raises
    ValueError naming an image with no valid pixel or with a value at one that is not finite, or a target of 0 or
    less. Source: Bochkovskii et al., Depth Pro, ICLR 2025, section 3.2; the counts are pooled over the four
    directions as in its equations (its script averages the directions).
    """
    scores = []
    for index in range(len(pred)):
        _check(pred[index], target[index], valid[index], index)
        counts = torch.zeros(3, len(_THRESHOLDS), dtype=torch.int64, device=pred.device)
        thresholds = _THRESHOLDS.to(pred.device)[:, None]
        for ratios in _edge_ratios(pred[index, 0], target[index, 0], valid[index, 0]):
            for count, ratio in zip(counts, ratios, strict=True):
                candidates = ratio[ratio > thresholds[0]]
                count += (candidates > thresholds).sum(1)
        hits, predicted, true = counts.double()
        seen = predicted + true > 0
        f1 = 2 * hits[seen] / (predicted + true)[seen]
        weights = thresholds.flatten()[seen]
        scores.append(torch.dot(f1, weights) / weights.sum() if bool(seen.any()) else f1.new_ones(()))
    return torch.stack(scores) if scores else pred.new_zeros(0, dtype=torch.float64)


def _edge_ratios(
    pred: Float[Tensor, "H W"], target: Float[Tensor, "H W"], valid: Bool[Tensor, "H W"]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For the pairs of each piece: the depth ratio that both maps reach, the prediction's and the target's."""
    for top in range(0, len(pred), _ROWS):
        own, below = slice(top, top + _ROWS), slice(top + 1, top + _ROWS + 1)
        upper = slice(top, min(top + _ROWS, len(pred) - 1))
        for first, second in [((own, slice(None, -1)), (own, slice(1, None))), ((upper,), (below,))]:
            known = valid[first] & valid[second]
            p, q = (pred[side][known].double().clamp(min=_NEAREST) for side in (first, second))
            g, h = (target[side][known].double() for side in (first, second))
            predicted = torch.maximum(p, q) / torch.minimum(p, q)
            true = torch.maximum(g, h) / torch.minimum(g, h)
            agree = (p < q) == (g < h)
            yield torch.minimum(predicted, true) * agree, predicted, true


def _check(pred: Tensor, target: Tensor, valid: Tensor, index: int) -> None:
    if not bool(valid.any()):
        raise ValueError(f"image {index} of the batch has no valid pixel, so it has no boundary F1")
    if not bool((valid <= (pred.isfinite() & target.isfinite())).all()):
        raise ValueError(f"image {index} of the batch has NaN or infinite depth at a valid pixel")
    if not bool((valid <= (target > 0)).all()):
        raise ValueError(
            f"image {index} of the batch: the target is 0 or less at a valid pixel; such depth means "
            "unknown and must be invalid"
        )
