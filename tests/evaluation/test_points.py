"""Depth from known points: which are drawn, that the fits see them alone, and that the other pixels are evaluated."""

import pytest
import torch

from marigold.depth.mapping import MAPPINGS
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.known_points import interpolate
from marigold.evaluation.rows import evaluate
from marigold.evaluation.sparse import PATTERNS, DrawnPoints
from marigold.types import DepthSample, Prediction
from samples import PLAIN, sample


def row(predicted, space, samples, count=20):
    metrics, protocol = ("abs_rel", "mae", "boundary_f1"), PLAIN.with_points(DrawnPoints(count, 3, "random"))
    return next(evaluate(lambda _: Prediction(predicted[None], None, space), [samples], protocol, metrics=metrics))


def test_interpolation_is_linear_inside_the_points_and_nearest_beyond():
    # On the plane 1 + x + 10 y, whose corner (3, 3) lies beyond the triangle.
    points, metres = torch.tensor([[0, 0], [3, 0], [0, 3]]), torch.tensor([1.0, 4.0, 31.0])
    depth = interpolate(points, metres, torch.zeros(1, 4, 4))
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    inside = x + y <= 3
    torch.testing.assert_close(depth[0][inside], (1 + x + 10 * y)[inside])
    assert (depth[0, 3, 2], depth[0, 1, 3]) == (31, 4)
    on_a_line = interpolate(torch.tensor([[0, 0], [1, 0], [3, 0]]), metres, torch.zeros(1, 1, 4))
    assert on_a_line.tolist() == [[[1, 4, 4, 31]]] or on_a_line.tolist() == [[[1, 4, 31, 31]]]


def test_the_known_pixels_are_not_evaluated():
    depth = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)) + 1
    everywhere = torch.ones_like(depth, dtype=torch.bool)
    known = DrawnPoints(15, 3, "random").draw(everywhere, "a").long()
    everywhere[0, known[:, 1], known[:, 0]] = False
    y, x = everywhere[0].nonzero()[0].tolist()
    others = interpolate(known, depth[0, known[:, 1], known[:, 0]], depth)
    one = DepthSample("a", depth.expand(3, 4, 4), depth, depth > 0)
    found = row(depth * 2, "affine_depth", one, 15)
    assert found.metrics["points_alone.mae"] == pytest.approx(float((others - depth)[0, y, x].abs()), abs=1e-6)
    assert found.metrics["mae"] == pytest.approx(0, abs=1e-5)
    with pytest.raises(EvaluationError, match=r"^a: .*known points"):
        row(depth, "affine_depth", one, 16)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_prediction_that_is_right_up_to_scale_and_shift_becomes_right_in_its_own_space(mapping):
    one = sample()
    quantity = MAPPINGS[mapping].of_depth(torch.where(one.valid, one.depth, 1))
    found = row(0.3 * quantity + 0.2, MAPPINGS[mapping].space, one).metrics
    assert set(found) == {p + m for p in ("", "fit.", "points_alone.") for m in ("abs_rel", "mae", "boundary_f1")}
    assert (found["mae"], found["fit.mae"]) == pytest.approx((0, 0), abs=1e-3)
    assert found["points_alone.mae"] > 0.01


@pytest.mark.parametrize("count", [2, 137, None])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_different_known_pixels_are_drawn_as_a_function_of_name_and_seed(pattern, count):
    """None: all of them."""
    valid = torch.rand(1, 24, 32, generator=torch.Generator().manual_seed(0)) > 0.2
    valid[:, 5:10, 10:25] = False
    number = count or int(valid.sum())
    points = DrawnPoints(number, 0, pattern).draw(valid, "room_1")
    x, y = points.long().unbind(1)
    assert bool(valid[0, y, x].all())
    assert len({*map(tuple, points.tolist())}) == number
    assert torch.equal(points, DrawnPoints(number, 0, pattern).draw(valid, "room_1"))
    for seed, name in ((1, "room_1"), (0, "room_2")) if count else ():
        assert not torch.equal(points, DrawnPoints(number, seed, pattern).draw(valid, name))


def test_lines_are_few_rows_and_a_grid_has_even_spacings():
    everywhere = torch.ones(1, 96, 128, dtype=torch.bool)
    rows = DrawnPoints(150, 3, "lines").draw(everywhere, "a").unbind(1)[1].unique()
    assert (len(rows), rows.diff().unique().tolist()) == (6, [16])
    columns, rows = (part.unique() for part in DrawnPoints(48, 3, "grid").draw(everywhere, "a").unbind(1))
    assert (len(columns) * len(rows), rows.diff().unique().tolist()) == (48, [16])
