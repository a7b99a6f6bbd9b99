"""RANSAC, least absolute errors and align_to against known lines, a grid search and hand-picked outliers."""

import numpy as np
import pytest
import torch

from marigold.depth.alignment import align_to, fit_log_ransac, fit_robust
from marigold.types import Prediction


def everywhere(depth):
    return torch.ones_like(depth, dtype=torch.bool)


def random_map(seed, shape=(1, 1, 40, 50)):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestLogRansac:
    def test_recovers_the_line_in_spite_of_outliers(self):
        pred = random_map(0)
        target = torch.expm1(2 * pred + 0.5)
        target[random_map(1) < 0.25] = 60.0
        scale, shift = fit_log_ransac(pred, target, everywhere(pred))
        assert (scale.item(), shift.item()) == pytest.approx((2, 0.5), abs=0.05)

    def test_exact_data_is_met(self):
        pred = random_map(0)
        scale, shift = fit_log_ransac(pred, torch.expm1(2 * pred + 0.5), everywhere(pred))
        assert (scale.item(), shift.item()) == pytest.approx((2, 0.5), abs=1e-9)

    @pytest.mark.parametrize("slope", [-1.0, 0.0])
    def test_a_line_that_does_not_rise_becomes_the_ratio_of_the_means(self, slope):
        pred = random_map(0) + 1
        target = torch.expm1(slope * pred + 3)
        scale, shift = fit_log_ransac(pred, target, everywhere(pred))
        assert scale.item() == pytest.approx((slope * pred + 3).mean().item() / pred.mean().item())
        assert shift.item() == 0

    def test_one_pixel_and_a_prediction_of_zeros(self):
        one = torch.ones(1, 1, 1, 1)
        assert [value.item() for value in fit_log_ransac(one * 0, one, everywhere(one))] == [
            0,
            pytest.approx(np.log(2)),
        ]
        assert [value.item() for value in fit_log_ransac(one * 2, one, everywhere(one))] == [
            pytest.approx(np.log(2) / 2),
            0,
        ]

    def test_the_seed_decides_not_the_batch(self):
        pred, target = random_map(0, (3, 1, 20, 20)), random_map(1, (3, 1, 20, 20)) * 9 + random_map(0, (3, 1, 20, 20))
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
        scale, shift = fit_robust(pred, target, everywhere(pred))
        assert (scale.item(), shift.item()) == pytest.approx((3, 1), abs=1e-9)

    def test_no_line_of_a_fine_grid_is_better(self):
        pred = random_map(4, (1, 1, 12, 13))
        target = 2 + 3 * pred + random_map(5, (1, 1, 12, 13)) ** 4 * 8
        scale, shift = (value.item() for value in fit_robust(pred, target, everywhere(pred)))
        x, y = pred.flatten().numpy(), target.flatten().numpy()

        def cost(a, b):
            return np.sum(np.abs(a * x + b - y) / y)

        rivals = [(a, b) for a in np.linspace(-0.2, 0.2, 41) for b in np.linspace(-0.2, 0.2, 41)]
        assert all(cost(scale, shift) <= cost(scale + a, shift + b) + 1e-9 for a, b in rivals)

    def test_the_grid_takes_the_valid_pixel_nearest_to_each_centre(self):
        # 128 x 192 pixels: cells of 2 x 3, their centre between the rows of column 1, so its upper pixel is taken.
        pred = torch.zeros(1, 1, 128, 192)
        pred[..., 0::2, 1::3] = torch.rand(64, 64)
        target = torch.where(pred > 0, 5 * pred + 2, 99.0)
        scale, shift = fit_robust(pred, target, everywhere(pred))
        assert (scale.item(), shift.item()) == pytest.approx((5, 2), rel=1e-5)
        # Where that pixel is invalid, the lower one is next.
        valid = everywhere(pred)
        valid[..., 0::2, 1::3] = False
        pred[..., 1::2, 1::3] = torch.rand(64, 64)
        target[..., 1::2, 1::3] = 4 * pred[..., 1::2, 1::3] + 1
        scale, shift = fit_robust(pred, target, valid)
        assert (scale.item(), shift.item()) == pytest.approx((4, 1), rel=1e-5)

    def test_constant_prediction_gets_the_weighted_median(self):
        target = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 1, 1, 3)
        scale, shift = fit_robust(torch.ones_like(target), target, everywhere(target))
        assert (scale.item(), shift.item()) == (0, 1)  # the weights 1, 1/2 and 1/4: half is reached at 1

    def test_image_without_valid_pixel_is_named(self):
        depth = torch.ones(2, 1, 3, 3)
        valid = everywhere(depth)
        valid[1] = False
        for fit in (fit_robust, fit_log_ransac):
            with pytest.raises(ValueError, match="image 1 of the batch has no valid pixel"):
                fit(depth, depth, valid)


class TestAlignTo:
    def sparse(self, metres, share=0.1):
        return torch.where(random_map(6, metres.shape) < share, metres, 0)

    @pytest.mark.parametrize("method", ["least_squares", "huber"])
    def test_exact_measurements_give_back_the_metres(self, method):
        pred = random_map(7, (2, 1, 30, 40))
        metres = torch.tensor([3.0, 8.0]).reshape(2, 1, 1, 1) * pred + 0.5
        assert torch.allclose(align_to(pred, self.sparse(metres), method), metres, rtol=1e-6)

    def test_huber_withstands_wrong_measurements(self):
        pred = random_map(8)
        metres = 4 * pred + 1
        sparse = self.sparse(metres + 0.01 * (random_map(9) - 0.5))
        sparse[(sparse > 0) & (random_map(10) < 0.15)] = 50.0
        robust, plain = align_to(pred, sparse, "huber"), align_to(pred, sparse)
        assert (robust - metres).abs().max() < 0.01
        assert (plain - metres).abs().max() > 1

    def test_a_prediction_becomes_metric_with_its_uncertainty(self):
        depth = torch.tensor([[[[0.0, 0.5, 1.0]]]])
        prediction = Prediction(depth, 0.1 * depth, "affine_depth")
        result = align_to(prediction, torch.tensor([[[[2.0, 0.0, 6.0]]]]))
        assert result.space == "metric_depth"
        assert torch.allclose(result.depth, torch.tensor([[[[2.0, 4.0, 6.0]]]]))
        assert torch.allclose(result.uncertainty, torch.tensor([[[[0.0, 0.2, 0.4]]]]))

    def test_depth_below_zero_is_unknown(self):
        pred = torch.tensor([[[[0.0, 0.5, 1.0]]]])
        assert align_to(pred, torch.tensor([[[[0.0, 1.0, 4.0]]]])).tolist() == [[[[0, 1, 4]]]]

    @pytest.mark.parametrize(
        ("metres", "method", "message"),
        [
            ([[[[0.0, 0.0]]]], "huber", "no valid pixel"),
            ([[[[1.0, 0.0]]]], "huber", "need two known pixels"),
            ([[[[1.0, -2.0]]]], "least_squares", "negative metres"),
            ([[[[1.0, float("nan")]]]], "least_squares", "NaN or infinity"),
            ([[[[1.0, 2.0, 3.0]]]], "least_squares", "put the measurements on the prediction's pixels"),
            ([[[[1.0, 2.0]]]], "ransac", "unknown method 'ransac'"),
        ],
    )
    def test_measurements_that_do_not_fit_are_refused(self, metres, method, message):
        with pytest.raises(ValueError, match=message):
            align_to(torch.tensor([[[[0.1, 0.9]]]]), torch.tensor(metres), method)

    def test_another_space_is_refused(self):
        prediction = Prediction(torch.ones(1, 1, 2, 2), None, "affine_disparity")
        with pytest.raises(ValueError, match="affine_disparity"):
            align_to(prediction, torch.ones(1, 1, 2, 2))
