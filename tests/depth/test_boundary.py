"""Boundary F1 on maps whose edges can be counted by hand, and against a plain loop over pixel pairs."""

import numpy as np
import pytest
import torch

from marigold.depth.metrics import boundary_f1

THRESHOLDS = np.linspace(1.05, 1.25, 10)


def step(column, near=1.0, far=2.0, shape=(4, 6)):
    depth = torch.full((1, 1, *shape), near)
    depth[..., column:] = far
    return depth


def everywhere(depth):
    return torch.ones_like(depth, dtype=torch.bool)


def score(pred, target, valid=None):
    return boundary_f1(pred, target, everywhere(target) if valid is None else valid).item()


def test_perfect_and_rescaled_predictions_score_1():
    target = step(3)
    assert score(target, target) == 1
    assert score(7 * target, target) == pytest.approx(1)


def test_an_edge_one_pixel_off_or_inverted_or_missing_scores_0():
    target = step(3)
    assert score(step(2), target) == 0
    assert score(step(3, near=2.0, far=1.0), target) == 0
    assert score(torch.ones_like(target), target) == 0


def test_one_of_two_edges():
    target = step(3)
    target[..., 5:] = 4.0
    # 4 hits of 8 true and 4 predicted edge pairs, at every threshold.
    assert score(step(3), target) == pytest.approx(2 * 4 / 12)


def test_an_edge_that_is_too_soft_counts_below_its_ratio_only():
    # The true ratio 2 passes all ten thresholds, the predicted 1.12 those up to 1.1167: the first four.
    expected = THRESHOLDS[:4].sum() / THRESHOLDS.sum()
    assert score(step(3, far=1.12), step(3)) == pytest.approx(expected)


def test_maps_without_edges():
    flat = torch.full((1, 1, 4, 6), 3.0)
    assert score(flat, flat) == 1
    assert score(step(3), flat) == 0


def test_pairs_with_an_invalid_pixel_do_not_count():
    target, pred = step(3), step(3)
    pred[..., 0, 0], target[..., 1, 0] = 50.0, 0.0
    valid = everywhere(target)
    valid[..., :2, 0] = False
    assert score(pred, target, valid) == 1


@pytest.mark.parametrize("height", [1, 20, 256, 257, 300])
def test_equals_a_loop_over_pairs(height):
    generator = np.random.default_rng(height)
    pred, target = generator.uniform(1, 1.5, (2, height, 7))
    valid = generator.random((height, 7)) < 0.9
    f1 = []
    for threshold in THRESHOLDS:
        hits = total = 0
        for row in range(height):
            for column in range(7):
                for below, right in [(0, 1), (1, 0), (0, -1), (-1, 0)]:
                    other = (row + below, column + right)
                    if not (0 <= other[0] < height and 0 <= other[1] < 7 and valid[row, column] and valid[other]):
                        continue
                    edge = pred[other] / pred[row, column] > threshold
                    true = target[other] / target[row, column] > threshold
                    hits, total = hits + (edge and true), total + edge + true
        f1.append(2 * hits / total)
    tensors = [torch.from_numpy(array)[None, None] for array in (pred, target, valid)]
    assert score(*tensors) == pytest.approx(np.average(f1, weights=THRESHOLDS))


def test_undefined_images_are_named():
    depth = torch.ones(2, 1, 3, 3)
    valid = everywhere(depth)
    valid[1] = False
    with pytest.raises(ValueError, match="image 1 of the batch has no valid pixel"):
        boundary_f1(depth, depth, valid)
    with pytest.raises(ValueError, match="image 0 of the batch has NaN"):
        boundary_f1(depth * float("nan"), depth, everywhere(depth))
    with pytest.raises(ValueError, match="the target is 0 or less"):
        boundary_f1(depth, depth * 0, everywhere(depth))
