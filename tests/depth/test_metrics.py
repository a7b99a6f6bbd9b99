"""The eleven metrics against hand-computed 2x2 images and numpy alone."""

import math

import numpy as np
import pytest
import torch

from marigold.depth.metrics import METRICS, boundary_f1, compute_metrics
from numpy_reference import metrics

LN2 = math.log(2)
HAND_COMPUTED = {
    "abs_rel": (0.5 + 1 + 0) / 3,
    "sq_rel": (0.5 + 2 + 0) / 3,
    "rmse": math.sqrt(5 / 3),
    "rmse_log": math.sqrt(2 / 3) * LN2,
    "log10": 2 * math.log10(2) / 3,
    "delta1": 1 / 3,
    "delta2": 1 / 3,
    "delta3": 1 / 3,
    "i_rmse": math.sqrt((0.25 + 0.0625) / 3),
    "silog": 100 * math.sqrt(2 / 3) * LN2,  # the log errors -ln 2, ln 2 and 0 have mean 0
    "mae": (1 + 2 + 0) / 3,
}


def maps(values):
    return torch.tensor(values).reshape(1, 1, 2, 2)


@pytest.mark.parametrize("name", METRICS)
def test_each_metric_is_computed_per_image_as_numpy_and_a_hand_do(name):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 1, 21, 33, generator=generator) * 9 + 0.5
    pred = target * (0.7 + 0.8 * torch.rand(target.shape, generator=generator))
    valid = torch.rand(target.shape, generator=generator) < 0.6
    target[~valid] = 0
    images = zip(pred.numpy(), target.numpy(), valid.numpy(), strict=True)
    np.testing.assert_allclose(METRICS[name](pred, target, valid), [metrics(*one)[name] for one in images], rtol=1e-9)
    by_hand = maps([1.0, 4.0, 2.0, 9.0]), maps([2.0, 2.0, 2.0, 0.0]), maps([True, True, True, False])
    assert METRICS[name](*by_hand).item() == pytest.approx(HAND_COMPUTED[name], rel=1e-12)


def test_thresholds_are_strict_and_exact():
    pred, target = maps([3.75, 3.0, 2.4414, 1.0]), maps([3.0, 3.75, 1.25, 1.0])
    found = compute_metrics(pred, target, target > 0)
    assert [found[f"delta{k}"].item() for k in (1, 2, 3)] == [0.25, 0.75, 0.75 + 0.25 * (2.4414 / 1.25 < 1.953125)]


def test_metrics_without_logarithm_take_negative_predictions():
    assert METRICS["abs_rel"](maps([-1.0] * 4), maps([1.0] * 4), maps([True] * 4)).item() == 2
    for names, named in ((["abs_rel", "delta1"], r"image 0 .* delta1"), (["absrel"], "absrel")):
        with pytest.raises(ValueError, match=named):
            compute_metrics(maps([-1.0] * 4), maps([1.0] * 4), maps([True] * 4), names)


@pytest.mark.parametrize("metric", [METRICS["abs_rel"], boundary_f1])
@pytest.mark.parametrize(("pred", "target", "valid"), [(1.0, 1.0, False), (math.nan, 1.0, True), (1.0, 0.0, True)])
def test_undefined_images_are_named(metric, pred, target, valid):
    batch = [torch.ones(2, 1, 2, 2) for _ in range(2)] + [torch.ones(2, 1, 2, 2, dtype=torch.bool)]
    for part, value in zip(batch, (pred, target, valid), strict=True):
        part[1] = value
    with pytest.raises(ValueError, match="image 1 of the batch"):
        metric(*batch)
