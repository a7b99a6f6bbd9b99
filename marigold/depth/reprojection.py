"""Resample an image and its depth for a camera that looks through the image's middle, in another shape.

Source: MoGe's evaluation (Wang et al., CVPR 2025; protocol `moge`), which uses such views for every method. Where the
view is finer than the image, pixels stay without depth, as utils3d's `masked_nearest_resize` documents it; earlier
versions of that function filled them, and which one the published tables used is not known.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor

from marigold.pictures import resize_lanczos
from marigold.types import Camera

_DEEPEST = 1000.0  # times the 1 % quantile of depth; farther pixels are left out
_HAIR = 1e-6  # px; keeps positions on a pixel's edge on the same side along a whole row


def reproject(
    image: Float[Tensor, "3 H W"],
    depth: Float[Tensor, "1 H W"],
    valid: Bool[Tensor, "1 H W"],
    camera: Camera,
    size: tuple[int, int],
) -> tuple[Float[Tensor, "3 h w"], Float[Tensor, "1 h w"], Bool[Tensor, "1 h w"]]:
    """Return image, depth and mask as a pinhole camera of (h, w) `size` sees them: square pixels, centred axis.

    Depth stays planar depth in metres, now along the new axis. The image is first brought to the view's scale,
    by Lanczos, then sampled bilinearly; depth takes the valid pixel nearest to each centre, and where the view
    is finer than the image the pixels in between get none. Those without one, and those beyond 1,000 times the
    1 % quantile of depth, are invalid.
    """
    height, width = image.shape[-2:]
    turn, focal = centred_view(camera, (height, width), size)
    scaled = (int(height / camera.fy * focal + _HAIR), int(width / camera.fx * focal + _HAIR))
    # Where each pixel of the view lies in the image, in shares of its width and height.
    rays = _rays(Camera(focal, focal, size[1] / 2, size[0] / 2), size, size)
    x, y, z = (rays @ torch.from_numpy(turn)).unbind(-1)
    u = (x / z * camera.fx + camera.cx) / width
    v = (y / z * camera.fy + camera.cy) / height

    view = F.grid_sample(
        resize_lanczos(image, scaled)[None].double(),
        torch.stack([u, v], dim=-1)[None] * 2 - 1,
        "bilinear",
        padding_mode="border",
        align_corners=False,
    )

    picked = nearest_valid(valid[0], scaled)
    found = picked >= 0
    # A rotation preserves the distance from the camera, not planar depth.
    length = _rays(camera, (height, width), scaled).norm(dim=-1)
    distance = depth.flatten()[picked.clamp_min(0)].double() * length
    row, column = (
        (share * count + _HAIR).floor().long().clamp(0, count - 1) for share, count in zip((v, u), scaled, strict=True)
    )
    seen, known = (distance[row, column] / rays.norm(dim=-1)).float()[None], found[row, column][None]
    if known.any():
        known = known & (seen <= _DEEPEST * float(np.quantile(seen[known].numpy(), 0.01)))
    return view[0].float().clamp(0, 1), torch.where(known, seen, 0), known


def centred_view(
    camera: Camera, image_size: tuple[int, int], size: tuple[int, int]
) -> tuple[Float[np.ndarray, "3 3"], float]:
    """Return the rotation from the image's rays to the view's, and the view's focal length in its pixels.

    The axis goes through the image's middle and the field of view is the largest of the (h, w) shape `size`
    that the image covers.
    """
    height, width = image_size
    aspect = size[1] / size[0]
    middle = np.array([(width / 2 - camera.cx) / camera.fx, (height / 2 - camera.cy) / camera.fy, 1.0])
    axis = np.cross(middle, [0.0, 0.0, 1.0])
    sine = np.linalg.norm(axis)
    turn = Rotation.from_rotvec(axis / sine * np.arctan2(sine, 1.0) if sine > 0 else axis).as_matrix()
    corners = [
        turn @ [(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, 1.0]
        for x, y in ((0, 0), (width, 0), (width, height), (0, height))
    ]
    tangents = [corner[:2] / corner[2] for corner in corners]
    # Half of the view's height: where its diagonals, (aspect, 1) and (aspect, -1), leave the image first.
    reach = [width / camera.fx / aspect / 2, height / camera.fy / 2]
    for (start, end), diagonal in itertools.product(
        zip(tangents, [*tangents[1:], tangents[0]], strict=True), ((aspect, 1.0), (aspect, -1.0))
    ):
        edge = end - start
        across = diagonal[0] * edge[1] - diagonal[1] * edge[0]
        if across != 0:
            reach.append(abs((start[0] * edge[1] - start[1] * edge[0]) / across))
    return turn, size[0] / 2 / min(reach)


def nearest_valid(valid: Bool[Tensor, "H W"], size: tuple[int, int]) -> Int[Tensor, "h w"]:
    """Index into the flattened map of the valid pixel nearest to each cell's centre, -1 in cells without one.

    The map is cut into (h, w) `size` cells; a pixel belongs to the one that its centre is in, on an edge to the
    one before. Of several at the same distance the first counts.
    """
    rows, columns = (_cells(length, count) for length, count in zip(valid.shape, size, strict=True))
    best = torch.full(size, torch.inf, dtype=torch.float64, device=valid.device)
    picked = torch.full(size, -1, dtype=torch.int64, device=valid.device)
    for (row, down, inside_row), (column, right, inside_column) in itertools.product(rows, columns):
        row, down, inside_row = (values.to(valid.device)[:, None] for values in (row, down, inside_row))
        column, right, inside_column = (values.to(valid.device) for values in (column, right, inside_column))
        distance = down**2 + right**2
        nearer = inside_row & inside_column & valid[row, column] & (distance < best)
        best = torch.where(nearer, distance, best)
        picked = torch.where(nearer, row * valid.shape[1] + column, picked)
    return picked


def _cells(length: int, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """List for k = 0, 1, ... the k-th pixel of every cell, its offset from the centre in px and whether it exists."""
    cell = torch.arange(count)
    # A cell's first pixel i is the first with (i + 1/2) * count / length beyond its edge.
    first, past = ((2 * edge * length + count) // (2 * count) for edge in (cell, cell + 1))
    found = []
    for k in range(int((past - first).max())):
        pixel = (first + k).clamp_max(length - 1)
        offset = ((2 * pixel + 1) * count - (2 * cell + 1) * length).double() / (2 * count)
        found.append((pixel, offset, first + k < past))
    return found


def _rays(camera: Camera, image_size: tuple[int, int], size: tuple[int, int]) -> Float[Tensor, "h w 3"]:
    """Return the rays, with z = 1, of the pixels of an image scaled to (h, w) `size`."""
    y, x = (
        (torch.arange(count, dtype=torch.float64) + 0.5) * length / count
        for length, count in zip(image_size, size, strict=True)
    )
    down, right = torch.meshgrid((y - camera.cy) / camera.fy, (x - camera.cx) / camera.fx, indexing="ij")
    return torch.stack([right, down, torch.ones_like(right)], dim=-1)
