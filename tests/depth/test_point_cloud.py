from pathlib import Path

import numpy as np
import pytest
import torch

from marigold.depth.point_cloud import assumed_depth, thinned, write_ply


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("affine_depth", [1, 5, 9]),
        # Disparity is large where it is near, and linear in 1 / z: halfway between 1/9 and 1 is 5/9.
        ("affine_disparity", [9, 9 / 5, 1]),
        ("affine_sqrt_disparity", [9, (2 / (1 + 1 / 3)) ** 2, 1]),
        ("affine_log_depth", [1, 3, 9]),
    ],
)
def test_between_assumed_distances_a_prediction_is_linear_in_its_quantity(space, expected):
    ends = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 3)
    torch.testing.assert_close(assumed_depth(ends, space, 1, 9).flatten(), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(("space", "near", "named"), [("affine_depth", 1, "near"), ("metric_depth", 0.5, "metric_")])
def test_distances_and_spaces_without_meaning_are_refused(space: str, near: float, named: str):
    with pytest.raises(ValueError, match=named):
        assumed_depth(torch.zeros(1, 1, 1), space, near, 1)


def test_a_ply_file_holds_the_points(tmp_path: Path):
    with (tmp_path / "a.ply").open("wb") as file:
        write_ply(file, torch.tensor([[1.0, 2, 3], [4, 5, 6]]), torch.tensor([[0.0, 0.5, 1], [1, 0, 0]]))
    header, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 2\n")
    found = np.frombuffer(body, [("position", "<f4", 3), ("colour", "u1", 3)])
    assert found["position"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found["colour"].tolist() == [[0, 128, 255], [255, 0, 0]]


def test_a_thinned_grid_reaches_the_borders():
    rows, columns = thinned(9, 17, 40)  # 40 of 153: 0.511 of each side
    assert rows.flatten().tolist() == [0, 3, 5, 8]
    assert columns.tolist() == [0, 2, 5, 7, 9, 11, 14, 16]
    rows, columns = thinned(3, 4, 12)
    assert (rows.flatten().tolist(), columns.tolist()) == ([0, 1, 2], [0, 1, 2, 3])
