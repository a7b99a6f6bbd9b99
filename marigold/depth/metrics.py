"""The eleven error metrics of a depth map, each one number per image, and the F1 of its edges.

Sources: Eigen et al., NeurIPS 2014 (abs_rel, sq_rel, rmse, rmse_log, delta, silog); the KITTI depth benchmark
(i_rmse, silog x 100). Averaging over images is done in `marigold.evaluation.rows`.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.depth.alignment import Points, valid_pixels

Metric = Callable[[Tensor, Tensor, Tensor], Tensor]

# Of the prediction p and the ground truth g at the valid pixels of one image, in metres and float64.
_FORMULAS: dict[str, Callable[[Points, Points], float]] = {
    "abs_rel": lambda p, g: np.mean(np.abs(p - g) / g),
    "sq_rel": lambda p, g: np.mean((p - g) ** 2 / g),
    "rmse": lambda p, g: np.sqrt(np.mean((p - g) ** 2)),
    "rmse_log": lambda p, g: np.sqrt(np.mean(np.log(p / g) ** 2)),
    "log10": lambda p, g: np.mean(np.abs(np.log10(p / g))),
    "delta1": lambda p, g: np.mean(np.maximum(p / g, g / p) < 1.25),
    "delta2": lambda p, g: np.mean(np.maximum(p / g, g / p) < 1.25**2),
    "delta3": lambda p, g: np.mean(np.maximum(p / g, g / p) < 1.25**3),
    "i_rmse": lambda p, g: np.sqrt(np.mean((1 / p - 1 / g) ** 2)),
    "silog": lambda p, g: 100 * np.std(np.log(p / g)),
    "mae": lambda p, g: np.mean(np.abs(p - g)),
}
_OF_ANY_SIGN = ("abs_rel", "sq_rel", "rmse", "mae")  # the others need a prediction above 0


def compute_metrics(
    pred: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    names: Sequence[str] = tuple(_FORMULAS),
) -> dict[str, Float[Tensor, "B"]]:
    """Compute several metrics per image, in float64.

    `pred` and `target` are in metres and positive where valid; the results are float64. Raises ValueError with
    the index in the batch of an image without a valid pixel or with a value at a valid pixel that the
    metrics are not defined for, and for an unknown name. Source: the formulas in the module's head.
    """
    unknown = [name for name in names if name not in _FORMULAS]
    if unknown:
        raise ValueError(f"unknown metric(s) {', '.join(unknown)}; known: {', '.join(_FORMULAS)}")
    positive = [name for name in names if name not in _OF_ANY_SIGN]
    rows = []
    for index in range(len(pred)):
        p, g = _pixels(pred, target, valid, index)
        if positive and p.min() <= 0:
            raise ValueError(
                f"image {index} of the batch: the prediction is {p.min():g} at a valid pixel, but "
                f"{', '.join(positive)} need positive depth; clip the aligned prediction first, for example to 1e-6"
            )
        rows.append([float(_FORMULAS[name](p, g)) for name in names])
    values = torch.tensor(rows, dtype=torch.float64, device=pred.device).reshape(-1, len(names))
    return dict(zip(names, values.unbind(1), strict=True))


def _pixels(pred: Tensor, target: Tensor, valid: Tensor, index: int) -> tuple[Points, Points]:
    try:
        p, g = valid_pixels(pred[index], target[index], valid[index])
        if g.min() <= 0:
            raise ValueError(f"the target is {g.min():g} at a valid pixel; unknown depth must be invalid")
    except ValueError as error:
        raise ValueError(f"image {index} of the batch: {error}") from error
    return p, g


def _single(name: str) -> Metric:
    def metric(
        pred: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
    ) -> Float[Tensor, "B"]:
        return compute_metrics(pred, target, valid, (name,))[name]

    metric.__doc__ = f"`{name}` of each image of a batch; see `compute_metrics`."
    return metric


METRICS: dict[str, Metric] = {name: _single(name) for name in _FORMULAS}


# A pair of neighbours is an edge if the farther is more than t times as deep; t from 1.05 to 1.25, weighted by t.
_THRESHOLDS = torch.linspace(1.05, 1.25, 10, dtype=torch.float64)
_NEAREST = 1e-6  # predictions at or below 0 have no ratio
_ROWS = 256  # rows of a piece, so that 24 megapixels need little memory


def boundary_f1(
    pred: Float[Tensor, "B 1 H W"], target: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]
) -> Float[Tensor, "B"]:
    """F1 of the prediction's depth edges, per image, in [0, 1] and float64.

    An edge lies between two valid 4-neighbours and has a nearer side; `pred` and `target` are
    depths up to one common factor each. At each of ten thresholds F1 = 2 hits / (predicted + true); the result is
    their mean weighted by the threshold, over those at which either map has an edge; 1 if there is none. Raises
    ValueError naming an image with no valid pixel or with a value at one that is not finite, or a target of 0 or
    less. Source: Bochkovskii et al., Depth Pro, ICLR 2025, section 3.2; the counts are pooled over the four
    directions as in its equations (its script averages the directions).
    """
    scores = []
    for index in range(len(pred)):
        _pixels(pred, target, valid, index)  # raises for undefined images
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
    """Yield, per piece, the pairs' depth ratios: those both maps reach, the prediction's and the target's."""
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
