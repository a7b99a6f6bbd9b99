"""Depth maps as 3D points."""

import math
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from marigold.depth.mapping import MAPPING_OF, MAPPINGS
from marigold.types import Camera, Space


def assumed_depth(prediction: Float[Tensor, "1 H W"], space: Space, near: float, far: float) -> Float[Tensor, "1 H W"]:
    """Put an affine-invariant prediction in [0, 1] between two assumed distances, in their unit.

    Raises ValueError unless 0 < near < far, and for a space that is not affine.
    """
    if not 0 < near < far:
        raise ValueError(f"a point cloud needs 0 < near < far, got near={near:g} and far={far:g}")
    if space not in MAPPING_OF:
        raise ValueError(f"a point cloud from {space} is not supported")
    mapping = MAPPINGS[MAPPING_OF[space]]
    low, high = sorted(mapping.of_depth(torch.tensor([near, far])).tolist())
    return mapping.to_depth(low + prediction * (high - low))


def unproject(depth: Float[Tensor, "1 H W"], camera: Camera) -> Float[Tensor, "H W 3"]:
    """Unproject every pixel's centre: x right, y down, z along the view, in the unit of `depth`."""
    _, height, width = depth.shape
    x = (torch.arange(width) + 0.5 - camera.cx) / camera.fx
    y = (torch.arange(height) + 0.5 - camera.cy) / camera.fy
    z = depth[0].cpu()
    return torch.stack([x * z, y[:, None] * z, z], dim=-1)


def is_known(depth: Float[Tensor, "*size"]) -> Bool[Tensor, "*size"]:
    """Return the mask of positive and finite depth."""
    return (depth > 0) & depth.isfinite()


def thinned(height: int, width: int, largest: int) -> tuple[Int[Tensor, "h 1"], Int[Tensor, "w"]]:
    """Return rows and columns of an even grid of at most `largest` pixels that reaches the borders."""
    share = min(1.0, math.sqrt(largest / (height * width)))
    rows, columns = (
        torch.linspace(0, length - 1, max(1, int(length * share)), dtype=torch.float64).round().long()
        for length in (height, width)
    )
    return rows[:, None], columns


def write_ply(file: BinaryIO, points: Float[Tensor, "N 3"], colours: Float[Tensor, "N 3"]) -> None:
    """Write coloured points, colours in [0, 1], as a binary PLY file."""
    vertex = np.dtype([("position", "<f4", 3), ("colour", "u1", 3)])
    vertices = np.empty(len(points), dtype=vertex)
    vertices["position"] = points.cpu().numpy()
    vertices["colour"] = (colours.cpu().clip(0, 1) * 255).round().numpy().astype(np.uint8)
    properties = [f"property float {axis}" for axis in "xyz"] + [
        f"property uchar {channel}" for channel in ("red", "green", "blue")
    ]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}", *properties, "end_header"]
    file.write("\n".join([*header, ""]).encode("ascii") + vertices.tobytes())
