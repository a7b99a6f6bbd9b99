"""Render linear colour, planar depth and entity ids of a scene as a camera sees it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from marigold.miniature.rooms.geometry import Array, Hits, Solid, blocked, cast

PLAIN, CHECKER, STRIPES, TILES, NOISE, BRICKS = range(6)


@dataclass(frozen=True)
class Material:
    """Surface colour: a pattern between two linear RGB colours with a period in metres."""

    pattern: int
    colour: tuple[float, float, float]
    second: tuple[float, float, float]
    period: float
    glow: float = 0.0
    background: bool = False  # visible but without depth: a hole in the wall


@dataclass(frozen=True)
class Light:
    """A point light, or the sun when `sun` is set: then `position` is the direction towards it."""

    position: tuple[float, float, float]
    colour: tuple[float, float, float]
    sun: bool = False


@dataclass(frozen=True)
class Scene:
    """A scene; `sky` is the colour where no solid is hit, None in closed rooms."""

    solids: list[Solid]
    materials: list[Material]
    lights: list[Light]
    ambient: tuple[float, float, float]
    sky: tuple[float, float, float] | None
    haze: float  # metres at which the sky's colour replaces half of the light; 0: clear air


@dataclass(frozen=True)
class View:
    """A pinhole: focal length in pixels, principal point in the image centre, no roll."""

    position: tuple[float, float, float]
    yaw: tuple[float, float]  # cosine, sine
    pitch: tuple[float, float]  # cosine, sine; positive looks up
    focal: float


@dataclass(frozen=True)
class Rendering:
    """`colour` (H, W, 3) linear, not clipped; `depth` (H, W) in planar metres, 0 where nothing is hit; `distance`
    (H, W) along the ray; `entity` (H, W) int32 from 1, -1 where nothing is hit."""

    colour: Array
    depth: Array
    distance: Array
    entity: NDArray[np.int32]


def rays(camera: View, height: int, width: int, oversampling: int) -> tuple[Array, Array]:
    """Directions (3, N) whose length is 1 in planar depth, and their Euclidean lengths (N,)."""
    # Pixel k of n is at (k - (n - 1) / 2) / f in the plane of depth 1: the principal point is the image's middle.
    step = np.float32(1 / (oversampling * camera.focal))
    x = (np.arange(width * oversampling, dtype=np.float32) - np.float32((width * oversampling - 1) / 2)) * step
    y = (np.float32((height * oversampling - 1) / 2) - np.arange(height * oversampling, dtype=np.float32)) * step
    x, y = (part.ravel() for part in np.broadcast_arrays(x[None, :], y[:, None]))
    (cp, sp), (cy, sy) = (np.asarray(pair, np.float32) for pair in (camera.pitch, camera.yaw))
    # Pitch about the x axis, then yaw about the vertical one; there is no roll.
    up, ahead = cp * y + sp, cp - sp * y
    direction = np.stack([cy * x + sy * ahead, up, cy * ahead - sy * x])
    return direction, np.sqrt(x * x + y * y + 1)


def render(scene: Scene, camera: View, height: int, width: int, oversampling: int = 2) -> Rendering:
    """Render one view at the pixel centres; colour is averaged over `oversampling`^2 rays at edges."""
    shape = (height, width)
    origin = np.asarray(camera.position, np.float32)[:, None]
    direction, length = rays(camera, height, width, 1)
    hits = cast(scene.solids, origin, direction)
    colour = shade(scene, origin, direction, hits, length)
    if oversampling > 1:
        pixels = np.flatnonzero(_rough(colour.reshape(3, *shape), hits.solid.reshape(shape)))
        fine = rays(camera, height, width, oversampling)
        direction, lengths = (_of_pixels(part, shape, oversampling, pixels) for part in fine)
        fine_hits = cast(scene.solids, origin, direction)
        samples = shade(scene, origin, direction, fine_hits, lengths).reshape(3, pixels.size, oversampling**2)
        colour[:, pixels] = samples.sum(axis=2) / np.float32(oversampling**2)

    # Solid -1, no hit, takes the last entry.
    hole = np.array([scene.materials[solid.material].background for solid in scene.solids] + [True])
    known = ~hole[hits.solid]
    depth = np.where(known, hits.t, 0).astype(np.float32)
    entity = np.where(known, hits.solid + 1, -1).astype(np.int32)
    return Rendering(
        np.ascontiguousarray(colour.T, np.float32).reshape(*shape, 3),
        depth.reshape(shape),
        (depth * length).reshape(shape),
        entity.reshape(shape),
    )


def _rough(colour: Array, solid: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which pixels (H, W) differ from a neighbour in their solid or by more than about 4 % in colour."""
    # |a - b| > 4 % of their mean + 0.004: in the dark, less is not visible in 8 bits.
    rough = np.zeros(solid.shape, bool)
    for here, there in ((np.s_[..., :-1, :], np.s_[..., 1:, :]), (np.s_[..., :-1], np.s_[..., 1:])):
        one, other = colour[here], colour[there]
        limit = np.float32(0.02) * (one + other) + np.float32(0.004)
        edge = (np.abs(one - other) > limit).any(axis=0) | (solid[here] != solid[there])
        rough[here] |= edge
        rough[there] |= edge
    return rough


def _of_pixels(rays: Array, shape: tuple[int, int], oversampling: int, pixels: NDArray[np.intp]) -> Array:
    """The rays (..., N) of the given pixels, those of one pixel side by side."""
    height, width = shape
    parts = rays.shape[:-1]
    grid = rays.reshape(*parts, height, oversampling, width, oversampling).swapaxes(-3, -2)
    return grid.reshape(*parts, height * width, -1)[..., pixels, :].reshape(*parts, -1)


def shade(scene: Scene, origin: Array, direction: Array, hits: Hits, length: Array) -> Array:
    """Linear colour (3, N): textured diffuse surfaces, shadows of the first light, haze, sky."""
    met = hits.solid >= 0
    t = np.where(met, hits.t, 0)
    # 2 mm above the surface, which would otherwise shade itself where t was rounded up.
    point = origin + t * direction + hits.normal * np.float32(2e-3)
    albedo, glow = _albedo(scene, hits)
    # Lambert: colour = albedo (ambient + sum of light cos / falloff) + glow; the ambient light is stronger from above.
    facing = np.float32(0.75) + np.float32(0.25) * hits.normal[1]
    light = np.asarray(scene.ambient, np.float32)[:, None] * facing
    for index, source in enumerate(scene.lights):
        position = np.asarray(source.position, np.float32)[:, None]
        towards = np.broadcast_to(position, point.shape) if source.sun else position - point
        square = towards[0] * towards[0] + towards[1] * towards[1] + towards[2] * towards[2]
        cosine = hits.normal[0] * towards[0] + hits.normal[1] * towards[1] + hits.normal[2] * towards[2]
        strength = np.maximum(cosine, 0) / np.sqrt(square)
        if not source.sun:
            # 1 / r^2 is unbounded near the lamp, and its range does not fit into 8 bits.
            strength /= 1 + np.float32(0.15) * square
        if index == 0:  # the others are dim, and a shadow costs a ray per pixel
            lit = np.flatnonzero(met & (strength > 0))
            strength[lit[blocked(scene.solids, point[:, lit], position, source.sun)]] = 0
        light += np.asarray(source.colour, np.float32)[:, None] * strength
    colour = albedo * light + glow
    if scene.sky is not None:
        sky = np.asarray(scene.sky, np.float32)[:, None] * (1 + np.float32(0.4) * direction[1] / length)
        if scene.haze > 0:
            # Half at the distance `haze`. IEEE 754 does not round exponentials exactly: machines would differ.
            share = t * length / (t * length + np.float32(scene.haze))
            colour = colour * (1 - share) + sky * share
        colour = np.where(met, colour, sky)
    return colour


def _albedo(scene: Scene, hits: Hits) -> tuple[Array, Array]:
    """Surface colour (3, N) and the light that the surface emits (3, N)."""
    materials = scene.materials
    # One material per ray, looked up by arrays; solid -1 takes material 0, and the sky replaces it.
    used = np.array([solid.material for solid in scene.solids] + [0])[hits.solid]
    pattern = np.array([material.pattern for material in materials], np.int8)[used]
    period = np.array([material.period for material in materials], np.float32)[used]
    # Texture coordinates: the two axes that span the face.
    horizontal = np.where(hits.face == 0, hits.local[2], hits.local[0]) / period
    vertical = np.where(hits.face == 1, hits.local[2], hits.local[1]) / period
    mix = _pattern(pattern, horizontal, vertical, hits.solid)
    first = np.array([material.colour for material in materials], np.float32)[used].T
    second = np.array([material.second for material in materials], np.float32)[used].T
    glow = np.array([material.glow for material in materials], np.float32)[used]
    albedo = first * (1 - mix) + second * mix
    return albedo, albedo * glow


def _pattern(pattern: NDArray[np.int8], u: Array, v: Array, salt: NDArray[np.int32]) -> Array:
    """The second colour's share in [0, 1] at every point."""
    mix = np.zeros_like(u)
    for kind in np.unique(pattern):
        at = np.flatnonzero(pattern == kind)
        a, b = u[at], v[at]
        cell_a, cell_b = np.floor(a), np.floor(b)
        if kind == CHECKER:
            mix[at] = (cell_a + cell_b) % np.float32(2)
        elif kind == STRIPES:
            mix[at] = np.abs(2 * (a - cell_a) - 1)
        elif kind == TILES:
            joint = np.minimum(np.minimum(a - cell_a, cell_a + 1 - a), np.minimum(b - cell_b, cell_b + 1 - b))
            mix[at] = np.where(joint < 0.04, 1, np.float32(0.25) * _hash(cell_a, cell_b, salt[at]))
        elif kind == BRICKS:
            # Twice as wide as high, every other row shifted by half a brick.
            a = (a + np.float32(0.5) * (np.floor(2 * b) % 2)).astype(np.float32)
            joint = np.minimum(a - np.floor(a), 2 * b - np.floor(2 * b))
            mix[at] = np.where(joint < 0.06, 1, np.float32(0.4) * _hash(np.floor(a), np.floor(2 * b), salt[at]))
        elif kind == NOISE:
            # Two octaves, the finer one at half the weight.
            mix[at] = (_noise(a, b, salt[at]) * 2 + _noise(a * 3, b * 3, salt[at])) / 3
    return mix


def _noise(u: Array, v: Array, salt: NDArray[np.int32]) -> Array:
    """Smooth value noise of unit period in [0, 1]."""
    i, j = np.floor(u), np.floor(v)
    x, y = u - i, v - j
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)  # 3 x^2 - 2 x^3 is flat at the lattice, which hides it
    lower = _hash(i, j, salt) * (1 - x) + _hash(i + 1, j, salt) * x
    upper = _hash(i, j + 1, salt) * (1 - x) + _hash(i + 1, j + 1, salt) * x
    return (lower * (1 - y) + upper * y).astype(np.float32)


def _hash(i: Array, j: Array, salt: NDArray[np.int32]) -> Array:
    """A number in [0, 1) per lattice cell, by integer mixing with Wang's constants, the same on every machine."""
    # int64 wraps modulo 2^64, so its low 32 bits are those of 32-bit arithmetic.
    key = i.astype(np.int64) * 73856093 ^ j.astype(np.int64) * 19349663 ^ salt.astype(np.int64) * 83492791
    key = (key & 0xFFFFFFFF) * 2654435769 & 0xFFFFFFFF
    key = ((key ^ key >> 15) * 2246822519) & 0xFFFFFFFF
    return ((key ^ key >> 13) & 0xFFFF).astype(np.float32) / np.float32(65536)
