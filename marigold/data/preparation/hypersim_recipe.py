"""Hypersim's recipe: released frames, cameras, distance to planar depth, tone mapping; arrays in, arrays out.

It is the recipe of the published training data (prs-eth/Marigold), optionally with each scene's own camera.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from marigold.data.errors import DataError

Matrix = tuple[tuple[float, float, float], ...]

SPLITS = ("train", "val", "test")
GAMMA = 1 / 2.2
# Tone mapping puts the 90th percentile of the brightness at 0.8 (Hypersim's own convention).
BRIGHT_PERCENTILE, BRIGHT_VALUE, DARK = 90, 0.8, 1e-4
# Of the nominal camera with 60 degrees of horizontal view: 512 / tan(30 degrees) px at a width of 1024.
FOCAL_AT_1024 = 886.81
NOT_AN_OBJECT = -1  # entity id of a pixel without geometry (a window, a hole)


def released_frames(split_csv: Path) -> Iterator[tuple[str, str, str, str]]:
    """(split, scene, camera, four-digit frame) of the rows in the public release, in the csv's order."""
    columns = ("scene_name", "camera_name", "frame_id", "included_in_public_release", "split_partition_name")
    for number, row in enumerate(_rows(split_csv, columns), 2):
        scene, camera, frame, included, split = row
        if included != "True":
            continue
        if split not in SPLITS or not frame.isdigit():
            raise DataError(f"{split_csv}, line {number}: split {split!r}, frame {frame!r}")
        yield split, scene, camera, f"{int(frame):04d}"


def read_cameras(camera_csv: Path) -> dict[str, Matrix]:
    """Scene -> 3x3 matrix from (u, v, 1) to a point on the ray, in camera axes (x right, y up, z backwards).

    u is -1 at the left and 1 at the right edge, v is -1 at the lower and 1 at the upper edge of the image. It
    covers tilt-shift cameras. Source: apple/ml-hypersim, contrib/mikeroberts3000.
    """
    columns = ["scene_name", *(f"M_cam_from_uv_{row}{column}" for row in range(3) for column in range(3))]
    cameras = {}
    for number, (scene, *values) in enumerate(_rows(camera_csv, columns), 2):
        try:
            numbers = [float(value) for value in values]
        except ValueError as error:
            raise DataError(f"{camera_csv}, line {number}: {error}") from error
        cameras[scene] = tuple((numbers[i], numbers[i + 1], numbers[i + 2]) for i in (0, 3, 6))
    return cameras


@lru_cache(maxsize=4)
def planar_factor(height: int, width: int, camera: Matrix | None) -> np.ndarray:
    """The ratio of depth along the optical axis to distance along the ray, float64 (H, W), in (0, 1]."""
    if camera is None:
        focal = FOCAL_AT_1024 * width / 1024
        x = np.arange(width) - (width - 1) / 2
        y = np.arange(height)[:, None] - (height - 1) / 2
        return focal / np.sqrt(x**2 + y**2 + focal**2)
    # Pixels' centres; the edges are at -1 and 1.
    u = (np.arange(width) + 0.5) * 2 / width - 1
    v = 1 - (np.arange(height) + 0.5) * 2 / height
    grid = np.stack(np.broadcast_arrays(u[None, :], v[:, None], np.ones((height, width))))
    rays = np.einsum("ij,jhw->ihw", np.array(camera), grid)
    return np.abs(rays[2]) / np.linalg.norm(rays, axis=0)


def tone_map(colour: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Linear radiance (H, W, 3) as an sRGB-like image, uint8: one exposure per image, then gamma 2.2.

    The exposure puts the 90th percentile of the brightness of known pixels at 0.8. Not-a-number becomes
    black, infinity white.
    """
    # 65504 is the largest half float; the publisher's radiance is stored as such.
    colour = np.nan_to_num(colour.astype(np.float32), nan=0.0, posinf=65504.0, neginf=0.0)
    scale = np.float32(1)
    if known.any():
        # CCIR 601's weights of red, green and blue, as in Hypersim's own tone mapping.
        brightness = (colour @ np.array([0.3, 0.59, 0.11], np.float32))[known]
        bright = float(np.percentile(brightness, BRIGHT_PERCENTILE))
        scale = np.float32(0 if bright < DARK else BRIGHT_VALUE ** (1 / GAMMA) / bright)
    image = np.clip(np.maximum(colour * scale, 0) ** np.float32(GAMMA), 0, 1)
    return (image * 255).astype(np.uint8)  # truncated, as the published images


def _rows(path: Path, columns: Sequence[str]) -> Iterator[list[str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}; it is part of the publisher's repository apple/ml-hypersim") from error
    table = csv.DictReader(io.StringIO(text))
    if missing := set(columns) - {*(table.fieldnames or ())}:
        raise DataError(f"{path}: no column {', '.join(sorted(missing))}")
    for number, row in enumerate(table, 2):
        values = [row[column] for column in columns]
        if None in values:
            raise DataError(f"{path}, line {number}: cut off")
        yield values
