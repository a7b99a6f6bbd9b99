from pathlib import Path

import numpy as np
import pytest
import torch

from marigold.depth.point_cloud import assumed_depth, thinned, unproject, write_ply
from marigold.types import Camera


def test_projecting_back_gives_the_pixels():
    depth = torch.rand(1, 5, 7, generator=torch.Generator().manual_seed(0)) + 1
    focal = 3.5 / np.tan(np.pi / 6)
    x, y, z = unproject(depth, Camera.centred(focal, 5, 7)).reshape(-1, 3).T
    torch.testing.assert_close((x / z * focal + 3).reshape(5, 7), torch.arange(7.0).expand(5, 7), atol=1e-4, rtol=0)
    torch.testing.assert_close((y / z * focal + 2).reshape(5, 7).T, torch.arange(5.0).expand(7, 5), atol=1e-4, rtol=0)


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


@pytest.mark.parametrize(
    ("space", "near", "far", "named"),
    [
        ("affine_depth", 0, 1, "near"),
        ("affine_depth", 1, 1, "near"),
        ("affine_depth", float("nan"), 1, "near"),
        ("metric_depth", 1, 2, "metric_depth"),
    ],
)
def test_distances_and_spaces_without_meaning_are_refused(space: str, near: float, far: float, named: str):
    with pytest.raises(ValueError, match=named):
        assumed_depth(torch.zeros(1, 1, 1), space, near, far)


def test_a_ply_file_holds_the_points(tmp_path: Path):
    with (tmp_path / "a.ply").open("wb") as file:
        write_ply(file, torch.tensor([[1.0, 2, 3], [4, 5, 6]]), torch.tensor([[0.0, 0.5, 1], [1, 0, 0]]))
    header, _, body = (tmp_path / "a.ply").read_bytes().partition(b"end_header\n")
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 2\n")
    assert np.frombuffer(body[:12], "<f4").tolist() == [1, 2, 3]
    assert list(body[12:15]) == [0, 128, 255]
    assert np.frombuffer(body[15:27], "<f4").tolist() == [4, 5, 6]
    assert len(body) == 30


def test_a_thinned_grid_reaches_the_borders():
    rows, columns = thinned(9, 17, 40)  # 40 of 153: 0.511 of each side
    assert rows.flatten().tolist() == [0, 3, 5, 8]
    assert columns.tolist() == [0, 2, 5, 7, 9, 11, 14, 16]
    rows, columns = thinned(3, 4, 12)
    assert (rows.flatten().tolist(), columns.tolist()) == ([0, 1, 2], [0, 1, 2, 3])
