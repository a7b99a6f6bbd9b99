"""Fit scale and shift in a prediction's own space so that another quantity, such as depth, is closest to the truth.

Least squares in the prediction's own space weigh pixels by that space: in disparity, far pixels hardly count. Here the
criterion and its two parameters are the same for every space.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from marigold.depth.alignment import AffineFit, fit_affine
from marigold.depth.mapping import TINY_DEPTH, Mapping

Line = tuple[float, float]  # scale and shift
Pixels = Float64[Tensor, "N"]

_PIXELS = 2**16  # of a piece: bounded memory, and most temporaries stay in the processor's cache
_ITERATIONS = 50
_TOLERANCE = 1e-10  # relative decrease of the criterion


def fit_through(
    pred: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    own: Mapping,
    quantity: Mapping,
) -> AffineFit:
    """Least squares of a quantity of depth over scale and shift of a prediction that is affine in `own`, per image.

    Minimises sum (quantity(own^-1(scale * pred + shift)) - quantity(target))^2 over the valid pixels; `target` is in
    metres, the depth in between is at least `TINY_DEPTH`. A local minimum, by Levenberg-Marquardt in float64 from the
    best of three starts, one of which is least squares in `own`: never worse than that, and the same for every
    scale and shift of the prediction. Raises ValueError as `fit_affine` does.
    """
    starts = fit_affine(pred, own.of_depth(target), valid)
    lines = []
    for index, start in enumerate(zip(starts.scale.tolist(), starts.shift.tolist(), strict=True)):
        x, depth = (part[index][valid[index]].double().cpu() for part in (pred, target))
        # Standardised, the damping means the same for every scale and shift of the prediction.
        middle, width = float(x.mean()), float(x.std(correction=0)) or 1.0
        criterion = _Criterion((x - middle) / width, quantity.of_depth(depth), own, quantity)
        first = (start[0] * width, start[1] + start[0] * middle)
        slope, offset = _minimum(criterion, [first, *_other_starts(criterion, own.of_depth(depth))])
        lines.append((slope / width, offset - slope / width * middle))
    return AffineFit(*torch.tensor(lines, dtype=torch.float64, device=pred.device).reshape(-1, 2).unbind(1))


class _Point(NamedTuple):
    """A line, its sum of squares, and the Gram matrix of (d error / d scale, d error / d shift, error) over pixels."""

    line: Line
    cost: float
    gram: list[list[float]]


class _Criterion(NamedTuple):
    """The squared error of the quantity of `scale * x + shift` against `wanted`."""

    x: Pixels
    wanted: Pixels
    own: Mapping
    quantity: Mapping

    def quantities(self, values: Pixels) -> tuple[Pixels, Pixels]:
        """Return the quantity for values in the prediction's own space, and its derivative, 0 beyond the bounds."""
        with torch.inference_mode(False), torch.enable_grad():
            values = values.clone().requires_grad_()
            found = self.quantity.of_depth(self.own.to_depth(values).clamp_min(TINY_DEPTH))
            return found.detach(), torch.autograd.grad(found.sum(), values)[0]

    def at(self, line: Line) -> _Point:
        """Evaluate the criterion at a line."""
        gram = torch.zeros(3, 3, dtype=torch.float64)
        for x, wanted in zip(self.x.split(_PIXELS), self.wanted.split(_PIXELS), strict=True):
            found, slope = self.quantities(line[0] * x + line[1])
            rows = torch.stack([slope * x, slope, found - wanted])
            gram += rows @ rows.T
        return _Point(line, float(gram[2, 2]), gram.tolist())


def _other_starts(criterion: _Criterion, values: Pixels) -> list[Line]:
    """Two starts for when least squares leave far pixels at a bound, where the gradient vanishes.

    `values` are the true ones in the own space. The first line is a weighted least-squares fit whose squared
    errors equal the criterion's to first order; the second one is the constant whose quantity is nearest to the mean.
    """
    x, weight = criterion.x, criterion.quantities(values)[1].square()
    weight = weight / weight.sum()
    mean_x, mean = float(weight @ x), float(weight @ values)
    scale = float((weight * (x - mean_x)) @ (values - mean)) / (float(weight @ (x - mean_x).square()) or 1.0)
    nearest = int((criterion.wanted - criterion.wanted.mean()).abs().argmin())
    return [(scale, mean - scale * mean_x), (0.0, float(values[nearest]))]


def _minimum(criterion: _Criterion, starts: list[Line]) -> Line:
    """Levenberg-Marquardt. Source: Madsen et al., Methods for Non-Linear Least Squares Problems, 2004, section 3.2."""
    # The first start is finite, and min() never replaces it by one that is not.
    here = min((criterion.at(line) for line in starts), key=lambda point: point.cost)
    damping, growth = 1e-3, 2.0
    for _ in range(_ITERATIONS):
        # (J^T J + damping * mean diagonal) step = J^T error
        (a, b, u), (_, c, v), _ = here.gram
        added = damping * (a + c) / 2
        determinant = (a + added) * (c + added) - b * b
        if not determinant > 0:
            break  # no pixel is within the mapping's bounds
        step = ((c + added) * u - b * v) / determinant, ((a + added) * v - b * u) / determinant
        expected = step[0] * u + step[1] * v
        if not expected > _TOLERANCE * here.cost:
            break
        there = criterion.at((here.line[0] - step[0], here.line[1] - step[1]))
        if there.cost < here.cost:
            gain = (here.cost - there.cost) / expected
            here, growth = there, 2.0
            damping = max(damping * max(1 / 3, 1 - (2 * gain - 1) ** 3), 1e-12)
        else:
            damping, growth = damping * growth, growth * 2
    return here.line
