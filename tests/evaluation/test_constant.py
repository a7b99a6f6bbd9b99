"""The best constant against a search over all candidates."""

import pytest
import torch

from marigold.depth.alignment import apply_affine, fit_affine
from marigold.evaluation.constant import aligned_constant_abs_rel, best_constant, constant_abs_rel


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


def test_an_aligned_constant_is_the_mean_depth():
    target = torch.tensor([[[1.0, 2.0, 6.0, 9.0]]])
    valid = torch.tensor([[[True, True, True, False]]])
    assert aligned_constant_abs_rel(target, valid) == pytest.approx((2 / 1 + 1 / 2 + 3 / 6) / 3)
    assert aligned_constant_abs_rel(target, valid) > constant_abs_rel(target, valid)
    # The alignment that every prediction gets makes the same of any constant.
    fit = fit_affine(torch.full((1, 1, 1, 4), 0.3), target[None], valid[None])
    assert apply_affine(torch.full((1, 1, 1, 4), 0.3), fit)[valid[None]].tolist() == pytest.approx([3.0] * 3)


def test_no_valid_pixel_is_an_error():
    with pytest.raises(ValueError, match="no valid pixel"):
        aligned_constant_abs_rel(torch.ones(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match="no valid pixel"):
        best_constant(torch.ones(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool))
