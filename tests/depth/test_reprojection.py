"""Views of planes whose depth is known in closed form, exact crops, and nearest pixels found by brute force."""

import math

import numpy as np
import pytest
import torch

from marigold.depth.reprojection import centred_view, nearest_valid, reproject
from marigold.types import Camera

PLANE = np.array([0.02, -0.05, 0.25])  # the points X with PLANE . X = 1, in metres
CAMERA = Camera(150.0, 140.0, 55.0, 52.0)  # of an image of 96 x 130 pixels, off its middle


def rays_of(camera, height, width):
    x = (np.arange(width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(height) + 0.5 - camera.cy) / camera.fy
    return np.stack(np.broadcast_arrays(x, y[:, None], 1.0), axis=-1)


def photo(height, width):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))


def everywhere(depth):
    return torch.ones_like(depth, dtype=torch.bool)


def test_a_centred_camera_and_the_same_shape_change_nothing():
    image, depth, valid = photo(60, 80), 1 + torch.rand(1, 60, 80), torch.rand(1, 60, 80) > 0.3
    seen, seen_depth, known = reproject(image, depth, valid, Camera(300.0, 300.0, 40.0, 30.0), (60, 80))
    torch.testing.assert_close(seen, image, rtol=0, atol=1e-6)
    assert torch.equal(known, valid)
    torch.testing.assert_close(seen_depth[known], depth[valid], rtol=1e-6, atol=0)
    assert (seen_depth[~known] == 0).all()


@pytest.mark.parametrize("width", [124, 125])  # the crop begins at a whole and at half a pixel
def test_a_narrower_shape_cuts_the_sides(width):
    image, depth = photo(38, width), torch.arange(1.0, width + 1).expand(1, 38, width)
    camera = Camera(70.0, 70.0, width / 2, 19.0)
    seen, seen_depth, known = reproject(image, depth, everywhere(depth), camera, (38, 76))
    assert known.all()
    left, right = (width - 76) // 2, (width - 76 + 1) // 2
    # Half a pixel off, the distance is that along a slightly different ray.
    tolerance = 1e-6 if width == 124 else 0.5 / 70
    torch.testing.assert_close(seen_depth[0, 0], depth[0, 0, right : right + 76], rtol=tolerance, atol=0)
    between = (image[:, :, left : left + 76] + image[:, :, right : right + 76]) / 2
    torch.testing.assert_close(seen, between, rtol=0, atol=1e-5)


def test_the_depth_of_a_plane_is_that_of_the_turned_plane():
    height, width, size = 96, 130, (96, 128)
    depth = torch.from_numpy(1 / (rays_of(CAMERA, height, width) @ PLANE)).float()[None]
    _, seen, known = reproject(photo(height, width), depth, everywhere(depth), CAMERA, size)
    # Independent of the code: the middle's ray, turned onto the axis by Rodrigues' formula.
    middle = np.array([(65 - CAMERA.cx) / CAMERA.fx, (48 - CAMERA.cy) / CAMERA.fy, 1.0])
    middle /= np.linalg.norm(middle)
    cross = np.cross(middle, [0, 0, 1])
    skew = np.array([[0, -cross[2], cross[1]], [cross[2], 0, -cross[0]], [-cross[1], cross[0], 0]])
    turn = np.eye(3) + skew + skew @ skew / (1 + middle[2])
    found, focal = centred_view(CAMERA, (height, width), size)
    np.testing.assert_allclose(found, turn, atol=1e-12)
    rays = rays_of(Camera(focal, focal, 64.0, 48.0), *size)
    length = np.linalg.norm(rays, axis=-1)
    expected = length / (rays @ turn @ PLANE)  # the distance from the camera
    # The view is 1.05 times as fine as the image: each pixel's depth is used once, and a tenth stays without.
    assert known.float().mean() == pytest.approx(150 * 140 / focal**2, abs=0.02)
    # It is taken from the nearest pixel, twice, so it is off by at most the slope over a pixel both ways.
    slope = sum(np.abs(np.diff(expected, axis=axis)).max() for axis in (0, 1))
    error = np.abs(seen[0].numpy() * length - expected)[known[0].numpy()]
    assert error.max() < 1.05 * slope
    assert error.mean() < 0.3 * slope


def test_the_view_is_the_largest_that_the_image_covers():
    turn, focal = centred_view(CAMERA, (96, 130), (96, 128))

    def outermost(focal):
        edge = np.array([[x, y, focal] for x in (-64, 64) for y in (-48, 48)]) @ turn
        x, y = (edge[:, :2] / edge[:, 2:] * [CAMERA.fx, CAMERA.fy] + [CAMERA.cx, CAMERA.cy]).T
        return max(-x.min(), x.max() - 130, -y.min(), y.max() - 96)

    assert outermost(focal) == pytest.approx(0, abs=1e-9)
    assert outermost(focal * 0.99) > 0.3


def test_depth_beyond_1000_times_the_nearest_is_left_out():
    camera, depth = Camera(50.0, 50.0, 8.0, 8.0), torch.full((1, 16, 16), 2.0)
    depth[0, 3, 4:6] = torch.tensor([2001.0, 1999.0])
    _, _, known = reproject(photo(16, 16), depth, everywhere(depth), camera, (16, 16))
    assert (~known).nonzero().tolist() == [[0, 3, 4]]
    _, _, known = reproject(photo(16, 16), depth, ~everywhere(depth), camera, (8, 8))
    assert not known.any()


@pytest.mark.parametrize("size", [(5, 7), (23, 31), (40, 60), (9, 40)])
def test_the_nearest_valid_pixel_of_each_cell(size):
    valid = torch.rand(23, 31, generator=torch.Generator().manual_seed(1)) > 0.6
    expected, best = np.full(size, -1), np.full(size, np.inf)
    for row, column in np.argwhere(valid.numpy()):
        y, x = (row + 0.5) * size[0] / 23, (column + 0.5) * size[1] / 31
        cell = math.ceil(y - 1e-9) - 1, math.ceil(x - 1e-9) - 1  # on an edge: the cell before it
        distance = ((y - cell[0] - 0.5) * 23 / size[0]) ** 2 + ((x - cell[1] - 0.5) * 31 / size[1]) ** 2
        if distance < best[cell] - 1e-9:
            best[cell], expected[cell] = distance, row * 31 + column
    assert np.array_equal(nearest_valid(valid, size).numpy(), expected)
