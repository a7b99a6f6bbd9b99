"""A split list + a storage + two hooks = a sequence of samples in metres."""

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
import torch

from marigold.data.archive_index import relative_name
from marigold.data.decode import decode_depth_png, decode_photo
from marigold.data.errors import DataError, MissingDataError
from marigold.data.splits import Line, describe_split, evenly_spaced, log_official, part_of_split, read_split
from marigold.data.storage import Storage, open_storage
from marigold.types import Camera, DepthSample

log = logging.getLogger(__name__)


class DepthDataset(Sequence):
    """RGB-D pairs of one split list: a sequence of DepthSample, read on access.

    name: for messages and results. root: folder, tar or zip. split_list: text file, one sample a line.
    min_depth, max_depth: metres; a pixel counts where min_depth < depth < max_depth.
    image_size: (height, width) that every image must have, or None.
    crop: (height, width) of the KITTI benchmark crop, or None.
    cameras: shell pattern of the images' names -> [fx, fy, cx, cy], see `Camera`; the last that fits counts.
    limit: take that many samples, evenly spaced; all, with a warning, if there are fewer.
    official_split: the name in KNOWN_SPLITS of the list that this should be.
    how_to_get: the commands that download and prepare the data, for the error message when it is missing.

    A set defines which columns of its list name files (the first one the image) and which the depth, the depth's
    unit, and, where these do not do, the two hooks `_read_depth` and `_is_valid`. `space` is `metric_depth`, unless
    `depth` stands for labels that are right up to scale and shift (`marigold.data.teacher`). A sample without a valid
    pixel is returned as is; callers check for one.
    Raises DataError, naming set, sample and file, for whatever is missing or broken.
    """

    depth_column = 1
    file_columns: tuple[int, ...] = (0, 1)
    units_per_metre = 1000.0
    space: str = "metric_depth"

    def __init__(
        self,
        *,
        name: str,
        root: str,
        split_list: str,
        min_depth: float,
        max_depth: float,
        image_size: tuple[int, int] | None = None,
        crop: tuple[int, int] | None = None,
        cameras: dict[str, list[float]] | None = None,
        limit: int | None = None,
        official_split: str | None = None,
        how_to_get: str | None = None,
    ) -> None:
        if not 0 <= min_depth < max_depth:
            raise ValueError(f"{name}: expected 0 <= min_depth < max_depth, got {min_depth} and {max_depth}")
        self.name = name
        self.min_depth, self.max_depth = min_depth, max_depth
        self.image_size, self.crop = image_size, crop
        for pattern, values in (cameras or {}).items():
            if len(values) != 4 or not all(map(math.isfinite, values)) or min(values[:2]) <= 0:
                raise ValueError(f"{name}: cameras['{pattern}']={values}: expected [fx, fy, cx, cy] in pixels")
        self.cameras = {pattern: Camera(*values) for pattern, values in (cameras or {}).items()}
        self.root, self.how_to_get = root, how_to_get
        try:
            lines = self._read_list(split_list)
        except MissingDataError as error:
            raise self._missing(str(error)) from error
        self.split = describe_split(split_list, lines, official_split)
        log_official(self.split)
        # Frames that were listed without ground truth; the published counts leave them out too (697 -> 652).
        self._lines = [line for line in lines if line[self.depth_column] != "None"]
        self.dropped = len(lines) - len(self._lines)
        if limit is not None and limit > len(self._lines):
            log.warning("%s: limit=%d, and there are %d samples: all are taken", name, limit, len(self._lines))
        elif limit is not None and limit < len(self._lines):
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
        """Hashes of what the samples are made of; a run or cache made from other samples is not resumed."""
        # In their order, unlike the canonical hash of the split: it decides what a seed draws.
        lines = "".join(f"{' '.join(line)}\n" for line in self._lines)
        return {"lines": hashlib.sha256(lines.encode()).hexdigest()}

    def check_files(self) -> None:
        """Look up every listed file in the storage, without reading it, and read the first sample.

        Raises MissingDataError with the number of files that are not there and the first of them, and DataError
        for a first sample that is broken.
        """
        listed = [line[column] for line in self._lines for column in self.file_columns]
        there = set(self.storage.names())
        if absent := [name for name in listed if relative_name(name) not in there]:
            raise self._missing(
                f"{self.root}: {len(absent):,} of {len(listed):,} listed files are not there, first {absent[0]}"
            )
        self[0]  # a wrong format or size is found now, and not in the middle of the first epoch

    def _read_list(self, split_list: str) -> list[Line]:
        """The lines of the list, in order."""
        return read_split(split_list, columns=max(self.file_columns) + 1)

    def _missing(self, what: str) -> MissingDataError:
        get = f". To get it:\n    {self.how_to_get}" if self.how_to_get else ""
        return MissingDataError(f"{what}. Data that lies elsewhere: paths.data=DIR{get}")

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> DepthSample:  # type: ignore[override]
        line = self._lines[index]
        try:
            image = self._decoded(line[0], decode_photo)
            size = image.shape[:2]
            if self.image_size is not None and size != tuple(self.image_size):
                raise DataError(f"{line[0]}: photo of {_by(size)}, expected {_by(self.image_size)}")
            depth = self._read_depth(line, size)
            if depth.shape != size:
                raise DataError(f"{line[self.depth_column]}: depth of {_by(depth.shape)}, photo of {_by(size)}")
            valid = self._is_valid(depth, line)
            # The last match wins: a user's additions come last in a configuration.
            fitting = [known for pattern, known in self.cameras.items() if fnmatchcase(line[0], pattern)]
            camera = fitting[-1] if fitting else None
            if self.crop is not None:
                # After the validity: DIODE's mask is of the whole image.
                window = benchmark_crop(size, self.crop)
                image, depth, valid = image[window], depth[window], valid[window]
                if camera is not None:
                    camera = replace(camera, cx=camera.cx - window[1].start, cy=camera.cy - window[0].start)
        except DataError as error:
            raise DataError(f"{self.name}, sample {line[0]!r}: {error}") from error
        # 0 for unknown: infinity or not-a-number would come through a product with a mask.
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
    # The lowest rows: KITTI's lidar sees from 2 degrees above the horizon downwards, so those above have no depth.
    top, left = size[0] - crop[0], (size[1] - crop[1]) // 2
    if top < 0 or left < 0:
        raise DataError(f"a photo of {_by(size)} is smaller than the crop of {_by(crop)}")
    return slice(top, size[0]), slice(left, left + crop[1])


def _by(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)
