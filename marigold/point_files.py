"""Known distances in an image: files of points, found by the image's name."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from marigold.config import ConfigError
from marigold.depth.metric import MOST_POINTS
from marigold.prediction_files import Job, read_prediction
from marigold.types import Camera

METHODS = ("residual", "fit", "guided")
HEADER = ["x", "y", "metres"]
Size = tuple[int, int]  # height, width


class PointsError(ValueError):
    """A missing or invalid file of points; the message names file, line and point."""


class Known(NamedTuple):
    """Points in pixels, (0, 0) the centre of the first pixel, and their distances."""

    places: Float[Tensor, "N 2"]
    metres: Float[Tensor, "N"]


@dataclass(frozen=True)
class PointFiles:
    """`points` in configs/infer.yaml: the source of known distances, their meaning, and the method that uses them."""

    from_: str | None
    reference: str | None
    method: str | None
    unit: float
    distance: str

    def __post_init__(self) -> None:
        """Check settings before the first prediction; raises ConfigError."""
        if self.from_ and self.reference:
            raise ConfigError("points.from and points.reference: give one of them")
        for key, allowed in (("method", (None, *METHODS)), ("distance", ("planar", "ray"))):
            if getattr(self, key) not in allowed:
                expected = ", ".join(filter(None, allowed))
                raise ConfigError(f"points.{key}={getattr(self, key)}: expected one of {expected}")
        if self.reference and self.method not in (None, "fit"):
            raise ConfigError(f"points.method={self.method}: a reference implies fit; leave the method out")
        if not 0 < self.unit < math.inf:
            raise ConfigError(f"points.unit={self.unit}: expected metres per count, such as 0.001")
        for folder in (self.from_, self.reference):
            if folder is not None and not (folder and Path(folder).is_dir()):
                raise ConfigError(f"points: {folder!r}: no such folder")

    def __bool__(self) -> bool:
        return bool(self.from_ or self.reference)

    @property
    def chosen(self) -> str:
        """The method: fit for a reference, else the given one or residual."""
        return self.method or ("fit" if self.reference else "residual")

    def file_of(self, job: Job) -> Path:
        """The file of an image's points; raises PointsError unless there is exactly one."""
        endings = (".npy", ".png") if self.reference else (".csv", ".npy", ".png")
        folder = Path(self.reference or self.from_ or "")
        candidates = [folder / job.name.with_name(job.name.name + ending) for ending in endings]
        # A map of points may lie beside its image.
        found = [path for path in candidates if path.is_file() and path.resolve() != job.picture.resolve()]
        if len(found) != 1:
            what = "more than one file of points: " if found else "no file of points; looked for "
            raise PointsError(f"{job.picture}: {what}{', '.join(map(str, found or candidates))}")
        return found[0]

    def read(self, job: Job, size: Size, camera: Camera | None) -> Known:
        """The known points of an image of `size`, row by row, as planar depth.

        camera: of the image, where it is known; distances along the ray need it. Raises PointsError and PictureError.
        """
        path = self.file_of(job)
        if path.suffix == ".csv":
            rows = _rows_of_csv(path, size)
        else:
            rows = _rows_of_map(path, read_prediction(path, "metric_depth", self.unit), size, bool(self.reference))
        if not len(rows):
            raise PointsError(f"{path}: no known point")
        # Row by row, whatever the order in the file.
        ordered = torch.from_numpy(rows[np.lexsort((rows[:, 0], rows[:, 1]))].astype(np.float32))
        known = Known(ordered[:, :2], ordered[:, 2])
        if self.distance == "planar":
            return known
        if camera is None:
            raise PointsError(f"{job.picture}: points.distance=ray needs its camera, which is not known")
        return Known(known.places, planar_depth(known, camera))


def planar_depth(known: Known, camera: Camera) -> Float[Tensor, "N"]:
    """z of points whose distance is measured along their rays: d = z |((x - cx) / fx, (y - cy) / fy, 1)|."""
    # A camera counts pixels from the corner, points from the first pixel's centre.
    x, y = (known.places.double() + 0.5).unbind(1)
    slopes = torch.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, torch.ones_like(x)])
    return (known.metres.double() / slopes.norm(dim=0)).float()


def _rows_of_csv(path: Path, size: Size) -> np.ndarray:
    """(N, 3) of x, y, metres."""
    try:
        header, *lines = path.read_text(encoding="utf-8-sig").splitlines() or [""]  # -sig: of spreadsheets
    except UnicodeDecodeError as error:
        raise PointsError(f"{path}: not a text file: {error}") from error
    if [cell.strip() for cell in header.split(",")] != HEADER:
        raise PointsError(f"{path}, line 1: expected the header {','.join(HEADER)}, got {header!r}")
    line_of: dict[tuple[float, float], int] = {}
    rows = []
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        try:
            x, y, metres = map(float, line.split(","))
        except ValueError:
            raise PointsError(f"{path}, line {number}: expected {','.join(HEADER)}, got {line!r}") from None
        where = f"{path}, line {number}"
        _check(where, (x, y), metres, size)
        if (x, y) in line_of:
            raise PointsError(f"{where}: the point ({x:g}, {y:g}) was given in line {line_of[x, y]}")
        line_of[x, y] = number
        rows.append((x, y, metres))
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def _rows_of_map(path: Path, depth: Float[np.ndarray, "h w"], size: Size, dense: bool) -> np.ndarray:
    """(N, 3) of x, y, metres where a map is not 0; of a dense one, of any size, about `MOST_POINTS` on a grid."""
    if depth.shape != size and not dense:
        raise PointsError(f"{path}: {_by(depth.shape)} pixels, and the image has {_by(size)} (height x width)")
    y, x = np.nonzero(depth)
    metres = depth[y, x].astype(np.float64)
    for k in np.flatnonzero(~((metres > 0) & np.isfinite(metres)))[:1]:
        _check(str(path), (float(x[k]), float(y[k])), float(metres[k]), depth.shape)
    if dense:
        step = math.ceil(math.sqrt(len(metres) / MOST_POINTS))
        kept = (y % step == step // 2) & (x % step == step // 2)
        y, x, metres = y[kept], x[kept], metres[kept]
    # Two sizes agree at the corners of their pixels, not at the centres.
    (height, width), (rows, columns) = size, depth.shape
    return np.stack([(x + 0.5) * (width / columns) - 0.5, (y + 0.5) * (height / rows) - 0.5, metres], axis=1)


def _check(where: str, place: tuple[float, float], metres: float, size: Sequence[int]) -> None:
    # Written so that NaN fails, too.
    point = f"{where}: the point ({place[0]:g}, {place[1]:g})"
    if not (-0.5 <= place[0] <= size[1] - 0.5 and -0.5 <= place[1] <= size[0] - 0.5):
        raise PointsError(f"{point} is not in the image of {_by(size)} (height x width); x, y count pixels from 0")
    if not 0 < metres < math.inf:
        raise PointsError(
            f"{point} has {metres:g} metres; expected a positive number (unknown: leave it out, 0 in maps)"
        )


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))
