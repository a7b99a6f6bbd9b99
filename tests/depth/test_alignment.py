"""Alignment against numpy.linalg.lstsq in float64 and hand-computed lines."""

import numpy as np
import pytest
import torch

from marigold.depth.alignment import apply_affine, fit_affine


def lstsq(pred, target, valid):
    x, y = pred[valid].double().numpy(), target[valid].double().numpy()
    return np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)[0]


def test_hand_computed_2x2():
    # Three points (0, 1), (1, 2), (2, 6): slope 5 / 2, intercept 3 - 5 / 2.
    pred = torch.tensor([[[[0.0, 1.0], [2.0, 100.0]]]])
    target = torch.tensor([[[[1.0, 2.0], [6.0, 0.0]]]])
    scale, shift = fit_affine(pred, target, target > 0)
    assert (scale.item(), shift.item()) == pytest.approx((2.5, 0.5), rel=1e-14)


@pytest.mark.parametrize(("scale", "shift"), [(7.5, 0.3), (-2.0, 40.0), (1e-4, 1e4)])
def test_recovers_a_known_affine_map(scale, shift):
    pred = torch.rand(2, 1, 60, 70, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    target = scale * pred + shift
    fit = fit_affine(pred, target, torch.ones_like(pred, dtype=torch.bool))
    assert fit.scale.tolist() == pytest.approx([scale] * 2, rel=1e-7)
    assert fit.shift.tolist() == pytest.approx([shift] * 2, rel=1e-7)
    assert torch.allclose(apply_affine(pred, fit), target, rtol=1e-9)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_equals_numpy_lstsq_also_far_from_the_origin(offset):
    generator = torch.Generator().manual_seed(4)
    pred = torch.rand(3, 1, 333, 417, generator=generator) + offset
    target = 5 * (pred - offset) + torch.randn(pred.shape, generator=generator)
    valid = torch.rand(pred.shape, generator=generator) < 0.7
    fit = fit_affine(pred, target, valid)
    for index in range(3):
        scale, shift = lstsq(pred[index], target[index], valid[index])
        assert fit.scale[index].item() == pytest.approx(scale, rel=1e-6)
        assert fit.shift[index].item() == pytest.approx(shift, rel=1e-6)


@pytest.mark.slow
def test_equals_numpy_lstsq_at_24_megapixels():
    generator = torch.Generator().manual_seed(4)
    pred = torch.rand(1, 1, 4032, 6048, generator=generator)
    target = 5 * pred + torch.rand(pred.shape, generator=generator)
    valid = target > 1
    fit = fit_affine(pred, target, valid)
    assert [fit.scale.item(), fit.shift.item()] == pytest.approx(lstsq(pred, target, valid), rel=1e-6)


def test_constant_prediction_gets_the_mean():
    pred = torch.full((1, 1, 3, 3), 0.1)
    target = torch.arange(9.0).reshape(1, 1, 3, 3)
    scale, shift = fit_affine(pred, target, torch.ones_like(pred, dtype=torch.bool))
    assert (scale.item(), shift.item()) == (0.0, 4.0)


def test_one_valid_pixel_is_met_exactly():
    pred, target = torch.rand(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    valid = torch.tensor([[[[False, True], [False, False]]]])
    scale, shift = fit_affine(pred, target, valid)
    assert (scale.item(), shift.item()) == (0.0, 3.0)


def test_image_without_valid_pixel_is_named():
    valid = torch.tensor([True, False]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    with pytest.raises(ValueError, match="image 1 of the batch has no valid pixel"):
        fit_affine(torch.rand(2, 1, 4, 4), torch.rand(2, 1, 4, 4), valid)


def test_values_that_are_not_finite_count_only_where_valid():
    pred = torch.tensor([[[[0.0, 1.0, float("nan")]]]])
    target = torch.tensor([[[[1.0, 3.0, float("inf")]]]])
    valid = torch.tensor([[[[True, True, False]]]])
    assert [value.item() for value in fit_affine(pred, target, valid)] == [2, 1]
    with pytest.raises(ValueError, match="image 0 of the batch has NaN or infinity"):
        fit_affine(pred, target, torch.ones_like(valid))
