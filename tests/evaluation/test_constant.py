"""The best constant against a search over all candidates, and by hand."""

from dataclasses import replace

import pytest
import torch

from marigold.compare_constant import constant
from marigold.evaluation.fits import BestConstant
from marigold.evaluation.rows import evaluate
from marigold.types import DepthSample
from samples import PLAIN, sample

BEST = replace(PLAIN, fit=BestConstant())


def abs_rel(truth):
    (row,) = evaluate(constant(BEST), [truth], BEST, metrics=["abs_rel"])
    return row.metrics["abs_rel"]


def test_no_other_constant_is_better():
    truth = sample()
    depth = truth.depth[truth.valid].double()
    # The optimum of a sum of weighted distances is one of the values themselves.
    found = [((candidate - depth).abs() / depth).mean().item() for candidate in depth]
    assert abs_rel(truth) == pytest.approx(min(found), abs=1e-12)


def test_the_best_constant_by_hand():
    target = torch.tensor([[[1.0, 2.0, 4.0, 9.0]]])
    valid = torch.tensor([[[True, True, True, False]]])
    # 1 m weighs 1, 2 m 1/2 and 4 m 1/4: the nearest pixel alone outweighs the others.
    truth = DepthSample("a", torch.zeros(3, 1, 4), target, valid)
    assert abs_rel(truth) == pytest.approx((0 + 1 / 2 + 3 / 4) / 3)
