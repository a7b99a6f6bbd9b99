"""Points that are drawn from a depth map: as many as asked for, different, known, and a function of name and seed."""

import pytest
import torch

from marigold.evaluation.sparse import PATTERNS, DrawnPoints


def known(size=(48, 64)):
    valid = torch.rand(1, *size, generator=torch.Generator().manual_seed(0)) > 0.2
    valid[:, 10:20, 20:50] = False
    return valid


@pytest.mark.parametrize("count", [2, 10, 137, 500])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_it_draws_so_many_different_known_pixels(pattern, count):
    valid = known()
    points = DrawnPoints(count, 0, pattern).draw(valid, "room_1")
    assert points.shape == (count, 2)
    x, y = points.long().unbind(1)
    assert bool(valid[0, y, x].all())
    assert len({*map(tuple, points.tolist())}) == count
    assert torch.equal(points, DrawnPoints(count, 0, pattern).draw(valid, "room_1"))
    for seed, name in ((1, "room_1"), (0, "room_2")):
        assert not torch.equal(points, DrawnPoints(count, seed, pattern).draw(valid, name))


def test_lines_are_few_rows_and_a_grid_has_even_spacings():
    everywhere = torch.ones(1, 96, 128, dtype=torch.bool)
    rows = DrawnPoints(150, 3, "lines").draw(everywhere, "a").unbind(1)[1].unique()
    assert len(rows) == 6
    assert rows.diff().unique().tolist() == [16]
    grid = DrawnPoints(48, 3, "grid").draw(everywhere, "a")
    assert len(grid[:, 0].unique()) * len(grid[:, 1].unique()) == 48
    assert grid[:, 1].unique().diff().unique().tolist() == [16]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_known_pixels_can_be_drawn(pattern):
    valid = known((12, 16))
    valid[0, 5, 5] = True
    count = int(valid.sum())
    x, y = DrawnPoints(count, 0, pattern).draw(valid, "room_4").long().unbind(1)
    drawn = torch.zeros_like(valid)
    drawn[0, y, x] = True
    assert torch.equal(drawn, valid)
