"""Fits against numpy.linalg.lstsq, a grid search, known lines and hand-picked outliers."""

import math

import numpy as np
import pytest
import torch

from marigold.depth.alignment import fit_affine, fit_log_ransac, fit_robust, huber_line


def everywhere(depth):
    return torch.ones_like(depth, dtype=torch.bool)


def random_map(seed, shape=(1, 1, 40, 50)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(fit):
    return [value.item() for value in fit]


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_least_squares_are_those_of_numpy_even_far_from_the_origin(offset):
    generator = torch.Generator().manual_seed(4)
    pred = torch.rand(2, 1, 33, 41, generator=generator) + offset
    target = 5 * (pred - offset) + torch.randn(pred.shape, generator=generator)
    valid = torch.rand(pred.shape, generator=generator) < 0.7
    pred[~valid] = torch.nan
    found = torch.stack(fit_affine(pred, target, valid), 1)
    for index in range(2):
        x, y = (part[index][valid[index]].double().numpy() for part in (pred, target))
        expected = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)[0]
        assert found[index].tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("fit", [fit_affine, fit_robust, fit_log_ransac])
def test_a_known_line_is_recovered_in_every_image(fit):
    pred = random_map(3, (2, 1, 20, 30))
    target = 1e-3 * pred + 5
    found = fit(pred, target.expm1() if fit is fit_log_ransac else target, everywhere(pred))
    assert torch.stack(found).flatten().tolist() == pytest.approx([1e-3] * 2 + [5] * 2, rel=1e-7)


def test_a_constant_prediction_gets_the_mean_or_the_weighted_median():
    target = torch.tensor([1.0, 2.0, 6.0, 0.0]).reshape(1, 1, 1, 4)
    assert line(fit_affine(torch.full_like(target, 0.1), target, target > 0)) == [0, 3]
    assert line(fit_affine(target, target, target == 6)) == [0, 6]  # a single pixel
    # The weights are 1, 1/2 and 1/6: half of their sum is reached at 1.
    assert line(fit_robust(torch.ones_like(target), target, target > 0)) == [0, 1]


@pytest.mark.parametrize(("value", "valid"), [(1.0, False), (math.nan, True)])
def test_an_image_that_cannot_be_fitted_is_named(value, valid):
    pred, mask = torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool)
    pred[1], mask[1] = value, valid
    with pytest.raises(ValueError, match="image 1 of the batch"):
        fit_affine(pred, torch.ones(2, 1, 4, 4), mask)


@pytest.mark.parametrize("fit", [fit_robust, fit_log_ransac])
def test_outliers_do_not_move_a_robust_line(fit):
    pred = random_map(0)
    values = 2 * pred + 0.5
    target = torch.where(random_map(1) < 0.25, 60.0, values.expm1() if fit is fit_log_ransac else values)
    assert line(fit(pred, target, everywhere(pred))) == pytest.approx([2, 0.5], abs=0.05)


def test_hubers_line_withstands_outliers_and_is_exact_without():
    x, noise, spoilt = (random_map(seed).flatten().numpy() for seed in (8, 9, 10))
    assert huber_line(x, 4 * x + 1) == pytest.approx((4, 1), rel=1e-6)
    y = np.where(spoilt < 0.15, 50.0, 4 * x + 1 + 0.01 * (noise - 0.5))
    assert huber_line(x, y) == pytest.approx((4, 1), abs=0.01)


@pytest.mark.parametrize(("slope", "shape"), [(-1.0, (1, 1, 40, 50)), (0.0, (1, 1, 40, 50)), (1.0, (1, 1, 1, 1))])
def test_a_line_in_logs_that_does_not_rise_becomes_the_ratio_of_the_means(slope, shape):
    pred = random_map(0, shape) + 1
    logs = slope * pred + 3
    found = line(fit_log_ransac(pred, logs.expm1(), everywhere(pred)))
    assert found == pytest.approx([logs.mean().item() / pred.mean().item(), 0])


def test_the_seed_decides_the_draws_not_the_batch():
    shape = (3, 1, 20, 20)
    pred, target = random_map(0, shape), random_map(1, shape) * 9 + random_map(0, shape)
    together = fit_log_ransac(pred, target, everywhere(pred), trials=20)
    alone = fit_log_ransac(pred[2:], target[2:], everywhere(pred[2:]), trials=20)
    assert torch.equal(together.scale[2:], alone.scale)
    assert not torch.equal(together.scale, fit_log_ransac(pred, target, everywhere(pred), trials=1, seed=7).scale)


def test_no_line_of_a_fine_grid_has_smaller_absolute_errors():
    pred = random_map(4, (1, 1, 12, 13))
    target = 2 + 3 * pred + random_map(5, (1, 1, 12, 13)) ** 4 * 8
    best = line(fit_robust(pred, target, everywhere(pred)))
    x, y = pred.flatten().numpy(), target.flatten().numpy()
    steps = np.linspace(-0.2, 0.2, 41)
    lines = np.stack(np.meshgrid(best[0] + steps, best[1] + steps), axis=-1)[..., None]
    costs = (np.abs(lines[..., 0, :] * x + lines[..., 1, :] - y) / y).sum(-1)
    assert (costs[20, 20] <= costs + 1e-9).all()


def test_the_robust_line_sees_the_pixel_nearest_to_the_centre_of_each_cell():
    # 128 x 192 pixels make cells of 2 x 3; their centre lies between the rows of column 1, so the upper pixel counts.
    pred, target = torch.rand(1, 1, 128, 192), torch.full((1, 1, 128, 192), 99.0)
    target[..., 0::2, 1::3] = 5 * pred[..., 0::2, 1::3] + 2
    assert line(fit_robust(pred, target, everywhere(pred))) == pytest.approx([5, 2], rel=1e-5)
