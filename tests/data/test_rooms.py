"""The embedded data: geometry by hand, the same bits everywhere, files in the publishers' layouts."""

import dataclasses
import hashlib

import h5py
import numpy as np
import pytest
from PIL import Image

from marigold.miniature.rooms import geometry, write_rooms
from marigold.miniature.rooms import render as render_module
from marigold.miniature.rooms.geometry import BOX, CYLINDER, FAR, SPHERE, Solid, distance, rotation
from marigold.miniature.rooms.render import Light, Material, Scene, View, render
from marigold.miniature.rooms.write import (
    STREAMS,
    VKITTI_SKY,
    RoomsSize,
    expose,
    outdoor_views,
    room_views,
    street_views,
)

SIZE = RoomsSize(1, 1, 1, 1, 1, 2, (24, 32), (24, 64), seed=3)
STRAIGHT = (1.0, 0.0)


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


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


def test_rays_are_spent_where_the_picture_changes(monkeypatch):
    size = dataclasses.replace(SIZE, room_size=(48, 64))
    sparing = room_views("hypersim/train", 0, size)
    monkeypatch.setattr(render_module, "_rough", lambda colour, solid: np.ones(solid.shape, bool))
    lavish = room_views("hypersim/train", 0, size)
    for ours, full in zip(sparing, lavish, strict=True):
        assert (ours.depth == full.depth).all()
        same = (ours.colour == full.colour).all(axis=2)
        assert 0.1 < same.mean() < 0.9  # the rough pixels agree to the bit, and some rays were spared
        error = np.sqrt(np.square(expose(ours.colour) / 255.0 - expose(full.colour) / 255.0).mean())
        assert error < 0.01


def test_every_fourth_outdoor_scene_is_a_street_and_the_others_are_gardens():
    size = dataclasses.replace(SIZE, street_size=(36, 96))
    for part in ("colour", "depth"):
        street, same = (views("vkitti/train", 4, size)[0] for views in (outdoor_views, street_views))
        assert np.array_equal(getattr(street, part), getattr(same, part))
    gardens = [view for scene in (1, 2, 3) for view in outdoor_views("vkitti/train", scene, size)]
    skies = [(view.entity == -1).mean() for view in gardens]
    assert 0 < max(skies) < 0.5
    for view in gardens:
        assert np.median(view.depth[view.entity != -1]) < 10  # furniture and walls, not the horizon
        assert (view.depth[view.entity == -1] == 0).all()


def test_no_scene_is_in_two_parts():
    first = [room_views(stream, 0, SIZE)[0].depth for stream in STREAMS]
    for a in range(len(first)):
        for b in range(a):
            assert not np.array_equal(first[a], first[b])


def test_files_hold_what_was_rendered(tmp_path):
    frames = write_rooms(out=str(tmp_path), workers=1, size=SIZE)
    assert frames == {"hypersim/train": 2, "hypersim/val": 2, "vkitti/train": 2, "vkitti/val": 2, "nyu/test": 2}
    view = room_views("hypersim/train", 0, SIZE)[1]
    folder = tmp_path / "hypersim_raw/ai_001_001/images"
    with h5py.File(folder / "scene_cam_00_geometry_hdf5/frame.0001.depth_meters.hdf5") as file:
        ranged = file["dataset"][:]
    known = view.entity != -1
    assert ranged[known] == pytest.approx(view.distance[known], rel=1e-3)  # half floats, as the publisher's
    assert np.isnan(ranged[~known]).all()
    rgb, depth = (tmp_path / "vkitti/train.txt").read_text().splitlines()[0].split()
    street = street_views("vkitti/train", 0, SIZE)[0]
    centimetres = pixels(tmp_path / "vkitti" / depth)
    assert centimetres[street.entity == -1] == pytest.approx(VKITTI_SKY)
    near = (street.entity != -1) & (street.depth < 600)
    assert centimetres[near] / 100 == pytest.approx(street.depth[near], abs=0.0051)
    assert pixels(tmp_path / "vkitti" / rgb).shape == (24, 64, 3)
    depth = (tmp_path / "nyu/test.txt").read_text().splitlines()[1].split()[1]
    test = room_views("nyu/test", 0, SIZE)[1]
    millimetres = pixels(tmp_path / "nyu" / depth)
    assert millimetres.dtype == np.uint16
    assert millimetres / 1000 == pytest.approx(test.depth, abs=0.00051)


def test_nothing_is_rendered_twice_and_another_size_is(tmp_path):
    write_rooms(out=str(tmp_path), workers=1, size=SIZE)
    photo = next((tmp_path / "nyu").rglob("rgb_*.png"))
    photo.unlink()
    write_rooms(out=str(tmp_path), workers=1, size=SIZE)
    assert not photo.exists()  # the manifest says that all is there
    write_rooms(out=str(tmp_path), workers=1, size=RoomsSize(1, 1, 1, 1, 1, 2, (24, 40), (24, 64), seed=3))
    assert pixels(photo).shape == (24, 40, 3)


def test_processes_do_not_change_the_files(tmp_path):
    for workers in (1, 2):
        write_rooms(out=str(tmp_path / str(workers)), workers=workers, size=SIZE)
    one, two = (
        {
            path.relative_to(tmp_path / part): path.read_bytes()
            for path in (tmp_path / part).rglob("*.*")
            if path.is_file()
        }
        for part in ("1", "2")
    )
    assert one == two


def test_sizes_that_cannot_be_rendered_are_refused(tmp_path):
    with pytest.raises(ValueError, match="16 pixels"):
        write_rooms(out=str(tmp_path), workers=1, size=RoomsSize(1, 1, 1, 1, 1, 1, (8, 8), (24, 64), seed=3))


def test_solid_behind_the_origin_blocks_nothing():
    ball = Solid(SPHERE, (0, 0, -5), (2, 2, 2), STRAIGHT, 0)
    point = np.zeros((3, 1), np.float32)
    for z, sun, dark in ((1, False, False), (1, True, False), (-1, True, True), (-1, False, False), (-9, False, True)):
        light = np.array([[0], [0], [z]], np.float32)
        assert geometry.blocked([ball], point, light, sun).item() is dark


def test_bounding_spheres_leave_every_pixel_as_it_is(monkeypatch):
    size = RoomsSize(0, 0, 0, 0, 0, 1, (48, 64), (36, 100), seed=5)

    def everything():
        views = [views("photos", scene, size)[0] for scene in range(4) for views in (room_views, street_views)]
        return [(view.colour.tobytes(), view.depth.tobytes(), view.entity.tobytes()) for view in views]

    def always(solids, a, b):
        return np.ones((len(solids), max(a.shape[1], b.shape[1])), bool)

    quick = everything()
    for name in ("_near_from", "_near_parallel"):
        monkeypatch.setattr(
            geometry, name, lambda solids, a, b: np.ones((len(solids), max(a.shape[1], b.shape[1])), bool)
        )
    assert everything() == quick
