"""Predictions without structure: the best constant against a search over all candidates, the aligned one by hand."""

from dataclasses import replace

import pytest
import torch

from marigold.compare_constant import constant
from marigold.evaluation.fits import BestConstant
from marigold.evaluation.protocol import Benchmark, least_squares
from marigold.evaluation.rows import evaluate
from marigold.types import DepthSample

ALIGNED = least_squares(
    name="p", spaces=["affine_depth"], quantity="depth", benchmark_clip=False, benchmark=Benchmark()
)
BEST = replace(ALIGNED, fit=BestConstant())


def abs_rel(protocol, target, valid):
    sample = DepthSample("a", torch.zeros(3, *target.shape[1:]), target, valid)
    (row,) = evaluate(constant(protocol), [sample], protocol, metrics=["abs_rel"])
    return row.metrics["abs_rel"]


def test_no_other_constant_is_better():
    generator = torch.Generator().manual_seed(0)
    target = 0.5 + 5 * torch.rand(1, 7, 9, generator=generator)
    valid = torch.rand(1, 7, 9, generator=generator) > 0.3
    depth = target[valid].double()
    # The optimum of a sum of weighted distances is one of the values themselves.
    scores = [((candidate - depth).abs() / depth).mean().item() for candidate in depth]
    assert abs_rel(BEST, target, valid) == pytest.approx(min(scores), abs=1e-12)


def test_the_best_constant_by_hand():
    target = torch.tensor([[[1.0, 2.0, 4.0, 9.0]]])
    valid = torch.tensor([[[True, True, True, False]]])
    # 1 m weighs 1, 2 m 1/2 and 4 m 1/4: the nearest pixel alone outweighs the others.
    assert abs_rel(BEST, target, valid) == pytest.approx((0 + 1 / 2 + 3 / 4) / 3)
