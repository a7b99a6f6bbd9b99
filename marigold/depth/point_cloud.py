"""A depth map as points in space, under an assumed camera."""

import math
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from marigold.depth.mapping import MAPPING_OF, MAPPINGS
from marigold.types import Space


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


def unproject(depth: Float[Tensor, "1 H W"], field_of_view: float) -> Float[Tensor, "N 3"]:
    """Points of every pixel's centre, row by row, for a pinhole camera in the middle of the picture.

    x points right, y down and z along the view, in the unit of `depth`; `field_of_view` is horizontal, in
    degrees. Raises ValueError unless it is between 0 and 180.
    """
    if not 0 < field_of_view < 180:
        raise ValueError(f"the field of view has to be between 0 and 180 degrees, got {field_of_view:g}")
    _, height, width = depth.shape
    focal = width / 2 / math.tan(math.radians(field_of_view) / 2)
    x = (torch.arange(width) + 0.5 - width / 2) / focal
    y = (torch.arange(height) + 0.5 - height / 2) / focal
    z = depth[0].cpu()
    return torch.stack([x * z, y[:, None] * z, z], dim=-1).reshape(-1, 3)


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
