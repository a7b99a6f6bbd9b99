"""The ten error measures of a depth map, each one number per image, from one pass over the valid pixels.

Sources: Eigen et al., NeurIPS 2014 (abs_rel, sq_rel, rmse, rmse_log, delta, silog); the KITTI depth benchmark
(i_rmse, silog x 100). Averages over images are none of this module's business.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.depth.streaming import valid_pieces

Metric = Callable[[Tensor, Tensor, Tensor], Tensor]


class _Chunk:
    """The valid pixels of a piece of one image in float64; what several measures share is computed once."""

    def __init__(self, pred: Tensor, target: Tensor) -> None:
        self.pred = pred
        self.target = target

    @cached_property
    def error(self) -> Tensor:
        return self.pred - self.target

    @cached_property
    def relative(self) -> Tensor:
        return self.error / self.target

    @cached_property
    def ratio(self) -> Tensor:
        """max(p / g, g / p), by one division."""
        return torch.maximum(self.pred, self.target) / torch.minimum(self.pred, self.target)

    @cached_property
    def log_ratio(self) -> Tensor:
        """|ln p - ln g|"""
        return self.ratio.log()

    @cached_property
    def inverse_error(self) -> Tensor:
        return self.relative / self.pred


class _Measure(NamedTuple):
    """A metric is `finish` of the means over the valid pixels of `terms` (each the sum over one chunk)."""

    terms: tuple[Callable[[_Chunk], Tensor], ...]
    finish: Callable[..., float] = float
    needs_positive: bool = False


def _squares(values: Tensor) -> Tensor:
    return torch.dot(values, values)


def _within(chunk: _Chunk, power: int) -> Tensor:
    # As numbers, not as bool: that comparison is vectorised and its sum too.
    below = torch.lt(chunk.ratio, 1.25**power, out=torch.empty_like(chunk.ratio))
    return below.sum()


def _squared_log(chunk: _Chunk) -> Tensor:
    return _squares(chunk.log_ratio)


def _log_error(chunk: _Chunk) -> Tensor:
    return torch.dot(chunk.log_ratio, chunk.error.sign())


def _scale_invariant_log(mean_square: float, mean: float) -> float:
    # The variance of e; the difference of two float64 means can fall a rounding error below zero.
    return 100 * math.sqrt(max(mean_square - mean**2, 0.0))


_MEASURES: dict[str, _Measure] = {
    "abs_rel": _Measure((lambda chunk: chunk.relative.abs().sum(),)),
    "sq_rel": _Measure((lambda chunk: torch.dot(chunk.relative, chunk.error),)),
    "rmse": _Measure((lambda chunk: _squares(chunk.error),), math.sqrt),
    "rmse_log": _Measure((_squared_log,), math.sqrt, needs_positive=True),
    "log10": _Measure((lambda chunk: chunk.log_ratio.sum(),), lambda mean: mean / math.log(10), needs_positive=True),
    "delta1": _Measure((partial(_within, power=1),), needs_positive=True),
    "delta2": _Measure((partial(_within, power=2),), needs_positive=True),
    "delta3": _Measure((partial(_within, power=3),), needs_positive=True),
    "i_rmse": _Measure((lambda chunk: _squares(chunk.inverse_error),), math.sqrt, needs_positive=True),
    "silog": _Measure((_squared_log, _log_error), _scale_invariant_log, needs_positive=True),
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
    sums, lowest = [], []
    count = 0
    for pred_piece, target_piece in valid_pieces(pred, target, valid):
        chunk = _Chunk(pred_piece, target_piece)
        count += len(chunk.pred)
        lowest.append(torch.stack((chunk.pred.amin(), chunk.target.amin())))
        total = chunk.pred.sum() + chunk.target.sum()
        sums.append(torch.stack([total, *(term(chunk) for term in terms)]))
    if not count:
        raise ValueError(f"image {index} of the batch has no valid pixel, so it has no metrics")
    total, *means = (torch.stack(sums).sum(0) / count).tolist()
    _check_domain(torch.stack(lowest).amin(0).tolist(), total, measures, index)
    mean_of = dict(zip(terms, means, strict=True))
    return {name: measure.finish(*(mean_of[term] for term in measure.terms)) for name, measure in measures.items()}


def _check_domain(lowest: Sequence[float], total: float, measures: dict[str, _Measure], index: int) -> None:
    lowest_pred, lowest_target = lowest
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
