"""Boundary F1 on maps whose edges can be counted by hand, and against a plain loop over pixel pairs."""

import numpy as np
import pytest
import torch

from marigold.depth.metrics import boundary_f1

THRESHOLDS = np.linspace(1.05, 1.25, 10)
FLAT = torch.full((1, 1, 4, 6), 3.0)


def step(column, near=1.0, far=2.0):
    depth = torch.full((1, 1, 4, 6), near)
    depth[..., column:] = far
    return depth


@pytest.mark.parametrize(
    ("pred", "target", "expected"),
    [
        (7 * step(3), step(3), 1),
        (step(2), step(3), 0),  # one pixel off
        (step(3, near=2.0, far=1.0), step(3), 0),  # inverted
        (FLAT, FLAT, 1),
        # 4 hits of 8 true and 4 predicted edge pairs, at every threshold.
        (step(3), step(3) * step(5), 2 * 4 / 12),
        # The true ratio 2 passes all ten thresholds, the predicted 1.12 those up to 1.1167: the first four.
        (step(3, far=1.12), step(3), THRESHOLDS[:4].sum() / THRESHOLDS.sum()),
    ],
)
def test_edges_counted_by_hand(pred, target, expected):
    assert boundary_f1(pred, target, target > 0).item() == pytest.approx(expected)


def test_equals_a_loop_over_pairs():
    height = 257  # the map is taken in pieces of 256 rows
    generator = np.random.default_rng(height)
    pred, target = generator.uniform(1, 1.5, (2, height, 7))
    valid = generator.random((height, 7)) < 0.9
    pred[~valid], target[~valid] = 50, 0
    hits = total = np.zeros(10)
    for row, column in np.argwhere(valid):
        for other in ((row, column + 1), (row + 1, column), (row, column - 1), (row - 1, column)):
            if 0 <= other[0] < height and 0 <= other[1] < 7 and valid[other]:
                edge, true = (part[other] / part[row, column] > THRESHOLDS for part in (pred, target))
                hits, total = hits + (edge & true), total + edge + true
    tensors = [torch.from_numpy(array)[None, None] for array in (pred, target, valid)]
    assert boundary_f1(*tensors).item() == pytest.approx(np.average(2 * hits / total, weights=THRESHOLDS))
