"""A depth map as a textured surface: a grid of triangles, torn where the depth jumps, in one GLB file."""

import json
import math
import struct
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from marigold.depth.point_cloud import thinned, unproject
from marigold.pictures import jpeg
from marigold.types import Camera

LARGEST_GRID = 500_000  # vertices: 22 MB beside the texture, which browsers and phones still rotate smoothly
_TEAR = math.radians(5)  # triangles seen at less than this angle join the two sides of an edge
_FLOAT, _UINT32 = 5126, 5125  # glTF 2.0, section 3.6.2.2
_VERTICES, _INDICES = 34962, 34963  # targets of a buffer view: section 5.11


def write_glb(
    file: BinaryIO,
    depth: Float[Tensor, "1 H W"],
    camera: Camera,
    image: Float[Tensor, "3 H W"],
    *,
    largest: int = LARGEST_GRID,
) -> None:
    """Write the surface that `camera` sees, textured with the image, as binary glTF 2.0.

    +Y is up, the camera is at the origin and looks along -Z, in the unit of `depth`, which is planar. There is a
    vertex per pixel, or per n x n pixels of a depth map with more than `largest`. Triangles seen at less than 5
    degrees, which join the two sides of an edge, are left out, as are those with a corner of unknown depth (not
    positive and finite). The material is unlit. Raises ValueError if no triangle is left.
    Source: Khronos, glTF 2.0 specification, sections 3.6, 3.7 and 4.4.
    """
    _, height, width = depth.shape
    rows, columns = thinned(height, width, largest)
    grid = unproject(depth, camera)[rows, columns].float().numpy()
    triangles = _triangles(grid)
    if not len(triangles):
        raise ValueError("no surface: depth is unknown, or jumps, between all neighbouring pixels")
    used = np.zeros(grid.shape[0] * grid.shape[1], dtype=bool)
    used[triangles] = True
    corners = (np.cumsum(used) - 1)[triangles]
    # A texture's coordinates are shares of its width and height from the upper left corner.
    places = torch.stack(torch.broadcast_tensors((columns + 0.5) / width, (rows + 0.5) / height), dim=-1)
    _write(
        file,
        positions=grid.reshape(-1, 3)[used] * np.array([1, -1, -1], dtype=np.float32),
        places=places.reshape(-1, 2).numpy()[used],
        indices=corners.reshape(-1),
        texture=jpeg(image),
    )


def _triangles(grid: Float[ndarray, "h w 3"]) -> Int[ndarray, "T 3"]:
    """Corners of the triangles that are kept, two per cell, counterclockwise as the camera sees them."""
    index = np.arange(grid.shape[0] * grid.shape[1]).reshape(grid.shape[:2])
    upper_left, upper_right = index[:-1, :-1].ravel(), index[:-1, 1:].ravel()
    lower_left, lower_right = index[1:, :-1].ravel(), index[1:, 1:].ravel()
    cells = np.stack([upper_left, lower_left, upper_right, upper_right, lower_left, lower_right], axis=-1)
    triangles = cells.reshape(-1, 3)
    corner = grid.reshape(-1, 3)[triangles]
    depth = corner[..., 2]
    known = (np.isfinite(depth) & (depth > 0)).all(axis=1)
    corner = np.where(known[:, None, None], corner, 1).astype(np.float64)
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    middle = corner.mean(axis=1)
    # The sine of the angle between the line of sight and the triangle's plane.
    lengths = np.linalg.norm(normal, axis=1) * np.linalg.norm(middle, axis=1)
    return triangles[known & (np.abs((normal * middle).sum(axis=1)) >= math.sin(_TEAR) * lengths)]


def _write(
    file: BinaryIO,
    positions: Float[ndarray, "V 3"],
    places: Float[ndarray, "V 2"],
    indices: ndarray,
    texture: bytes,
) -> None:
    parts = [
        positions.astype("<f4").tobytes(),
        places.astype("<f4").tobytes(),
        indices.astype("<u4").tobytes(),
        texture,
    ]
    starts = np.cumsum([0, *(len(part) + -len(part) % 4 for part in parts)]).tolist()
    views = [
        {"buffer": 0, "byteOffset": start, "byteLength": len(part)}
        for start, part in zip(starts[:-1], parts, strict=True)
    ]
    for view, target in zip(views, (_VERTICES, _VERTICES, _INDICES), strict=False):
        view["target"] = target
    bounds = {"min": positions.min(axis=0).tolist(), "max": positions.max(axis=0).tolist()}
    primitive = {"attributes": {"POSITION": 0, "TEXCOORD_0": 1}, "indices": 2, "material": 0}
    surface = {"baseColorTexture": {"index": 0}, "metallicFactor": 0.0, "roughnessFactor": 1.0}
    scene = {
        "asset": {"version": "2.0", "generator": "marigold"},
        "extensionsUsed": ["KHR_materials_unlit"],  # the image is already lit
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [primitive]}],
        "materials": [
            {"pbrMetallicRoughness": surface, "doubleSided": True, "extensions": {"KHR_materials_unlit": {}}}
        ],
        "textures": [{"source": 0, "sampler": 0}],
        "samplers": [{"wrapS": 33071, "wrapT": 33071}],  # clamp to edge
        "images": [{"bufferView": 3, "mimeType": "image/jpeg"}],
        "accessors": [
            {"bufferView": 0, "componentType": _FLOAT, "count": len(positions), "type": "VEC3", **bounds},
            {"bufferView": 1, "componentType": _FLOAT, "count": len(places), "type": "VEC2"},
            {"bufferView": 2, "componentType": _UINT32, "count": len(indices), "type": "SCALAR"},
        ],
        "bufferViews": views,
        "buffers": [{"byteLength": starts[-1]}],
    }
    text = json.dumps(scene, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary = b"".join(part + bytes(-len(part) % 4) for part in parts)
    # GLB, section 4.4: a header and two chunks, each with its length before its type.
    file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(binary)))
    file.write(struct.pack("<I4s", len(text), b"JSON") + text)
    file.write(struct.pack("<I4s", len(binary), b"BIN\0") + binary)
