"""The embedded data: geometry by hand, the same bits everywhere, files in the publishers' layouts."""

import hashlib

import h5py
import numpy as np
import pytest
from PIL import Image

from marigold.miniature.rooms import geometry, write_rooms
from marigold.miniature.rooms.geometry import BOX, CYLINDER, FAR, SPHERE, Solid, distance, rotation
from marigold.miniature.rooms.render import Light, Material, Scene, View, render
from marigold.miniature.rooms.write import (
    STREAMS,
    VKITTI_SKY,
    RoomsSize,
    outdoor_views,
    room_views,
    street_views,
)

SIZE = RoomsSize(1, 1, 1, 1, 1, 2, (24, 32), (24, 64), seed=3)
STRAIGHT = (1.0, 0.0)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def along(solid, *directions, origin=(0, 0, 0)):
    rays = np.asarray(directions, np.float32).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return distance(solid, np.asarray(origin, np.float32)[:, None], rays).tolist()


def test_distances_by_hand():
    ahead, aside, behind = (0, 0, 1), (1, 0, 0), (0, 0, -1)
    box = Solid(BOX, (0, 0, 5), (1, 1, 2), STRAIGHT, 0)
    assert along(box, ahead, aside, behind) == [3.0, FAR, FAR]
    ball = Solid(SPHERE, (0, 0, 5), (2, 2, 2), STRAIGHT, 0)
    assert along(ball, ahead, aside, behind) == [3.0, FAR, FAR]
    can = Solid(CYLINDER, (0, 0, 5), (1.5, 1, 1.5), STRAIGHT, 0)
    assert along(can, ahead, aside, behind) == [3.5, FAR, FAR]
    # Onto the lid from above: it lies at height 1.
    assert along(can, (0, -1, 0), origin=(0.5, 4, 5)) == [3.0]


def test_yaw_turns_the_solid():
    c, s = rotation(np.tan(np.pi / 8))  # 45 degrees: half-angle tangent of 22.5
    assert (c, s) == pytest.approx((2**-0.5, 2**-0.5))
    # The unit cube's edge comes sqrt(2) towards the ray.
    assert along(Solid(BOX, (0, 0, 5), (1, 1, 1), (c, s), 0), (0, 0, 1)) == pytest.approx([5 - 2**0.5], rel=1e-6)


def flat_wall(background=False):
    material = Material(0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1.0, background=background)
    wall = Solid(BOX, (0, 0, 4), (50, 50, 1), STRAIGHT, 0)
    return Scene([wall], [material], [Light((0, 0, 0), (1, 1, 1))], (0.1, 0.1, 0.1), None, 0.0)


def test_depth_is_planar_and_distance_is_not():
    camera = View((0, 0, 0), STRAIGHT, STRAIGHT, focal=10.0)
    view = render(flat_wall(), camera, 9, 13)
    assert view.depth == pytest.approx(np.full((9, 13), 3.0), rel=1e-6)
    x, y = np.meshgrid(np.arange(13) - 6, np.arange(9) - 4)
    assert view.distance == pytest.approx(3 * np.sqrt(x**2 + y**2 + 100) / 10, rel=1e-6)
    assert (view.entity == 1).all()


def test_a_hole_has_colour_but_no_depth():
    view = render(flat_wall(background=True), View((0, 0, 0), STRAIGHT, STRAIGHT, 10.0), 5, 5)
    assert (view.depth == 0).all()
    assert (view.entity == -1).all()
    assert (view.colour > 0).all()


def test_light_casts_shadows():
    scene = flat_wall()
    ball = Solid(SPHERE, (0, 0, 1.5), (0.2, 0.2, 0.2), STRAIGHT, 0)
    lit = Scene(scene.solids, scene.materials, [Light((0, 1.0, 0), (1, 1, 1))], scene.ambient, None, 0.0)
    shaded = Scene([*scene.solids, ball], scene.materials, lit.lights, scene.ambient, None, 0.0)
    # Through the ball, the light at height 1 throws its shadow on the wall at height -1.
    camera = View((0, -1.0, 0), STRAIGHT, STRAIGHT, 30.0)
    before, after = (render(part, camera, 3, 3).colour[1, 1, 0] for part in (lit, shaded))
    assert after < 0.5 * before


def test_the_same_bits_on_every_machine():
    outdoors = [view for scene in (0, 1) for view in outdoor_views("vkitti/train", scene, SIZE)]
    views = [*room_views("hypersim/train", 0, SIZE), *outdoors]
    digest = hashlib.sha256()
    for view in views:
        for part in (view.colour, view.depth, view.distance, view.entity):
            digest.update(np.ascontiguousarray(part).tobytes())
    assert digest.hexdigest() == "14a1a5eb3f9c84bfdb42c95a1bcdbe115bd4d43c4bd0436f9d0a0604133fb814"


def test_every_fourth_outdoor_scene_is_a_street_and_the_others_are_gardens():
    street, same = (views("vkitti/train", 4, SIZE)[0] for views in (outdoor_views, street_views))
    assert np.array_equal(street.colour, same.colour)
    gardens = [view for scene in (1, 2, 3) for view in outdoor_views("vkitti/train", scene, SIZE)]
    skies = [(view.entity == -1).mean() for view in gardens]
    assert 0 < max(skies) < 0.5
    for view in gardens:
        assert np.median(view.depth[view.entity != -1]) < 10  # furniture and walls, not the horizon
        assert (view.depth[view.entity == -1] == 0).all()


def test_no_scene_is_in_two_parts():
    first = [room_views(stream, 0, SIZE)[0].depth.tobytes() for stream in STREAMS]
    assert len(set(first)) == len(STREAMS)


def test_files_hold_what_was_rendered_whoever_rendered_it(tmp_path):
    one, two = tmp_path / "1", tmp_path / "2"
    frames = write_rooms(out=str(one), workers=1, size=SIZE)
    assert frames == {"hypersim/train": 2, "hypersim/val": 2, "vkitti/train": 2, "vkitti/val": 2, "nyu/test": 2}
    view = room_views("hypersim/train", 0, SIZE)[1]
    folder = one / "hypersim_raw/ai_001_001/images"
    with h5py.File(folder / "scene_cam_00_geometry_hdf5/frame.0001.depth_meters.hdf5") as file:
        ranged = file["dataset"][:]
    known = view.entity != -1
    assert ranged[known] == pytest.approx(view.distance[known], rel=1e-3)  # half floats, as the publisher's
    assert np.isnan(ranged[~known]).all()
    rgb, depth = (one / "vkitti/train.txt").read_text().splitlines()[0].split()
    street = street_views("vkitti/train", 0, SIZE)[0]
    centimetres = pixels(one / "vkitti" / depth)
    assert centimetres[street.entity == -1] == pytest.approx(VKITTI_SKY)
    near = (street.entity != -1) & (street.depth < 600)
    assert centimetres[near] / 100 == pytest.approx(street.depth[near], abs=0.0051)
    assert pixels(one / "vkitti" / rgb).shape == (24, 64, 3)
    depth = (one / "nyu/test.txt").read_text().splitlines()[1].split()[1]
    test = room_views("nyu/test", 0, SIZE)[1]
    millimetres = pixels(one / "nyu" / depth)
    assert millimetres.dtype == np.uint16
    assert millimetres / 1000 == pytest.approx(test.depth, abs=0.00051)

    write_rooms(out=str(two), workers=2, size=SIZE)
    files = [
        {path.relative_to(part): path.read_bytes() for path in part.rglob("*.*") if path.is_file()}
        for part in (one, two)
    ]
    assert files[0] == files[1]
    (one / "nyu" / depth).unlink()
    write_rooms(out=str(one), workers=1, size=SIZE)
    assert not (one / "nyu" / depth).exists()  # the manifest says that all is there
    other = RoomsSize(0, 0, 0, 0, 1, 2, (24, 40), (24, 64), seed=3)
    write_rooms(out=str(one), workers=1, size=other)
    assert pixels(one / "nyu" / depth).shape == (24, 40)


def test_sizes_that_cannot_be_rendered_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rooms"):
        write_rooms(out=str(tmp_path), workers=1, size=RoomsSize(1, 1, 1, 1, 1, 1, (8, 8), (24, 64), seed=3))


def test_solid_behind_the_origin_blocks_nothing():
    ball = Solid(SPHERE, (0, 0, -5), (2, 2, 2), STRAIGHT, 0)
    point = np.zeros((3, 1), np.float32)
    for z, sun, dark in ((1, False, False), (1, True, False), (-1, True, True), (-1, False, False), (-9, False, True)):
        light = np.array([[0], [0], [z]], np.float32)
        assert geometry.blocked([ball], point, light, sun).item() is dark


def test_the_first_hit_is_that_of_every_solid_tried_on_every_ray():
    """Rays that pass a solid's bounding sphere are not tried on it."""
    rng = np.random.default_rng(0)
    solids = [
        Solid(int(kind), tuple(rng.uniform(-4, 4, 3)), tuple(rng.uniform(0.2, 1, 3)), rotation(rng.uniform(-1, 1)), 0)
        for kind in rng.integers(0, 3, 30)
    ]
    origin, direction = np.zeros((3, 1), np.float32), rng.normal(size=(3, 2000)).astype(np.float32)
    with np.errstate(divide="ignore", invalid="ignore"):
        every = np.stack([distance(solid, origin, direction) for solid in solids])
    hits = geometry.cast(solids, origin, direction)
    assert np.array_equal(hits.t, every.min(axis=0))
    assert 0.1 < (hits.t < FAR).mean() < 1
    light = np.array([[0.3], [1.0], [-0.2]], np.float32)
    for sun in (True, False):
        towards = np.broadcast_to(light, direction.shape) if sun else light - direction
        with np.errstate(divide="ignore", invalid="ignore"):
            first = np.stack([distance(solid, direction, towards) for solid in solids]).min(axis=0)
        shadow = geometry.blocked(solids, direction, light, sun)
        assert np.array_equal(shadow, first < (FAR if sun else 1))
        assert 0 < shadow.mean() < 1
