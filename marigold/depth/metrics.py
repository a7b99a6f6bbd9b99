"""The eleven error measures of a depth map, each one number per image, from one pass over the valid pixels.

Sources: Eigen et al., NeurIPS 2014 (abs_rel, sq_rel, rmse, rmse_log, delta, silog); the KITTI depth benchmark
(i_rmse, silog x 100). Averages over images are none of this module's business.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.depth.alignment import valid_pieces

Metric = Callable[[Tensor, Tensor, Tensor], Tensor]
Pixels = np.ndarray


class _Chunk:
    """The valid pixels of a piece of one image in float64; what several measures share is computed once."""

    def __init__(self, pred: Pixels, target: Pixels) -> None:
        self.pred = pred
        self.target = target

    @cached_property
    def error(self) -> Pixels:
        return self.pred - self.target

    @cached_property
    def relative(self) -> Pixels:
        return self.error / self.target

    @cached_property
    def ratio(self) -> Pixels:
        return self.pred / self.target

    @cached_property
    def factor(self) -> Pixels:
        """max(p / g, g / p)"""
        return np.maximum(self.ratio, self.target / self.pred)

    @cached_property
    def log_error(self) -> Pixels:
        """ln p - ln g, in one logarithm"""
        return np.log(self.ratio)

    @cached_property
    def inverse_error(self) -> Pixels:
        return self.relative / self.pred


class _Measure(NamedTuple):
    """A metric is `finish` of the means over the valid pixels of `terms` (each the sum over one chunk)."""

    terms: tuple[Callable[[_Chunk], float], ...]
    finish: Callable[..., float] = float
    needs_positive: bool = False


def _within(chunk: _Chunk, power: int) -> int:
    return int(np.count_nonzero(chunk.factor < 1.25**power))


def _squared_log(chunk: _Chunk) -> float:
    return chunk.log_error @ chunk.log_error


def _scale_invariant_log(mean_square: float, mean: float) -> float:
    # The variance of e; the difference of two float64 means can fall a rounding error below zero.
    return 100 * math.sqrt(max(mean_square - mean**2, 0.0))


_MEASURES: dict[str, _Measure] = {
    "abs_rel": _Measure((lambda chunk: np.abs(chunk.relative).sum(),)),
    "sq_rel": _Measure((lambda chunk: chunk.relative @ chunk.error,)),
    "rmse": _Measure((lambda chunk: chunk.error @ chunk.error,), math.sqrt),
    "rmse_log": _Measure((_squared_log,), math.sqrt, needs_positive=True),
    "log10": _Measure(
        (lambda chunk: np.abs(chunk.log_error).sum(),), lambda mean: mean / math.log(10), needs_positive=True
    ),
    "delta1": _Measure((partial(_within, power=1),), needs_positive=True),
    "delta2": _Measure((partial(_within, power=2),), needs_positive=True),
    "delta3": _Measure((partial(_within, power=3),), needs_positive=True),
    "i_rmse": _Measure((lambda chunk: chunk.inverse_error @ chunk.inverse_error,), math.sqrt, needs_positive=True),
    "silog": _Measure((_squared_log, lambda chunk: chunk.log_error.sum()), _scale_invariant_log, needs_positive=True),
    "mae": _Measure((lambda chunk: np.abs(chunk.error).sum(),)),
}


def compute_metrics(
    pred: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    names: Sequence[str] = tuple(_MEASURES),
) -> dict[str, Float[Tensor, "B"]]:
    """Compute several metrics per image in one pass, summed in float64.

    `pred` and `target` are in metres and positive where valid; the results are float64. Raises ValueError with
    the index in the batch of an image without a valid pixel or with a value at a valid pixel that the
    metrics are not defined for, and for an unknown name. Source: the formulas in the module's head.
    """
    unknown = [name for name in names if name not in _MEASURES]
    if unknown:
        raise ValueError(f"unknown metric(s) {', '.join(unknown)}; known: {', '.join(_MEASURES)}")
    measures = {name: _MEASURES[name] for name in names}
    rows = [_image_metrics(pred[index], target[index], valid[index], measures, index) for index in range(len(pred))]
    return {
        name: torch.tensor([row[name] for row in rows], dtype=torch.float64, device=pred.device) for name in measures
    }


def _image_metrics(
    pred: Float[Tensor, "1 H W"],
    target: Float[Tensor, "1 H W"],
    valid: Bool[Tensor, "1 H W"],
    measures: dict[str, _Measure],
    index: int,
) -> dict[str, float]:
    terms = list(dict.fromkeys(term for measure in measures.values() for term in measure.terms))
    sums, count = np.zeros(len(terms) + 1), 0
    lowest_pred = lowest_target = math.inf
    # A prediction out of a metric's domain is reported below, in words.
    with np.errstate(all="ignore"):
        for pred_pixels, target_pixels in valid_pieces(pred, target, valid):
            chunk = _Chunk(pred_pixels, target_pixels)
            count += len(pred_pixels)
            lowest_pred = min(lowest_pred, float(pred_pixels.min()))
            lowest_target = min(lowest_target, float(target_pixels.min()))
            sums += [chunk.error.sum(), *(term(chunk) for term in terms)]
    if not count:
        raise ValueError(f"image {index} of the batch has no valid pixel, so it has no metrics")
    total, *means = (sums / count).tolist()
    _check_domain(lowest_pred, lowest_target, total, measures, index)
    mean_of = dict(zip(terms, means, strict=True))
    return {name: measure.finish(*(mean_of[term] for term in measure.terms)) for name, measure in measures.items()}


def _check_domain(
    lowest_pred: float, lowest_target: float, total: float, measures: dict[str, _Measure], index: int
) -> None:
    if not math.isfinite(total):
        raise ValueError(f"image {index} of the batch has NaN or infinite depth at a valid pixel")
    if lowest_target <= 0:
        raise ValueError(
            f"image {index} of the batch: the target is {lowest_target:g} at a valid pixel; "
            "depth of 0 or less means unknown and must be invalid"
        )
    positive = [name for name, measure in measures.items() if measure.needs_positive]
    if positive and lowest_pred <= 0:
        raise ValueError(
            f"image {index} of the batch: the prediction is {lowest_pred:g} at a valid pixel, but "
            f"{', '.join(positive)} need positive depth; clip the aligned prediction first, for example to 1e-6"
        )


def _single(name: str) -> Metric:
    def metric(
        pred: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
    ) -> Float[Tensor, "B"]:
        return compute_metrics(pred, target, valid, (name,))[name]

    metric.__name__ = metric.__qualname__ = name
    metric.__doc__ = f"`{name}` of each image of a batch; see `compute_metrics`."
    return metric


METRICS: dict[str, Metric] = {name: _single(name) for name in _MEASURES}


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
