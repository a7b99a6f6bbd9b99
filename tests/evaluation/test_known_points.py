"""Depth from known points: the fits see them alone, and the other pixels are evaluated."""

import pytest
import torch

from marigold.depth.mapping import MAPPINGS
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.known_points import interpolate
from marigold.evaluation.rows import evaluate
from marigold.evaluation.sparse import DrawnPoints
from marigold.types import DepthSample, Prediction
from samples import PLAIN, sample


def protocol(count=20, seed=0):
    return PLAIN.with_points(DrawnPoints(count, seed, "random"))


def row(predicted, space, samples, protocol):
    metrics = ("abs_rel", "mae", "boundary_f1")
    return next(evaluate(lambda _: Prediction(predicted[None], None, space), [samples], protocol, metrics=metrics))


def test_linear_within_the_points_and_the_nearest_beyond():
    # On the plane 1 + x + 10 y, whose corner (3, 3) lies beyond the triangle.
    points, metres = torch.tensor([[0, 0], [3, 0], [0, 3]]), torch.tensor([1.0, 4.0, 31.0])
    depth = interpolate(points, metres, torch.zeros(1, 4, 4))
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    inside = x + y <= 3
    torch.testing.assert_close(depth[0][inside], (1 + x + 10 * y)[inside])
    assert depth[0, 3, 2] == 31
    assert depth[0, 1, 3] == 4
    on_a_line = interpolate(torch.tensor([[0, 0], [1, 0], [3, 0]]), metres, torch.zeros(1, 1, 4))
    assert on_a_line.tolist() == [[[1, 4, 4, 31]]] or on_a_line.tolist() == [[[1, 4, 31, 31]]]


def test_the_known_pixels_are_not_evaluated():
    depth = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)) + 1
    everywhere = torch.ones_like(depth, dtype=torch.bool)
    known = DrawnPoints(15, 3, "random").draw(everywhere, "a").long()
    everywhere[0, known[:, 1], known[:, 0]] = False
    y, x = everywhere[0].nonzero()[0].tolist()
    others = interpolate(known, depth[0, known[:, 1], known[:, 0]], depth)
    found = row(depth * 2, "affine_depth", DepthSample("a", depth.expand(3, 4, 4), depth, depth > 0), protocol(15, 3))
    assert found.metrics["points_alone.mae"] == pytest.approx(float((others - depth)[0, y, x].abs()), abs=1e-6)
    assert found.metrics["mae"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_prediction_that_is_right_up_to_scale_and_shift_becomes_right_in_its_own_space(mapping):
    one = sample()
    space = MAPPINGS[mapping].space
    quantity = MAPPINGS[mapping].of_depth(torch.where(one.valid, one.depth, 1))
    found = row(0.3 * quantity + 0.2, space, one, protocol()).metrics
    assert set(found) == {p + m for p in ("", "fit.", "points_alone.") for m in ("abs_rel", "mae", "boundary_f1")}
    assert found["mae"] == pytest.approx(0, abs=1e-3)
    assert found["fit.mae"] == pytest.approx(0, abs=1e-3)
    assert found["points_alone.mae"] > 0.01


def test_where_all_pixels_are_known_nothing_is_left_to_evaluate():
    everything = DepthSample("a", torch.ones(3, 4, 4), torch.ones(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool))
    with pytest.raises(EvaluationError, match=r"^a: .*known points"):
        row(everything.depth, "affine_depth", everything, protocol(16))
