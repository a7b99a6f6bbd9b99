"""A data set: the samples of a split list, read from a storage, with depth in metres."""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch

from marigold.data.archive_index import relative_name
from marigold.data.decode import decode_depth_png, decode_photo
from marigold.data.errors import DataError, MissingDataError
from marigold.data.splits import Line, describe_split, evenly_spaced, log_official, part_of_split, read_split
from marigold.data.storage import Storage, open_storage
from marigold.types import Camera, DepthSample

log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True, repr=False)
class DepthDataset(Sequence):
    """RGB-D pairs of one split list: a sequence of DepthSample, read on access.

    name: for messages and results. root: folder, tar or zip. split_list: text file, one sample a line.
    min_depth, max_depth: metres; a pixel counts where min_depth < depth < max_depth.
    image_size: (height, width) that every image must have, or None.
    crop: (height, width) of the KITTI benchmark crop, or None.
    cameras: shell pattern of the images' names -> [fx, fy, cx, cy], see `Camera`; the last that matches counts.
    limit: take that many samples, evenly spaced; all, with a warning, if there are fewer.
    official_split: the name in KNOWN_SPLITS of the list that this should be.
    how_to_get: the commands that download and prepare the data, for the error message when it is missing.

    A subclass sets the columns of its list that name files (the first one the image), the column of the depth and its
    unit, and overrides `_read_depth` or `_is_valid` where these are not enough. `space` is `metric_depth`, unless
    `depth` represents labels that are right up to scale and shift (`marigold.data.teacher`). A sample without a valid
    pixel is returned as it is; callers check for that.
    Raises DataError, naming set, sample and file, for a file that is missing or broken.
    """

    depth_column: ClassVar[int] = 1
    file_columns: ClassVar[tuple[int, ...]] = (0, 1)
    units_per_metre: ClassVar[float] = 1000.0

    name: str
    root: str
    split_list: str
    min_depth: float
    max_depth: float
    space: str = field(default="metric_depth", init=False)
    image_size: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    cameras: dict[str, list[float]] | None = None
    limit: int | None = None
    official_split: str | None = None
    how_to_get: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.min_depth < self.max_depth:
            found = f"{self.min_depth} and {self.max_depth}"
            raise ValueError(f"{self.name}: expected 0 <= min_depth < max_depth, got {found}")
        for pattern, values in (self.cameras or {}).items():
            if len(values) != 4 or not all(map(math.isfinite, values)) or min(values[:2]) <= 0:
                raise ValueError(f"{self.name}: cameras['{pattern}']={values}: expected [fx, fy, cx, cy] in pixels")
        try:
            lines = self._read_list()
        except MissingDataError as error:
            raise self._missing(str(error)) from error
        self.split = describe_split(self.split_list or self.root, lines, self.official_split)
        log_official(self.split)
        # Without the frames that are listed without ground truth, as in the published counts (697 -> 652).
        self._lines = [line for line in lines if line[self.depth_column] != "None"]
        count, limit = len(self._lines), self.limit
        if limit is not None and limit > count:
            log.warning("%s: limit=%d, but there are only %d samples; all are taken", self.name, limit, count)
        elif limit is not None and limit < count:
            self._lines = evenly_spaced(self._lines, limit)
            self.split = part_of_split(self.split, self._lines)

    @property
    def names(self) -> list[str]:
        """The samples' names, in order: the first column, unique in the set."""
        return [line[0] for line in self._lines]

    @cached_property
    def storage(self) -> Storage:
        """The files, opened when first needed: training from cached latents reads no image."""
        try:
            return self._open(self.root)
        except MissingDataError as error:
            raise self._missing(str(error)) from error

    @cached_property
    def content(self) -> dict[str, str]:
        """Hashes of the samples' sources; a run or cache made from other samples is not resumed."""
        # In their order, unlike the canonical hash of the split: the order decides which samples a seed draws.
        lines = "".join(f"{' '.join(line)}\n" for line in self._lines)
        return {"lines": hashlib.sha256(lines.encode()).hexdigest()}

    def check_files(self) -> None:
        """Look up every listed file in the storage, without reading it, and read the first sample.

        Raises MissingDataError with the number of missing files and the first of them, and DataError for a first
        sample that is broken.
        """
        listed = [line[column] for line in self._lines for column in self.file_columns]
        there = set(self.storage.names())
        if absent := [name for name in listed if relative_name(name) not in there]:
            raise self._missing(
                f"{self.root}: {len(absent):,} of {len(listed):,} listed files are missing, first {absent[0]}"
            )
        self[0]  # so that a wrong format or size is found now, and not in the middle of the first epoch

    def _read_list(self) -> list[Line]:
        """The lines of the list, in order."""
        return read_split(self.split_list, columns=max(self.file_columns) + 1)

    def _missing(self, what: str) -> MissingDataError:
        get = f". To get it:\n    {self.how_to_get}" if self.how_to_get else ""
        return MissingDataError(f"{what}. For data in another folder: paths.data=DIR{get}")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> DepthSample:  # type: ignore[override]
        line = self._lines[index]
        try:
            image = self._decoded(line[0], decode_photo)
            size = image.shape[:2]
            if self.image_size is not None and size != tuple(self.image_size):
                raise DataError(f"{line[0]}: image of {_by(size)}, expected {_by(self.image_size)}")
            depth = self._read_depth(line, size)
            if depth.shape != size:
                raise DataError(f"{line[self.depth_column]}: depth of {_by(depth.shape)}, image of {_by(size)}")
            valid = self._is_valid(depth, line)
            # The last match wins: a user's additions come last in a configuration.
            fitting = [values for pattern, values in (self.cameras or {}).items() if fnmatchcase(line[0], pattern)]
            camera = Camera(*fitting[-1]) if fitting else None
            if self.crop is not None:
                # After the validity: DIODE's mask is of the whole image.
                window = benchmark_crop(size, self.crop)
                image, depth, valid = image[window], depth[window], valid[window]
                if camera is not None:
                    camera = replace(camera, cx=camera.cx - window[1].start, cy=camera.cy - window[0].start)
        except DataError as error:
            raise DataError(f"{self.name}, sample {line[0]!r}: {error}") from error
        # 0 where unknown: infinity or not-a-number would survive a product with a mask.
        known = np.isfinite(depth) & (depth > 0)
        return DepthSample(
            name=line[0],
            # Divided in place: an image of ETH3D takes 290 MB as float32.
            image=torch.from_numpy(image).permute(2, 0, 1).contiguous().to(torch.float32).div_(255),
            depth=torch.from_numpy(np.where(known, depth, np.float32(0)))[None],
            valid=torch.from_numpy(np.ascontiguousarray(valid))[None],
            camera=camera,
        )

    def _open(self, root: str) -> Storage:
        return open_storage(root)

    def _read_depth(self, line: Line, size: tuple[int, ...]) -> np.ndarray:
        """Depth in metres, float32 (H, W); `size` is the image's (H, W)."""
        depth = self._decoded(line[self.depth_column], decode_depth_png)
        return depth.astype(np.float32) / np.float32(self.units_per_metre)

    def _is_valid(self, depth: np.ndarray, line: Line) -> np.ndarray:
        """Which pixels count, bool (H, W)."""
        return np.isfinite(depth) & (depth > self.min_depth) & (depth < self.max_depth)

    def _decoded(self, name: str, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
        data = self.storage.read(name)
        try:
            return decode(data)
        except DataError as error:
            raise DataError(f"{name} in {self.root}: {error}") from error


def benchmark_crop(size: tuple[int, ...], crop: tuple[int, int]) -> tuple[slice, slice]:
    """The KITTI benchmark crop: the lowest `crop[0]` rows and the middle `crop[1]` columns."""
    # The lowest rows: KITTI's lidar sees from 2 degrees above the horizon downwards, so the upper ones have no depth.
    top, left = size[0] - crop[0], (size[1] - crop[1]) // 2
    if top < 0 or left < 0:
        raise DataError(f"a image of {_by(size)} is smaller than the crop of {_by(crop)}")
    return slice(top, size[0]), slice(left, left + crop[1])


def _by(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)
