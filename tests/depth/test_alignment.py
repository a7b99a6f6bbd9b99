"""Fits against numpy.linalg.lstsq, a grid search, known lines and hand-picked outliers."""

import math

import numpy as np
import pytest
import torch

from marigold.depth.alignment import align_to, fit_affine, fit_log_ransac, fit_robust
from marigold.types import Prediction


def everywhere(depth):
    return torch.ones_like(depth, dtype=torch.bool)


def random_map(seed, shape=(1, 1, 40, 50)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def line(fit):
    return [value.item() for value in fit]


def lstsq(pred, target, valid):
    x, y = pred[valid].double().numpy(), target[valid].double().numpy()
    return np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)[0]


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("size", [(33, 41), pytest.param((4032, 6048), marks=pytest.mark.slow)])
def test_least_squares_are_numpys_also_far_from_the_origin(offset, size):
    generator = torch.Generator().manual_seed(4)
    pred = torch.rand(2, 1, *size, generator=generator) + offset
    target = 5 * (pred - offset) + torch.randn(pred.shape, generator=generator)
    valid = torch.rand(pred.shape, generator=generator) < 0.7
    pred[~valid] = torch.nan
    fit = fit_affine(pred, target, valid)
    for index in range(2):
        expected = lstsq(pred[index], target[index], valid[index])
        assert [fit.scale[index].item(), fit.shift[index].item()] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("fit", [fit_affine, fit_robust, fit_log_ransac])
@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.3), (1e-3, 5.0)])
def test_a_known_line_is_recovered_of_every_image(fit, scale, shift):
    pred = random_map(3, (2, 1, 20, 30))
    target = scale * pred + shift
    found = fit(pred, target.expm1() if fit is fit_log_ransac else target, everywhere(pred))
    assert torch.stack(found).flatten().tolist() == pytest.approx([scale] * 2 + [shift] * 2, rel=1e-7)


def test_least_squares_by_hand():
    # Three points (0, 1), (1, 2), (2, 6): slope 5 / 2, intercept 3 - 5 / 2.
    pred, target = torch.tensor([[[[0.0, 1.0, 2.0, 100.0]]]]), torch.tensor([[[[1.0, 2.0, 6.0, 0.0]]]])
    assert line(fit_affine(pred, target, target > 0)) == pytest.approx([2.5, 0.5], rel=1e-14)
    # A constant gets the mean, exactly; so does one pixel.
    assert line(fit_affine(torch.full_like(pred, 0.1), target, target > 0)) == [0, 3]
    assert line(fit_affine(pred, target, target == 6)) == [0, 6]


@pytest.mark.parametrize("fit", [fit_affine, fit_robust, fit_log_ransac])
@pytest.mark.parametrize(("value", "valid"), [(1.0, False), (math.nan, True), (math.inf, True)])
def test_an_image_that_cannot_be_fitted_is_named(fit, value, valid):
    pred, mask = torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4, dtype=torch.bool)
    pred[1], mask[1] = value, valid
    with pytest.raises(ValueError, match="image 1 of the batch"):
        fit(pred, torch.ones(2, 1, 4, 4), mask)


class TestLogRansac:
    def test_recovers_the_line_in_spite_of_outliers(self):
        pred = random_map(0)
        target = torch.expm1(2 * pred + 0.5)
        target[random_map(1) < 0.25] = 60.0
        assert line(fit_log_ransac(pred, target, everywhere(pred))) == pytest.approx([2, 0.5], abs=0.05)

    @pytest.mark.parametrize("slope", [-1.0, 0.0])
    def test_a_line_that_does_not_rise_becomes_the_ratio_of_the_means(self, slope):
        pred = random_map(0) + 1
        logs = slope * pred + 3
        found = line(fit_log_ransac(pred, logs.expm1(), everywhere(pred)))
        assert found == pytest.approx([logs.mean().item() / pred.mean().item(), 0])

    @pytest.mark.parametrize(("value", "expected"), [(0, (0, math.log(2))), (2, (math.log(2) / 2, 0))])
    def test_one_pixel(self, value, expected):
        one = torch.ones(1, 1, 1, 1)
        assert line(fit_log_ransac(one * value, one, everywhere(one))) == pytest.approx(expected)

    def test_the_seed_decides_not_the_batch(self):
        shape = (3, 1, 20, 20)
        pred, target = random_map(0, shape), random_map(1, shape) * 9 + random_map(0, shape)
        together = fit_log_ransac(pred, target, everywhere(pred), trials=20)
        alone = fit_log_ransac(pred[2:], target[2:], everywhere(pred[2:]), trials=20)
        assert torch.equal(together.scale[2:], alone.scale)
        other = fit_log_ransac(pred, target, everywhere(pred), trials=1, seed=7)
        assert not torch.equal(together.scale, other.scale)


class TestRobust:
    def test_exact_line_with_a_third_of_outliers(self):
        pred = random_map(2)
        target = 3 * pred + 1
        target[random_map(3) < 0.33] = 40.0
        assert line(fit_robust(pred, target, everywhere(pred))) == pytest.approx([3, 1], abs=1e-9)

    def test_no_line_of_a_fine_grid_is_better(self):
        pred = random_map(4, (1, 1, 12, 13))
        target = 2 + 3 * pred + random_map(5, (1, 1, 12, 13)) ** 4 * 8
        best = line(fit_robust(pred, target, everywhere(pred)))
        x, y = pred.flatten().numpy(), target.flatten().numpy()
        steps = np.linspace(-0.2, 0.2, 41)
        lines = np.stack(np.meshgrid(best[0] + steps, best[1] + steps), axis=-1)[..., None]
        costs = (np.abs(lines[..., 0, :] * x + lines[..., 1, :] - y) / y).sum(-1)
        assert (costs[20, 20] <= costs + 1e-9).all()

    def test_the_grid_takes_the_valid_pixel_nearest_to_each_centre(self):
        # 128 x 192 pixels: cells of 2 x 3, their centre between the rows of column 1, so its upper pixel is taken,
        # and where that one is invalid the lower one.
        pred, target = torch.rand(1, 1, 128, 192), torch.full((1, 1, 128, 192), 99.0)
        target[..., 0::2, 1::3] = 5 * pred[..., 0::2, 1::3] + 2
        target[..., 1::2, 1::3] = 4 * pred[..., 1::2, 1::3] + 1
        valid = everywhere(pred)
        assert line(fit_robust(pred, target, valid)) == pytest.approx([5, 2], rel=1e-5)
        valid[..., 0::2, 1::3] = False
        assert line(fit_robust(pred, target, valid)) == pytest.approx([4, 1], rel=1e-5)

    def test_constant_prediction_gets_the_weighted_median(self):
        target = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 1, 1, 3)
        # The weights are 1, 1/2 and 1/4: half is reached at 1.
        assert line(fit_robust(torch.ones_like(target), target, everywhere(target))) == [0, 1]


class TestAlignTo:
    @pytest.mark.parametrize("method", ["least_squares", "huber"])
    def test_exact_measurements_give_back_the_metres(self, method):
        pred = random_map(7, (2, 1, 30, 40))
        metres = torch.tensor([3.0, 8.0]).reshape(2, 1, 1, 1) * pred + 0.5
        sparse = torch.where(random_map(6, metres.shape) < 0.1, metres, 0)
        assert torch.allclose(align_to(pred, sparse, method), metres, rtol=1e-6)

    def test_huber_withstands_wrong_measurements(self):
        pred = random_map(8)
        metres = 4 * pred + 1
        sparse = torch.where(random_map(6) < 0.1, metres + 0.01 * (random_map(9) - 0.5), 0)
        sparse[(sparse > 0) & (random_map(10) < 0.15)] = 50.0
        assert (align_to(pred, sparse, "huber") - metres).abs().max() < 0.01
        assert (align_to(pred, sparse) - metres).abs().max() > 1

    def test_a_prediction_becomes_metric_with_its_uncertainty(self):
        depth = torch.tensor([[[[0.0, 0.5, 1.0]]]])
        result = align_to(Prediction(depth, 0.1 * depth, "affine_depth"), torch.tensor([[[[2.0, 0.0, 6.0]]]]))
        assert result.space == "metric_depth"
        assert torch.allclose(result.depth, torch.tensor([[[[2.0, 4.0, 6.0]]]]))
        assert torch.allclose(result.uncertainty, torch.tensor([[[[0.0, 0.2, 0.4]]]]))
        # Depth below 0 is unknown.
        assert align_to(depth, torch.tensor([[[[0.0, 1.0, 4.0]]]])).tolist() == [[[[0, 1, 4]]]]

    @pytest.mark.parametrize(
        ("metres", "method", "reason"),
        [
            ([0.0, 0.0], "huber", "image 0"),
            ([1.0, 0.0], "huber", "image 0 .* two"),
            ([1.0, -2.0], "least_squares", "negative"),
            ([1.0, math.nan], "least_squares", "image 0"),
            ([1.0, 2.0, 3.0], "least_squares", r"\(1, 1, 1, 2\) .* \(1, 1, 1, 3\)"),
            ([1.0, 2.0], "ransac", "'ransac'"),
        ],
    )
    def test_measurements_that_do_not_fit_are_refused(self, metres, method, reason):
        with pytest.raises(ValueError, match=reason):
            align_to(torch.tensor([[[[0.1, 0.9]]]]), torch.tensor([[[metres]]]), method)

    def test_another_space_is_refused(self):
        with pytest.raises(ValueError, match="affine_disparity"):
            align_to(Prediction(torch.ones(1, 1, 2, 2), None, "affine_disparity"), torch.ones(1, 1, 2, 2))
