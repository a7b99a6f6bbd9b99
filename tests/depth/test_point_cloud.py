from pathlib import Path

import numpy as np
import pytest
import torch

from marigold.depth.point_cloud import assumed_depth, thinned, unproject, write_ply
from marigold.types import Camera


def test_a_wall_at_90_degrees_is_as_wide_as_twice_its_distance():
    points = unproject(torch.full((1, 2, 4), 3.0), Camera.centred(2.0, 2, 4)).reshape(-1, 3)
    assert points.shape == (8, 3)
    # Pixel centres of a picture of 4: at -3/4, -1/4, 1/4, 3/4 of the half width, which is the distance.
    torch.testing.assert_close(points[:4, 0], torch.tensor([-2.25, -0.75, 0.75, 2.25]))
    torch.testing.assert_close(points[::4, 1], torch.tensor([-0.75, 0.75]))
    assert (points[:, 2] == 3).all()


def test_projecting_back_gives_the_pixels():
    depth = torch.rand(1, 5, 7, generator=torch.Generator().manual_seed(0)) + 1
    focal = 3.5 / np.tan(np.pi / 6)
    x, y, z = unproject(depth, Camera.centred(focal, 5, 7)).reshape(-1, 3).T
    torch.testing.assert_close((x / z * focal + 3).reshape(5, 7), torch.arange(7.0).expand(5, 7), atol=1e-4, rtol=0)
    torch.testing.assert_close((y / z * focal + 2).reshape(5, 7).T, torch.arange(5.0).expand(7, 5), atol=1e-4, rtol=0)


def test_assumed_distances():
    ends = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 3)
    torch.testing.assert_close(assumed_depth(ends, "affine_depth", 1, 4).flatten(), torch.tensor([1, 2.5, 4]))
    # Disparity is large where it is near, and linear in 1 / z: halfway between 1/4 and 1 is 5/8.
    torch.testing.assert_close(assumed_depth(ends, "affine_disparity", 1, 4).flatten(), torch.tensor([4, 1.6, 1]))


@pytest.mark.parametrize(("near", "far"), [(0, 1), (2, 1), (1, 1), (float("nan"), 1)])
def test_distances_without_meaning_are_refused(near: float, far: float):
    with pytest.raises(ValueError, match="near"):
        assumed_depth(torch.zeros(1, 1, 1), "affine_depth", near, far)


@pytest.mark.parametrize(
    ("space", "middle"),
    [("affine_sqrt_disparity", (2 / (1 + 1 / 3)) ** 2), ("affine_log_depth", 3.0)],  # between 1 and 9 m
)
def test_the_middle_of_a_space_is_the_middle_of_its_quantity(space, middle):
    assert float(assumed_depth(torch.full((1, 1, 1), 0.5), space, 1.0, 9.0)) == pytest.approx(middle, rel=1e-6)


def test_other_spaces_are_refused():
    with pytest.raises(ValueError, match="metric_depth"):
        assumed_depth(torch.zeros(1, 1, 1), "metric_depth", 1, 2)


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
