"""Random scenes: furnished rooms, furnished gardens and streets, drawn from the given generator alone."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from marigold.miniature.rooms.furniture import Builder, Part, Point, furniture, place
from marigold.miniature.rooms.geometry import BOX, CYLINDER, SPHERE, rotation
from marigold.miniature.rooms.render import BRICKS, CHECKER, NOISE, PLAIN, STRIPES, TILES, Light, Scene, View, render

WALL = 0.1  # half thickness in metres


def room(rng: np.random.Generator) -> tuple[Scene, Point]:
    """A furnished room and its half extents (width, height, length) in metres; its floor is y = 0."""
    builder = Builder(rng)
    a, h, b = builder.between(1.6, 4.0), builder.between(1.2, 1.7), builder.between(2.0, 4.8)
    straight = (1.0, 0.0)
    wall = [builder.material((PLAIN, PLAIN, STRIPES, NOISE, BRICKS), (0.35, 0.8), (0.2, 0.9)) for _ in range(2)]
    ground = builder.material((CHECKER, STRIPES, TILES, NOISE, PLAIN), (0.15, 0.6), (0.2, 1.0))
    ceiling = builder.material((PLAIN, PLAIN, TILES), (0.6, 0.9), (0.4, 1.0))
    # Floor and ceiling reach beyond the walls: no ray finds a gap between them.
    builder.add(BOX, (0, -WALL, 0), (a + 1, WALL, b + 1), straight, ground)
    builder.add(BOX, (0, 2 * h + WALL, 0), (a + 1, WALL, b + 1), straight, ceiling)
    for side in (-1, 1):
        builder.add(BOX, (side * (a + WALL), h, 0), (WALL, h + WALL, b + WALL), straight, wall[0])
        builder.add(BOX, (0, h, side * (b + WALL)), (a + WALL, h + WALL, WALL), straight, wall[1])
    _hang_panels(builder, a, h, b)
    _furnish(builder, a, b, int(rng.integers(5, 12)))
    white = builder.between(0.8, 1.2)
    lamp = (builder.between(-0.6, 0.6) * a, 2 * h - 0.15, builder.between(-0.6, 0.6) * b)
    second = (builder.between(-0.8, 0.8) * a, builder.between(0.8, 1.6), builder.between(-0.8, 0.8) * b)
    # A warm lamp below the ceiling and a dim one at eye level, so that shadows are not black.
    lights = [Light(lamp, (white, 0.95, 0.85)), Light(second, (0.25, 0.28, 0.3))]
    level = builder.between(0.15, 0.4)
    return Scene(builder.solids, builder.materials, lights, (level, level, level), None, 0.0), (a, h, b)


def _furnish(builder: Builder, a: float, b: float, pieces: int) -> None:
    """Up to `pieces` pieces of furniture that do not touch, half of them against the long walls."""
    rng = builder.rng
    taken: list[tuple[float, float, float]] = []
    for _ in range(pieces):
        radius, parts = furniture(builder)
        against_wall = rng.random() < 0.5
        for _attempt in range(8):  # then it is left out, so that small rooms are not crowded
            x, z = builder.between(-1, 1) * max(a - radius, 0), builder.between(-1, 1) * max(b - radius, 0)
            if against_wall:
                x = float(np.copysign(max(a - radius, 0), x))
            if all((x - p) ** 2 + (z - q) ** 2 > (radius + r) ** 2 for p, q, r in taken):
                # Only quarter turns keep a back flat to its wall.
                quarter = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[rng.integers(4)]
                yaw = quarter if against_wall else rotation(builder.between(-1, 1))
                place(builder, (x, z), yaw, parts)
                taken.append((x, z, radius))
                break


def garden(rng: np.random.Generator) -> tuple[Scene, Point]:
    """A walled garden under the sky, furnished like a room, trees and houses behind its wall; values as in `room`."""
    builder = Builder(rng)
    a, h, b = builder.between(2.0, 4.5), builder.between(0.7, 1.2), builder.between(2.5, 5.5)
    straight = (1.0, 0.0)
    wall = [builder.material((PLAIN, BRICKS, NOISE, STRIPES), (0.25, 0.7), (0.2, 0.9)) for _ in range(2)]
    ground = builder.material((TILES, NOISE, CHECKER, STRIPES), (0.15, 0.5), (0.3, 1.2))
    lawn = builder.material((NOISE,), (0.15, 0.35), (1.0, 4.0))
    # 2 cm below the terrace: two surfaces in one plane would flicker between their materials.
    builder.add(BOX, (0, -0.5, 0), (60, 0.48, 60), straight, lawn)
    builder.add(BOX, (0, -WALL, 0), (a, WALL, b), straight, ground)
    for side in (-1, 1):
        builder.add(BOX, (side * (a + WALL), h, 0), (WALL, h, b + 2 * WALL), straight, wall[0])
        builder.add(BOX, (0, h, side * (b + WALL)), (a, h, WALL), straight, wall[1])
        for _ in range(2):
            _roadside(builder, side, a, builder.between(-12, 12))
    _furnish(builder, a, b, int(rng.integers(5, 12)))
    # There is no ceiling to bound the camera's height: 10 m in place of half a ceiling's.
    return _outdoors(builder), (a, 10.0, b)


def _hang_panels(builder: Builder, a: float, h: float, b: float) -> None:
    """Paintings, doors and bright windows on the walls; now and then a hole without depth."""
    for _ in range(int(builder.rng.integers(2, 6))):
        width, height = builder.between(0.2, 0.6), builder.between(0.2, 0.5)
        middle = builder.between(h * 0.8, h * 1.4)
        chance = builder.rng.random()
        if chance < 0.08:  # small: Hypersim's filter drops images with many pixels without geometry
            material = builder.special((0.8, 0.9, 1.0), glow=1.5, background=True)
            width, height = width / 3, height / 3
        elif chance < 0.35:
            material = builder.special((0.8, 0.9, 1.0), glow=builder.between(0.5, 1.5))
        else:
            material = builder.material((PLAIN, CHECKER, NOISE, STRIPES), (0.1, 0.7), (0.1, 0.4))
        side = 1 if builder.rng.random() < 0.5 else -1
        if builder.rng.random() < 0.5:
            at, half = (side * a, middle, builder.between(-0.7, 0.7) * b), (0.02, height, width)
        else:
            at, half = (builder.between(-0.7, 0.7) * a, middle, side * b), (width, height, 0.02)
        builder.add(BOX, at, half, (1.0, 0.0), material)


def street(rng: np.random.Generator) -> tuple[Scene, Point]:
    """A road between houses, trees and parked cars under a sky; the camera's stretch is the last value."""
    builder = Builder(rng)
    straight = (1.0, 0.0)
    lawn = builder.material((NOISE,), (0.15, 0.35), (1.0, 4.0))
    asphalt = builder.material((NOISE, PLAIN, STRIPES), (0.08, 0.2), (0.5, 2.0))
    line = builder.special((0.7, 0.7, 0.65))
    half_road = builder.between(3.0, 5.0)
    builder.add(BOX, (0, -0.5, 60), (120, 0.5, 160), straight, lawn)
    builder.add(BOX, (0, -0.49, 60), (half_road, 0.5, 160), straight, asphalt)
    for k in range(14):
        builder.add(BOX, (0, 0.012, 6.0 * k), (0.08, 0.01, 1.0), straight, line)
    for side in (-1, 1):
        z = builder.between(2, 12)
        while z < 110:
            _roadside(builder, side, half_road, z)
            z += builder.between(4, 14)
        z = builder.between(4, 16)
        while z < 60:
            if rng.random() < 0.7:
                _car(builder, side * (half_road - 1.1), z)
            z += builder.between(6, 16)
    return replace(_outdoors(builder), haze=builder.between(60, 250)), (half_road - 2.2, 1.5, 20.0)


def _outdoors(builder: Builder) -> Scene:
    """The scene in sunlight under a sky, in clear air."""
    sun = (builder.between(-1, 1), builder.between(0.5, 1.2), builder.between(-1, 1))
    grey = builder.between(0.5, 0.9)
    lights = [Light(sun, (1.0, 0.95, 0.85), sun=True)]
    # Bluish at any brightness.
    sky = (grey * 0.85, grey * 0.95, grey * 1.1)
    return Scene(builder.solids, builder.materials, lights, (0.35, 0.38, 0.42), sky, 0.0)


def _roadside(builder: Builder, side: int, half_road: float, z: float) -> None:
    away = half_road + builder.between(1.0, 3.0)
    if builder.rng.random() < 0.5:
        wall = builder.material((BRICKS, PLAIN, TILES, STRIPES), (0.2, 0.7), (0.4, 1.5))
        a, h, b = builder.between(2, 5), builder.between(1.5, 5), builder.between(2, 5)
        builder.add(BOX, (side * (away + 1 + a), h, z), (a, h, b), (1.0, 0.0), wall)
    else:
        trunk = builder.material((PLAIN,), (0.08, 0.2), (1, 1))
        leaves = builder.material((NOISE,), (0.1, 0.3), (0.3, 0.8))
        h, r = builder.between(0.8, 1.8), builder.between(0.8, 2.0)
        builder.add(CYLINDER, (side * away, h, z), (0.15, h, 0.15), (1.0, 0.0), trunk)
        builder.add(SPHERE, (side * away, 2 * h + r * 0.7, z), (r, r, r), (1.0, 0.0), leaves)


def _car(builder: Builder, x: float, z: float) -> None:
    paint = builder.material((PLAIN,), (0.1, 0.7), (1, 1))
    glass = builder.special((0.06, 0.07, 0.08))
    parts: list[Part] = [
        (BOX, (0.0, 0.6, 0.0), (0.85, 0.35, 2.0), paint),
        (BOX, (0.0, 1.15, 0.1), (0.75, 0.25, 1.1), glass),
    ]
    wheels = [(SPHERE, (x * 0.8, 0.3, z * 1.3), (0.3, 0.3, 0.3), glass) for x in (-1, 1) for z in (-1, 1)]
    place(builder, (x, z), rotation(builder.between(-0.03, 0.03)), [*parts, *wheels])


def camera_in_room(rng: np.random.Generator, scene: Scene, half: Point, focal: float) -> View:
    """A view from outside all furniture with none of it right in front; raises ValueError if there is no room."""
    a, h, b = half

    def draw() -> View:
        x, z = float(2 * rng.random() - 1) * (a - 0.3), float(2 * rng.random() - 1) * (b - 0.3)
        height = float(0.9 + 0.8 * rng.random())
        # Looking roughly through the middle of the room, with a turn of up to about 40 degrees either way.
        length = (x * x + z * z) ** 0.5 + 1e-6
        turn = rotation(float(2 * rng.random() - 1) * 0.35)
        c, s = -z / length, -x / length
        yaw = (c * turn[0] - s * turn[1], s * turn[0] + c * turn[1])
        return View((x, min(height, 2 * h - 0.3), z), yaw, rotation(float(-0.16 + 0.2 * rng.random())), focal)

    return _clear_view(draw, scene, nearest=0.35, middle=1.2)


def camera_in_street(rng: np.random.Generator, scene: Scene, half: Point, focal: float) -> View:
    """A driver's view along the road; raises ValueError if cars are everywhere."""

    def draw() -> View:
        x = float(2 * rng.random() - 1) * half[0]
        yaw = rotation(float(2 * rng.random() - 1) * 0.12)
        pitch = rotation(float(2 * rng.random() - 1) * 0.03)
        return View((x, float(1.3 + 0.6 * rng.random()), float(rng.random()) * half[2]), yaw, pitch, focal)

    return _clear_view(draw, scene, nearest=1.2, middle=4.0)


def _clear_view(draw: Callable[[], View], scene: Scene, nearest: float, middle: float) -> View:
    """The first view drawn whose depth is above `nearest` everywhere and whose median is above `middle`, in metres."""
    bare = replace(scene, lights=[], haze=0.0)
    for _ in range(40):
        view = draw()
        # 12 x 16 rays without lights are enough; 0.866 of the width is a focal length like Hypersim's.
        depth = render(bare, replace(view, focal=16 * 0.866), 12, 16, oversampling=1).depth
        known = depth[depth > 0]
        if known.size > 60 and float(known.min()) > nearest and float(np.median(known)) > middle:
            return view
    # An error, since a view into the back of a sofa teaches nothing.
    raise ValueError("rooms: 40 views of a scene are all blocked; another prepare.size.seed makes other scenes")
