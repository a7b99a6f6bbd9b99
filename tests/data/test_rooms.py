"""The rendered rooms: geometry by hand, the same bits everywhere, files in the publishers' layouts."""

import hashlib
from dataclasses import replace

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
    turn = rotation(np.tan(np.pi / 8))  # by 45 degrees: an edge of the cube comes sqrt(2) towards the ray
    turned = Solid(BOX, (0, 0, 5), (1, 1, 1), turn, 0)
    assert along(turned, ahead) == pytest.approx([5 - 2**0.5], rel=1e-6)


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
    # The light at height 1 casts the ball's shadow on the wall at height -1.
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


def test_no_scene_is_in_two_splits():
    first = [room_views(stream, 0, SIZE)[0].depth.tobytes() for stream in STREAMS]
    assert len(set(first)) == len(STREAMS)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rooms")
    frames = write_rooms(out=str(folder), workers=1, size=SIZE)
    assert frames == {"hypersim/train": 2, "hypersim/val": 2, "vkitti/train": 2, "vkitti/val": 2, "nyu/test": 2}
    return folder


def test_files_hold_what_was_rendered(written):
    view = room_views("hypersim/train", 0, SIZE)[1]
    folder = written / "hypersim_raw/ai_001_001/images/scene_cam_00_geometry_hdf5"
    with h5py.File(folder / "frame.0001.depth_meters.hdf5") as file:
        ranged = file["dataset"][:]
    wanted = np.where(view.entity == -1, np.nan, view.distance)
    assert ranged == pytest.approx(wanted, rel=1e-3, nan_ok=True)  # half floats, as the publisher's
    rgb, depth = (written / "vkitti/train.txt").read_text().splitlines()[0].split()
    view = street_views("vkitti/train", 0, SIZE)[0]
    centimetres, near = pixels(written / "vkitti" / depth), (view.entity != -1) & (view.depth < 600)
    assert (centimetres[view.entity == -1] == VKITTI_SKY).all()
    assert centimetres[near] / 100 == pytest.approx(view.depth[near], abs=0.0051)
    assert pixels(written / "vkitti" / rgb).shape == (24, 64, 3)
    depth = (written / "nyu/test.txt").read_text().splitlines()[1].split()[1]
    millimetres = pixels(written / "nyu" / depth)
    assert millimetres.dtype == np.uint16
    assert millimetres / 1000 == pytest.approx(room_views("nyu/test", 0, SIZE)[1].depth, abs=0.00051)


def test_any_number_of_processes_writes_the_same_files_once(written, tmp_path):
    write_rooms(out=str(tmp_path), workers=2, size=SIZE)
    made = [path.relative_to(written) for path in written.rglob("*.*") if path.is_file()]
    assert all((written / name).read_bytes() == (tmp_path / name).read_bytes() for name in made)
    name = (tmp_path / "nyu/test.txt").read_text().split()[0]
    (tmp_path / "nyu" / name).unlink()
    write_rooms(out=str(tmp_path), workers=1, size=SIZE)
    assert not (tmp_path / "nyu" / name).exists()  # nothing is rendered again
    write_rooms(out=str(tmp_path), workers=1, size=replace(SIZE, room_size=(24, 40)))
    assert pixels(tmp_path / "nyu" / name).shape == (24, 40, 3)


def test_sizes_that_cannot_be_rendered_are_refused(tmp_path):
    with pytest.raises(ValueError, match="rooms"):
        write_rooms(out=str(tmp_path), workers=1, size=replace(SIZE, room_size=(8, 8)))


def test_a_solid_behind_the_light_or_the_point_casts_no_shadow():
    ball = Solid(SPHERE, (0, 0, -5), (2, 2, 2), STRAIGHT, 0)
    point = np.zeros((3, 1), np.float32)
    for z, sun, dark in ((1, False, False), (1, True, False), (-1, True, True), (-1, False, False), (-9, False, True)):
        light = np.array([[0], [0], [z]], np.float32)
        assert geometry.blocked([ball], point, light, sun).item() is dark


def test_hits_and_shadows_are_those_of_brute_force():
    """`cast` and `blocked` skip the rays that miss a solid's bounding sphere; here every ray meets every solid."""
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
