"""Ray casting for a few dozen boxes, spheres and upright cylinders.

Pixels are computed by +, -, *, / and square roots alone, in a fixed order: IEEE 754 rounds these exactly, so every
machine renders the same bits. World axes: x right, y up, z forward at yaw 0; metres.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

BOX, SPHERE, CYLINDER = 0, 1, 2
FAR = np.float32(1e9)
TINY = np.float32(1e-20)


@dataclass(frozen=True)
class Solid:
    """One primitive: centre and half extents in metres, and a yaw given as (cosine, sine).

    A sphere uses `half[0]` as its radius; a cylinder `half[0]` as radius and `half[1]` as half height.
    """

    kind: int
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: tuple[float, float]
    material: int


@dataclass(frozen=True)
class Hits:
    """The first hit of each of N rays: distance along the ray, index of the solid (-1: none), place and normal."""

    t: Array
    solid: NDArray[np.int32]
    normal: Array  # (3, N), unit, world frame, towards the ray's origin
    local: Array  # (3, N), the point in the solid's own frame, for textures
    face: NDArray[np.int8]  # the axis that the local normal is closest to


def rotation(tangent: float) -> tuple[float, float]:
    """Cosine and sine of an angle from the tangent of its half, without trigonometric functions."""
    # cos 2a = (1 - tan^2 a) / (1 + tan^2 a), sin 2a = 2 tan a / (1 + tan^2 a)
    square = tangent * tangent
    return (1 - square) / (1 + square), 2 * tangent / (1 + square)


def to_local(solid: Solid, origin: Array, direction: Array) -> tuple[list[Array], list[Array]]:
    """Rays in the solid's frame: three origin and three direction components."""
    # The transpose, hence the inverse, of the yaw that puts the solid into the world.
    c, s = np.float32(solid.yaw[0]), np.float32(solid.yaw[1])
    x, y, z = (origin[axis] - np.float32(solid.centre[axis]) for axis in range(3))
    dx, dy, dz = direction
    return [c * x - s * z, y, s * x + c * z], [c * dx - s * dz, dy, s * dx + c * dz]


def distance(solid: Solid, origin: Array, direction: Array) -> Array:
    """Distance at which each ray enters the solid, in ray lengths; FAR where it misses."""
    local_origin, local_direction = to_local(solid, origin, direction)
    if solid.kind == BOX:
        return _box(local_origin, local_direction, solid.half)
    radius = np.float32(solid.half[0])
    if solid.kind == SPHERE:
        return _quadric(local_origin, local_direction, radius, (0, 1, 2))
    side = _quadric(local_origin, local_direction, radius, (0, 2))
    height = np.float32(solid.half[1])
    # Only the part between the caps counts; a ray that meets the infinite cylinder elsewhere enters through a cap.
    on_side = np.abs(local_origin[1] + side * local_direction[1]) <= height
    cap = _caps(local_origin, local_direction, radius, height)
    return np.minimum(np.where(on_side, side, FAR), cap)


def _box(origin: list[Array], direction: list[Array], half: tuple[float, float, float]) -> Array:
    # Slabs (Kay and Kajiya 1986): between its planes at -h and h of an axis a ray is from (-o - h') / d to
    # (-o + h') / d, h' = h with the sign of d. It meets the box if these three intervals have a point in common.
    near = np.full_like(direction[0], -FAR)
    far = np.full_like(direction[0], FAR)
    for axis in range(3):
        # 0 would make 0 * infinity; the error of TINY in its place is below float32's precision.
        inverse = np.float32(1) / np.where(direction[axis] == 0, TINY, direction[axis])
        middle = -origin[axis] * inverse
        reach = np.float32(half[axis]) * np.abs(inverse)
        np.maximum(near, middle - reach, out=near)
        np.minimum(far, middle + reach, out=far)
    # near < 0 would be a ray from the inside: no camera and no light is inside a solid.
    return np.where((near <= far) & (near > 0), near, FAR)


def _quadric(origin: list[Array], direction: list[Array], radius: np.float32, axes: tuple[int, ...]) -> Array:
    # |o + t d|^2 = r^2 over `axes`, as a t^2 + 2 b t + c = 0; the nearer of its roots, (-b - sqrt(b^2 - a c)) / a.
    a = sum((direction[axis] * direction[axis] for axis in axes), np.float32(0))
    b = sum((origin[axis] * direction[axis] for axis in axes), np.float32(0))
    c = sum((origin[axis] * origin[axis] for axis in axes), np.float32(0)) - radius * radius
    root = b * b - a * c
    t = (-b - np.sqrt(np.maximum(root, 0))) / a
    return np.where((root > 0) & (t > 0), t, FAR)


def _caps(origin: list[Array], direction: list[Array], radius: np.float32, height: np.float32) -> Array:
    # The plane of the cap on the origin's side: o + t d = +-h along the axis. The other cap is never met first.
    t = (np.copysign(height, origin[1]) - origin[1]) / direction[1]
    x, z = origin[0] + t * direction[0], origin[2] + t * direction[2]
    return np.where((t > 0) & (x * x + z * z <= radius * radius), t, FAR)


# A ray along an axis divides by zero: infinities compare as they should, and a NaN is a miss.
@np.errstate(divide="ignore", invalid="ignore")
def cast(solids: list[Solid], origin: Array, direction: Array) -> Hits:
    """First hit of N rays of `direction` (3, N) from one `origin` (3, 1)."""
    count = direction.shape[1]
    t = np.full(count, FAR, np.float32)
    which = np.full(count, -1, np.int32)
    for index, (solid, near) in enumerate(zip(solids, _near_from(solids, origin, direction), strict=True)):
        rays = np.flatnonzero(near)
        candidate = distance(solid, origin, direction[:, rays])
        closer = candidate < t[rays]
        t[rays[closer]] = candidate[closer]
        which[rays[closer]] = index
    normal = np.zeros((3, count), np.float32)
    local = np.zeros((3, count), np.float32)
    face = np.zeros(count, np.int8)
    for index, solid in enumerate(solids):
        rays = np.flatnonzero(which == index)
        if rays.size:
            point, outward = _surface(solid, origin, direction[:, rays], t[rays])
            local[:, rays] = point
            face[rays] = np.argmax(np.abs(outward), axis=0)
            c, s = np.float32(solid.yaw[0]), np.float32(solid.yaw[1])
            normal[:, rays] = np.stack([c * outward[0] + s * outward[2], outward[1], c * outward[2] - s * outward[0]])
    return Hits(t, which, normal, local, face)


def _surface(solid: Solid, origin: Array, direction: Array, t: Array) -> tuple[Array, Array]:
    """Point and outward unit normal in the solid's frame."""
    local_origin, local_direction = to_local(solid, origin, direction)
    point = np.stack([o + t * d for o, d in zip(local_origin, local_direction, strict=True)])
    normal = np.zeros_like(point)
    half = np.asarray(solid.half, np.float32)[:, None]
    if solid.kind == BOX:
        # The point lies on the face where |p| / h is 1.
        axis = np.argmax(np.abs(point) / half, axis=0)
        columns = np.arange(point.shape[1])
        normal[axis, columns] = np.sign(point[axis, columns])
    elif solid.kind == SPHERE:
        normal = point / half[0]
    else:
        # On a cap up to rounding: its points were computed as o + t d.
        cap = np.abs(point[1]) >= half[1] * np.float32(0.9999)
        normal[1] = np.where(cap, np.sign(point[1]), 0)
        normal[0] = np.where(cap, 0, point[0] / half[0])
        normal[2] = np.where(cap, 0, point[2] / half[0])
    return point, normal


@np.errstate(divide="ignore", invalid="ignore")
def blocked(solids: list[Solid], point: Array, light: Array, sun: bool) -> NDArray[np.bool_]:
    """Whether anything stands between each of N points (3, N) and the light.

    `light` (3, 1) is the light's position or, with `sun`, the direction towards it.
    """
    towards = np.broadcast_to(light, point.shape) if sun else light - point
    reach = FAR if sun else np.float32(1)  # in lengths of `towards`, which ends at the light
    # All rays to a lamp meet there, so they are tested backwards, from one origin.
    near = _near_parallel(solids, point, light) if sun else _near_from(solids, light, -towards)
    shadow = np.zeros(point.shape[1], bool)
    for solid, candidates in zip(solids, near, strict=True):
        rays = np.flatnonzero(candidates & ~shadow)
        shadow[rays] = distance(solid, point[:, rays], towards[:, rays]) < reach
    return shadow


def _near_from(solids: list[Solid], origin: Array, direction: Array) -> Iterator[NDArray[np.bool_]]:
    """For each solid, (N,): which rays from one origin (3, 1) meet its bounding sphere; True for every hit.

    The spheres are widened by far more than float32's rounding. One solid at a time keeps the arrays in the cache; no
    matrix product, since BLAS would start its threads in every worker process.
    """
    # A ray of unit direction u meets a sphere (m, r) if its angle to m is below that of the tangent, whose sine is
    # r / |m|: m . u >= |m| cos = sqrt(|m|^2 - r^2). From inside the sphere every ray does.
    centre, radius = _bounding_spheres(solids)
    centre -= origin[:, 0]
    outside = (centre * centre).sum(axis=1) - radius * radius
    least = np.where(outside > 0, np.sqrt(np.maximum(outside, 0)), -np.inf).astype(np.float32)
    unit = direction / np.sqrt((direction * direction).sum(axis=0))
    for (x, y, z), limit in zip(centre, least, strict=True):
        yield x * unit[0] + y * unit[1] + z * unit[2] >= limit


def _near_parallel(solids: list[Solid], point: Array, direction: Array) -> Iterator[NDArray[np.bool_]]:
    """For each solid, (N,): which parallel lines through `point` (3, N) meet its bounding sphere; see `_near_from`."""
    centre, radius = _bounding_spheres(solids)
    # Squared distances in the plane across the lines, which is spanned by the last two left singular vectors of the
    # direction as a matrix of one column.
    first, second = np.linalg.svd(direction)[0][:, 1:].T.astype(np.float32)
    u, v = (axis[0] * point[0] + axis[1] * point[1] + axis[2] * point[2] for axis in (first, second))
    for middle, limit in zip(centre, radius, strict=True):
        du, dv = u - (middle * first).sum(), v - (middle * second).sum()
        yield du * du + dv * dv <= limit * limit


def _bounding_spheres(solids: list[Solid]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres (S, 3), and radii (S,) with a margin of 2 % and 2 cm."""
    half = np.array([solid.half for solid in solids], np.float32).reshape(-1, 3)
    counted = np.array([_EXTENT[solid.kind] for solid in solids], np.float32).reshape(-1, 3)
    radius = np.sqrt((half * half * counted).sum(axis=1))
    centre = np.array([solid.centre for solid in solids], np.float32).reshape(-1, 3)
    return centre, np.float32(1.02) * radius + np.float32(0.02)


# Which of the half extents span the bounding sphere.
_EXTENT = {BOX: (1, 1, 1), SPHERE: (1, 0, 0), CYLINDER: (1, 1, 0)}
