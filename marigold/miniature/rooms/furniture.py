"""Random furniture, and the builder that collects the solids and materials of a scene."""

from dataclasses import dataclass, field

import numpy as np

from marigold.miniature.rooms.geometry import BOX, CYLINDER, SPHERE, Solid
from marigold.miniature.rooms.render import CHECKER, NOISE, PLAIN, STRIPES, Material

Point = tuple[float, float, float]
Part = tuple[int, Point, Point, int]  # kind, centre, half extents, material; in the furniture's own frame


@dataclass
class Builder:
    """Collects solids and materials while a scene is put together."""

    rng: np.random.Generator
    solids: list[Solid] = field(default_factory=list)
    materials: list[Material] = field(default_factory=list)

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return float(low + (high - low) * self.rng.random())

    def colour(self, brightness: float) -> Point:
        """A colour of the given mean reflectance, more often greyish than vivid."""
        tint = self.rng.random(3) ** 2 if self.rng.random() < 0.25 else 0.6 + 0.4 * self.rng.random(3)
        red, green, blue = (float(value) for value in np.clip(tint * brightness / tint.mean(), 0.02, 0.95))
        return red, green, blue

    def material(self, patterns: tuple[int, ...], brightness: tuple[float, float], period: tuple[float, float]) -> int:
        """A random material, its brightness and its period in metres from these ranges; returns its index."""
        low, high = brightness
        pattern = int(patterns[self.rng.integers(len(patterns))])
        first = self.colour(self.between(low, high))
        # Mostly a darker shade of the same colour, as in wood and fabric.
        second = (first[0] * 0.6, first[1] * 0.6, first[2] * 0.6)
        if pattern in (CHECKER, NOISE) and self.rng.random() < 0.5:
            second = self.colour(self.between(low, high))
        self.materials.append(Material(pattern, first, second, self.between(*period)))
        return len(self.materials) - 1

    def special(self, colour: Point, glow: float = 0.0, background: bool = False) -> int:
        """A plain material that is not drawn at random; returns its index, as `material` does."""
        self.materials.append(Material(PLAIN, colour, colour, 1.0, glow, background))
        return len(self.materials) - 1

    def add(self, kind: int, centre: Point, half: Point, yaw: tuple[float, float], material: int) -> None:
        self.solids.append(Solid(kind, centre, half, yaw, material))


def place(builder: Builder, at: tuple[float, float], yaw: tuple[float, float], parts: list[Part]) -> None:
    """Add parts that are given in their own frame, whose origin is on the floor."""
    # The inverse of geometry.to_local: right-handed with y up, yaw turns x towards -z.
    c, s = yaw
    for kind, (x, y, z), half, material in parts:
        builder.add(kind, (at[0] + c * x + s * z, y, at[1] + c * z - s * x), half, yaw, material)


def furniture(builder: Builder) -> tuple[float, list[Part]]:
    """One random piece: the radius of its footprint and its parts."""
    # The draws and their order decide every later number of the scene: a new kind changes all rooms.
    between = builder.between
    body = builder.material((PLAIN, PLAIN, STRIPES, NOISE, CHECKER), (0.15, 0.7), (0.1, 0.5))
    legs = builder.material((PLAIN,), (0.05, 0.4), (1, 1))
    kind = builder.rng.integers(8)
    if kind == 0:  # table
        a, b, h = between(0.4, 0.9), between(0.3, 0.5), between(0.4, 0.75)
        feet = _legs(a - 0.05, b - 0.05, h / 2, 0.03, legs)
        top = [(BOX, (0.0, h, 0.0), (a, 0.03, b), body)]
        vase = [(CYLINDER, (between(-a / 2, a / 2), h + 0.15, 0.0), (0.07, 0.12, 0.07), legs)]
        return a + 0.1, top + feet + (vase if builder.rng.random() < 0.5 else [])
    if kind == 1:  # chair
        h = between(0.4, 0.5)
        seat = (BOX, (0.0, h, 0.0), (0.22, 0.03, 0.22), body)
        back = (BOX, (0.0, h + 0.28, 0.2), (0.22, 0.25, 0.02), body)
        return 0.35, [seat, back, *_legs(0.18, 0.18, h / 2, 0.02, legs)]
    if kind == 2:  # sofa
        a = between(0.6, 1.1)
        arms = [(BOX, (x * a, 0.3, 0.0), (0.1, 0.3, 0.4), body) for x in (-1, 1)]
        seat, back = (BOX, (0.0, 0.2, 0.0), (a, 0.2, 0.4), body), (BOX, (0.0, 0.45, 0.35), (a, 0.35, 0.1), body)
        return a + 0.2, [seat, back, *arms]
    if kind == 3:  # shelf with boards
        a, h = between(0.3, 0.6), between(0.6, 1.1)
        boards = [(BOX, (0.0, 2 * h * level / 4, 0.0), (a, 0.02, 0.18), legs) for level in range(1, 5)]
        sides = [(BOX, (x * a, h, 0.0), (0.02, h, 0.18), body) for x in (-1, 1)]
        return a + 0.1, [*boards, *sides, (BOX, (0.0, h, 0.17), (a, h, 0.01), body)]
    if kind == 4:  # bed
        a = between(0.5, 0.9)
        return 1.2, [(BOX, (0.0, 0.22, 0.0), (a, 0.22, 1.0), body), (BOX, (0.0, 0.5, 1.0), (a, 0.5, 0.05), legs)]
    if kind == 5:  # floor lamp
        h = between(0.6, 0.85)
        shade = builder.special(builder.colour(0.7), glow=1.0)
        post = (CYLINDER, (0.0, h, 0.0), (0.025, h, 0.025), legs)
        return 0.25, [post, (SPHERE, (0.0, 2 * h, 0.0), (0.2, 0.2, 0.2), shade)]
    if kind == 6:  # balls and drums
        r, q = between(0.15, 0.45), between(0.15, 0.35)
        return r + q, [(SPHERE, (0.0, r, 0.0), (r, r, r), body), (CYLINDER, (r + q, q, 0.1), (q, q, q), legs)]
    a, b, h = between(0.2, 0.6), between(0.2, 0.5), between(0.2, 1.0)  # cabinet with a box on top
    q = between(0.08, 0.2)
    return max(a, b) + 0.1, [(BOX, (0.0, h, 0.0), (a, h, b), body), (BOX, (0.0, 2 * h + q, 0.0), (q, q, q), legs)]


def _legs(x: float, z: float, half_height: float, thickness: float, material: int) -> list[Part]:
    half = (thickness, half_height, thickness)
    return [(BOX, (i * x, half_height, j * z), half, material) for i in (-1, 1) for j in (-1, 1)]
