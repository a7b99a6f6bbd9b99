"""Metric depth from known points: exact there, blind to the prediction's scale and the points' order, and honest."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import marigold
from benchmarks.memory import Bytes
from marigold.depth import metric
from marigold.depth.mapping import MAPPING_OF, MAPPINGS
from marigold.types import Prediction

SPACES = list(MAPPING_OF)


def scene(space="affine_depth", seed=0, size=(48, 64), bent=0.1):
    """A room with a box in metres, and a prediction in [0, 1] of it that is bent by a smooth field."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*(torch.linspace(0, 1, side) for side in size), indexing="ij")
    depth = torch.minimum(1.2 / (0.2 + (y - 0.2).clamp_min(0)), 3 + 4 * (x - 0.4).abs())
    depth = torch.where((x - 0.6).abs().maximum((y - 0.6).abs()) < 0.15, 1.5 + 0.3 * x, depth)[None]
    values = MAPPINGS[MAPPING_OF[space]].of_depth(depth)
    values = (values - values.min()) / (values.max() - values.min())
    field = F.interpolate(torch.randn(1, 1, 4, 5, generator=generator), size, mode="bicubic", align_corners=True)
    values = values + bent * field[0] + bent / 20 * torch.randn(values.shape, generator=generator)
    return depth, Prediction(((values - values.min()) / (values.max() - values.min()))[None], None, space)


def drawn(depth, count, seed=0):
    """`count` different pixels as x, y and their metres."""
    index = torch.from_numpy(np.random.default_rng(seed).choice(depth.numel(), count, replace=False))
    return torch.stack([index % depth.shape[2], index // depth.shape[2]], 1).float(), depth.flatten()[index]


def at(values, points):
    x, y = points.long().unbind(1)
    return values[0, y, x]


def error(result, depth):
    return float((result.depth - depth).abs().mean())


@pytest.mark.parametrize("space", SPACES)
def test_without_smoothing_it_meets_every_point(space):
    depth, prediction = scene(space)
    points, metres = drawn(depth, 60)
    result = marigold.metric_depth(prediction, points, metres, smoothing=0.0)
    torch.testing.assert_close(at(result.depth, points)[result.used], metres[result.used], rtol=1e-5, atol=0)
    assert int(result.used.sum()) >= 59
    smoothed = marigold.metric_depth(prediction, points, metres, smoothing=0.1)
    assert (at(smoothed.depth, points) - metres).abs().mean() > 0.01


@pytest.mark.parametrize(("count", "method"), [(2, "residual"), (12, "fit"), (12, "residual")])
@pytest.mark.parametrize("space", SPACES)
def test_a_prediction_that_is_right_up_to_scale_and_shift_gives_the_truth(space, count, method):
    depth, prediction = scene(space, bent=0.0)
    result = marigold.metric_depth(prediction, *drawn(depth, count), method=method)
    torch.testing.assert_close(result.depth, depth, rtol=1e-4, atol=0)
    line = result.scale * prediction.depth[0].double() + result.shift
    torch.testing.assert_close(MAPPINGS[MAPPING_OF[space]].to_depth(line).float(), depth, rtol=1e-4, atol=0)
    # Nothing was missed: the uncertainty is that of a dozen points before any error is measured.
    assert count == 2 or float((result.uncertainty / depth).mean()) < 0.05


@pytest.mark.parametrize("method", ["fit", "residual"])
def test_neither_scale_and_shift_nor_the_order_of_the_points_matter(method):
    depth, prediction = scene("affine_disparity")
    points, metres = drawn(depth, 80)
    metres[7] *= 6
    changed = Prediction(prediction.depth.double() * -0.01 + 5, None, prediction.space)
    one, other = (marigold.metric_depth(given, points, metres, method=method) for given in (prediction, changed))
    torch.testing.assert_close(one.depth, other.depth, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.uncertainty, other.uncertainty, rtol=1e-2, atol=1e-4)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    other = marigold.metric_depth(prediction, points[order], metres[order], method=method)
    assert torch.equal(one.depth, other.depth)
    assert torch.equal(one.uncertainty, other.uncertainty)
    assert torch.equal(one.outliers[order], other.outliers)


@pytest.mark.parametrize("space", [*SPACES, "metric_depth"])
@pytest.mark.parametrize("method", ["fit", "residual"])
def test_depth_is_positive_and_finite_whatever_the_prediction(space, method):
    points = torch.tensor([[0.0, 0.0], [5.0, 3.0], [20.0, 15.0], [31.0, 23.0]])
    for seed in range(5):
        wild = torch.randn(1, 1, 24, 32, generator=torch.Generator().manual_seed(seed)) ** 3
        given = Prediction(wild, None, space), points, torch.tensor([0.3, 70.0, 1.0, 4.0])
        result = marigold.metric_depth(*given, method=method)
        assert bool(((result.depth > 0) & result.depth.isfinite()).all())
        assert bool(((result.uncertainty >= 0) & result.uncertainty.isfinite()).all())


def test_between_pixels_a_point_sees_the_bilinear_prediction():
    values = torch.arange(12.0).view(3, 4) ** 2
    places = torch.tensor([[0.0, 0.0], [3.0, 2.0], [1.5, 0.0], [1.0, 0.25], [-0.5, -0.5]])
    expected = torch.tensor([0.0, 121.0, 2.5, 0.75 * 1 + 0.25 * 25, 0.0], dtype=torch.float64)
    torch.testing.assert_close(metric.sample(values, places), expected)


@pytest.mark.parametrize("count", [50, 300])
def test_gross_outliers_are_named_and_cost_little(count, caplog):
    clean, dirty, lost = [], [], []
    for seed in range(4):
        depth, prediction = scene(seed=seed, size=(96, 128), bent=0.05)
        points, metres = drawn(depth, count, seed)
        generator = np.random.default_rng(seed)
        wrong = torch.from_numpy(generator.permutation(count) < 0.3 * count)
        factors = torch.from_numpy(np.exp(generator.choice([-1, 1], count) * generator.uniform(0.7, 2, count))).float()
        lost.append(float(marigold.metric_depth(prediction, points, metres).outliers.float().mean()))
        right = marigold.metric_depth(prediction, points[~wrong], metres[~wrong])
        found = marigold.metric_depth(prediction, points, torch.where(wrong, metres * factors, metres), name="room_3")
        clean.append(error(right, depth))
        dirty.append(error(found, depth))
        assert not bool((found.used & found.outliers).any())
    assert "room_3" in caplog.text
    assert np.mean(lost) <= 0.02
    assert np.mean(dirty) <= 1.2 * np.mean(clean)


def test_a_jump_that_its_neighbours_share_is_no_outlier():
    depth, prediction = scene(bent=0.02)
    depth[:, :20, :24] *= 2  # a part of the room that the prediction has wrong
    points, metres = drawn(depth, 200)
    inside = (points[:, 0] < 20) & (points[:, 1] < 16)
    assert int(inside.sum()) > 10
    assert not bool(marigold.metric_depth(prediction, points, metres).outliers[inside].any())


@pytest.mark.parametrize("method", ["fit", "residual"])
@pytest.mark.parametrize("count", [10, 50, 300])
def test_the_uncertainty_is_the_expected_error(count, method):
    ratios = []
    for seed in range(8):
        depth, prediction = scene(seed=seed, size=(96, 128))
        result = marigold.metric_depth(prediction, *drawn(depth, count, seed), method=method)
        ratios.append(float(result.uncertainty.mean()) / error(result, depth))
    assert 1 / 1.5 < np.exp(np.mean(np.log(ratios))) < 1.5


def test_of_too_many_points_some_are_left_out_and_logged(caplog):
    depth, prediction = scene(size=(60, 80))
    result = marigold.metric_depth(prediction, *drawn(depth, 2500), name="room_9")
    assert int((result.used | result.outliers).sum()) == metric.MOST_POINTS
    assert "room_9" in caplog.text


def test_equal_distances_are_a_wall_and_points_in_the_same_place_are_averaged():
    depth, prediction = scene(bent=0.0)
    points, metres = drawn(depth, 20)
    wall = marigold.metric_depth(prediction, points, torch.full((20,), 2.5))
    assert torch.allclose(wall.depth, torch.tensor(2.5))
    points, metres = torch.cat([points, points[:1]]), torch.cat([metres, metres[:1] * 1.01])
    result = marigold.metric_depth(prediction, points, metres, smoothing=0.0)
    assert float(at(result.depth, points[:1])) == pytest.approx(float(metres[0]) * 1.005, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"points": torch.tensor([[1.0, 1], [64, 3], [5, 5]])}, "room_5.*point 1 .*x=64"),
        ({"points": torch.tensor([[1.0, 1], [3, torch.nan], [5, 5]])}, "room_5.*point 1 .*nan"),
        ({"metres": torch.tensor([1.0, torch.nan, 2.0])}, "room_5.*point 1 .*nan m"),
        ({"metres": torch.tensor([1.0, 3.0, -1.0])}, "room_5.*point 2 .*-1 m"),
        ({"points": torch.ones(1, 2), "metres": torch.ones(1)}, "room_5.*two"),
        ({"prediction": Prediction(torch.full((1, 1, 48, 64), 0.5), None, "affine_depth")}, "room_5.*scale"),
        ({"prediction": Prediction(torch.full((1, 1, 48, 64), torch.nan), None, "affine_depth")}, "room_5.*finite"),
        ({"prediction": Prediction(torch.rand(2, 1, 48, 64), None, "affine_depth")}, "room_5.*batch"),
        ({"image": torch.rand(3, 47, 64)}, "room_5.*47"),
        ({"method": "guess"}, "method"),
    ],
)
def test_points_and_predictions_that_give_no_metres_are_named(changes, named):
    points, metres = torch.tensor([[1.0, 1.0], [2.0, 3.0], [5.0, 5.0]]), torch.tensor([1.0, 3.0, 2.0])
    given = {"prediction": scene()[1], "points": points, "metres": metres, "name": "room_5", **changes}
    with pytest.raises(ValueError, match=named):
        marigold.metric_depth(**given)


def test_memory_is_two_maps_and_a_piece():
    held = []
    for size in ((60, 80), (480, 640)):
        depth, prediction = scene(size=size)
        points, metres = drawn(depth, 60)
        with Bytes(prediction.depth) as counted:
            result = marigold.metric_depth(prediction, points, metres)
        held.append(counted.peak - result.depth.nbytes - result.uncertainty.nbytes)
    assert held[1] < held[0] + 2**20  # whatever the image's size


def test_colour_tells_what_the_prediction_does_not():
    depth, prediction = scene(bent=0.0)
    poster = torch.zeros_like(depth, dtype=torch.bool)
    poster[:, 10:30, 8:30] = True
    depth[poster] *= 1.3  # a part that the prediction has wrong and the image shows
    image = (0.2 + 0.6 * poster.float()).expand(3, -1, -1)
    with_it, without = (marigold.metric_depth(prediction, *drawn(depth, 150), image=one) for one in (image, None))
    assert error(with_it, depth) < 0.8 * error(without, depth)
