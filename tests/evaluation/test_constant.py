"""The best constant against a search over all candidates."""

import pytest
import torch

from marigold.evaluation.constant import best_constant, constant_abs_rel


def test_no_other_constant_is_better():
    generator = torch.Generator().manual_seed(0)
    target = 0.5 + 5 * torch.rand(1, 7, 9, generator=generator)
    valid = torch.rand(1, 7, 9, generator=generator) > 0.3
    depth = target[valid].double()
    # The optimum of a sum of weighted distances is one of the values themselves.
    scores = [((candidate - depth).abs() / depth).mean().item() for candidate in depth]
    assert constant_abs_rel(target, valid) == pytest.approx(min(scores), abs=1e-12)


def test_by_hand():
    # 1 m weighs 1, 2 m 1/2 and 4 m 1/4: the nearest pixel alone outweighs the others.
    target = torch.tensor([[[1.0, 2.0, 4.0, 9.0]]])
    valid = torch.tensor([[[True, True, True, False]]])
    assert best_constant(target, valid) == 1.0
    assert constant_abs_rel(target, valid) == pytest.approx((0 + 1 / 2 + 3 / 4) / 3)


def test_no_valid_pixel_is_an_error():
    with pytest.raises(ValueError, match="no valid pixel"):
        best_constant(torch.ones(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))
