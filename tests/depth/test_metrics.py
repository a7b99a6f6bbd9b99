"""The ten metrics against hand-computed 2x2 images and an independent numpy loop."""

import math

import numpy as np
import pytest
import torch

from marigold.depth.metrics import METRICS, compute_metrics

NAMES = ["abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "delta1", "delta2", "delta3", "i_rmse", "silog", "mae"]


def by_numpy(pred, target, valid):
    p, g = pred[valid].double().numpy(), target[valid].double().numpy()
    e = np.log(p) - np.log(g)
    share = [np.mean(np.maximum(p / g, g / p) < 1.25**k) for k in (1, 2, 3)]
    return {
        "abs_rel": np.mean(np.abs(p - g) / g),
        "sq_rel": np.mean((p - g) ** 2 / g),
        "rmse": np.sqrt(np.mean((p - g) ** 2)),
        "rmse_log": np.sqrt(np.mean(e**2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(g))),
        "delta1": share[0],
        "delta2": share[1],
        "delta3": share[2],
        "i_rmse": np.sqrt(np.mean((1 / p - 1 / g) ** 2)),
        "silog": 100 * np.sqrt(np.mean(e**2) - np.mean(e) ** 2),
        "mae": np.mean(np.abs(p - g)),
    }


def maps(values):
    return torch.tensor(values).reshape(1, 1, 2, 2)


def test_hand_computed_2x2():
    pred, target = maps([1.0, 4.0, 2.0, 9.0]), maps([2.0, 2.0, 2.0, 0.0])
    valid = maps([True, True, True, False])
    ln2 = math.log(2)
    expected = {
        "abs_rel": (0.5 + 1 + 0) / 3,
        "sq_rel": (0.5 + 2 + 0) / 3,
        "rmse": math.sqrt(5 / 3),
        "rmse_log": math.sqrt(2 / 3) * ln2,
        "log10": 2 * math.log10(2) / 3,
        "delta1": 1 / 3,
        "delta2": 1 / 3,
        "delta3": 1 / 3,
        "i_rmse": math.sqrt((0.25 + 0.0625) / 3),
        "silog": 100 * math.sqrt(2 / 3) * ln2,  # the log errors -ln 2, ln 2 and 0 have mean 0
        "mae": (1 + 2 + 0) / 3,
    }
    got = compute_metrics(pred, target, valid)
    assert {name: value.item() for name, value in got.items()} == pytest.approx(expected, rel=1e-12)


def test_thresholds_are_strict_and_exact():
    pred, target = maps([3.75, 3.0, 2.4414, 1.0]), maps([3.0, 3.75, 1.25, 1.0])
    valid = torch.ones_like(pred, dtype=torch.bool)
    assert METRICS["delta1"](pred, target, valid).item() == 0.25
    assert METRICS["delta2"](pred, target, valid).item() == 0.75
    assert METRICS["delta3"](pred, target, valid).item() == 0.75 + 0.25 * (2.4414 / 1.25 < 1.953125)


def test_names_are_the_fixed_ones():
    assert list(METRICS) == NAMES


@pytest.mark.parametrize("shape", [(1, 1, 3, 5), (3, 1, 210, 333)])
def test_equals_numpy_alone_and_together(shape):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator) * 9 + 0.5
    pred = target * (0.7 + 0.8 * torch.rand(shape, generator=generator))
    valid = torch.rand(shape, generator=generator) < 0.6
    valid[:, :, 0, 0] = True
    target[~valid] = 0
    together = compute_metrics(pred, target, valid)
    for name in NAMES:
        expected = [by_numpy(p, g, v)[name] for p, g, v in zip(pred, target, valid, strict=True)]
        np.testing.assert_allclose(together[name].numpy(), expected, rtol=1e-9)
        assert torch.equal(METRICS[name](pred, target, valid), together[name])


def test_perfect_prediction_and_a_global_scale():
    target = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(2)) + 1
    valid = torch.ones_like(target, dtype=torch.bool)
    perfect = compute_metrics(target, target, valid)
    assert all(value.tolist() == [float(name.startswith("delta"))] * 2 for name, value in perfect.items())
    doubled = compute_metrics(2 * target, target, valid, ["silog", "abs_rel"])
    assert doubled["silog"].abs().max() < 1e-5
    assert doubled["abs_rel"].tolist() == [1, 1]


def test_one_valid_pixel():
    valid = maps([False, False, True, False])
    got = compute_metrics(maps([9.0, 9.0, 3.0, 9.0]), maps([0.0, 0.0, 2.0, 0.0]), valid)
    assert got["abs_rel"].item() == 0.5
    assert got["silog"].item() == pytest.approx(0, abs=1e-6)


def test_the_order_of_the_batch_does_not_matter():
    generator = torch.Generator().manual_seed(5)
    pred, target = torch.rand(2, 3, 1, 50, 60, generator=generator).add(0.1)
    valid = torch.rand(3, 1, 50, 60, generator=generator) < 0.5
    batch = compute_metrics(pred, target, valid)
    alone = compute_metrics(pred[2:], target[2:], valid[2:])
    assert all(torch.equal(batch[name][2:], alone[name]) for name in NAMES)


@pytest.mark.parametrize(
    ("pred", "target", "valid", "message"),
    [
        ([1.0] * 4, [1.0] * 4, [False] * 4, "image 0 of the batch has no valid pixel"),
        ([1.0, 1.0, 1.0, float("nan")], [1.0] * 4, [True] * 4, "NaN or infinite"),
        ([1.0] * 4, [1.0, 0.0, 1.0, 1.0], [True] * 4, "the target is 0 at a valid pixel"),
        ([1.0, -1.0, 1.0, 1.0], [1.0] * 4, [True] * 4, "clip the aligned prediction"),
    ],
)
def test_undefined_images_are_named(pred, target, valid, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(maps(pred), maps(target), maps(valid))


def test_metrics_without_logarithm_take_negative_predictions():
    assert METRICS["abs_rel"](maps([-1.0] * 4), maps([1.0] * 4), maps([True] * 4)).item() == 2


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"unknown metric.*absrel.*abs_rel"):
        compute_metrics(maps([1.0] * 4), maps([1.0] * 4), maps([True] * 4), ["absrel"])
