"""Images without depth, and some model's predictions of them, as a training set."""

import hashlib
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.data.augmentation import resize
from marigold.data.base import DepthDataset
from marigold.data.errors import DataError, MissingDataError
from marigold.data.splits import Line
from marigold.data.storage import FolderStorage, Storage
from marigold.depth.mapping import MAPPING_OF, MAPPINGS
from marigold.pictures import PictureError, find_pictures, read_picture
from marigold.prediction_files import read_prediction, stored_names
from marigold.types import SPACES, DepthSample

# Metres that the ends of an affine label are put at: any range does, and in this one no mapping loses digits.
NEAR, FAR = 1.0, 10.0
BLOCK = 1 << 14  # bytes


@dataclass(eq=False, kw_only=True, repr=False)
class TeacherLabels(DepthDataset):
    """Images of any kind in a folder, each with a stored prediction of some model as its depth.

    root: folder of the images, which are read as by `scripts/infer.py`: any format, rotated by their EXIF tag.
    labels: folder of the predictions, `.npy` or 16-bit `.png`, found by the images' names
    (`marigold.prediction_files.stored_names`). split_list: names below `root`, one a line up to the first blank; None:
    every image below `root`, sorted. space: one of `marigold.types.SPACES`. unit: metres per count of a metric png.
    min_depth, max_depth: metres, of `metric_depth`: a pixel counts where min_depth < depth < max_depth. The other
    settings are as in DepthDataset.

    Values that are not finite are unknown, in `metric_depth` also 0 and less; in the affine spaces 0 is a value.
    Labels in metres teach every mapping. Affine ones teach the mapping of their space alone: `depth` is then made up
    by `stand_in_depth`, not measured; in a loss with `weighting: metres` its unit has no meaning.
    A label of another size than its image is resized by `fit_label`.
    """

    file_columns: ClassVar[tuple[int, ...]] = (0,)  # the label is found by the image's name
    depth_column: ClassVar[int] = 0

    labels: str
    space: str = field()  # required, unlike other sets' space
    split_list: str | None = None  # type: ignore[assignment]
    unit: float = 1.0
    min_depth: float = 0.0
    max_depth: float = math.inf

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise DataError(f"{self.name}: space={self.space}: expected one of {', '.join(SPACES)}")
        if not 0 < self.unit < math.inf:
            raise DataError(f"{self.name}: unit={self.unit}: expected the metres per count of a metric png")
        super().__post_init__()

    @cached_property
    def content(self) -> dict[str, str]:
        """Hashes of the list and of the labels: of each label its name, its size, and three blocks of 16 KiB."""
        # Start, middle and end distinguish two predictions; reading all 160 GB of a large set would take minutes.
        digest = hashlib.sha256()
        for label in self._labels.values():
            with Path(self.labels, label).open("rb", buffering=0) as file:
                size = file.seek(0, 2)
                digest.update(f"{label} {size}\n".encode())
                for start in (0, (size - BLOCK) // 2, size - BLOCK):
                    file.seek(max(0, start))
                    digest.update(file.read(BLOCK))
        return {**super().content, "labels": digest.hexdigest()}

    @cached_property
    def _labels(self) -> dict[str, str]:
        """Image -> its label, relative to `labels`; raises MissingDataError with the number of images without one."""
        there = set(FolderStorage(Path(self.labels)).names())
        stored = {name: [label for label in stored_names(name) if label in there] for name in self.names}
        if absent := [name for name, labels in stored.items() if not labels]:
            raise self._missing(
                f"{self.labels}: {len(absent):,} of {len(self):,} images have no label there, first {absent[0]}: "
                f"looked for {', '.join(stored_names(absent[0]))}"
            )
        of_label: dict[str, str] = {}
        for name, (label, *_) in stored.items():
            if (other := of_label.setdefault(label, name)) != name:
                raise DataError(
                    f"{self.name}: {label} in {self.labels} is the label of both {other} and {name}; "
                    f"{stored_names(name)[0]} would belong to the second alone"
                )
        return {name: labels[0] for name, labels in stored.items()}

    def _read_list(self) -> list[Line]:
        if self.split_list is not None:
            return super()._read_list()
        self._open(self.root)  # find_pictures would accept a file too
        try:
            pictures = find_pictures(self.root)
        except PictureError as error:
            raise MissingDataError(str(error)) from error
        # Predictions are often written below the images, as .png too.
        files = [file for file in pictures if not file.is_relative_to(self.labels)]
        return [(file.relative_to(self.root).as_posix(),) for file in files]

    def _open(self, root: str) -> Storage:
        if not Path(root).is_dir():
            raise MissingDataError(f"{root}: no such folder")
        return FolderStorage(Path(root))

    def __getitem__(self, index: int) -> DepthSample:  # type: ignore[override]
        name = self._lines[index][0]
        file = Path(self.labels, self._labels[name])
        try:
            image = read_picture(Path(self.root, name))
            values = read_prediction(file, self.space, self.unit)
            label = torch.from_numpy(values)[None]
            known = label.isfinite()
            if self.space == "metric_depth":
                known &= (label > self.min_depth) & (label < self.max_depth)
            label, known = fit_label(label, known, (image.shape[1], image.shape[2]))
            if self.space == "metric_depth":
                depth = torch.where(label.isfinite() & (label > 0), label, 0)
            else:
                depth = stand_in_depth(label, known, MAPPING_OF[self.space])
        except (PictureError, DataError) as error:
            raise DataError(f"{self.name}, sample {name!r}: {error}") from error
        return DepthSample(name, image, depth, known)


def fit_label(
    label: Float[Tensor, "1 h w"], known: Bool[Tensor, "1 h w"], size: tuple[int, int]
) -> tuple[Float[Tensor, "1 H W"], Bool[Tensor, "1 H W"]]:
    """A label and its known pixels, resized to its image's (H, W) `size`.

    Bilinear (antialiased where it shrinks), as a label of few pixels has no edges worth keeping; the nearest pixel
    where an unknown one would contribute. Raises DataError if one of label and image is wide and the other tall.
    """
    (height, width), (rows, columns) = size, label.shape[-2:]
    if (rows, columns) == size:
        return label, known
    if (height - width) * (rows - columns) < 0:  # resized all the same, it would silently teach nonsense
        raise DataError(
            f"label of {rows} x {columns}, image of {height} x {width}: one of them is rotated; images are rotated by "
            "their EXIF tag"
        )
    smooth = resize(torch.where(known, label, 0), size, antialias=True)
    gap = resize((~known).float(), size, antialias=True) > 0
    nearest = resize(label, size, antialias=False)
    return torch.where(gap, nearest, smooth), resize(known.float(), size, antialias=False) > 0.5


def stand_in_depth(
    label: Float[Tensor, "1 H W"], known: Bool[Tensor, "1 H W"], mapping: str
) -> Float[Tensor, "1 H W"]:
    """Depth whose values under `mapping` are the label up to a positive scale and a shift; 0 where it is unknown.

    With m the mapping, v the label and q from min m to max m over NEAR to FAR metres:
    m(depth) = q_min + (v - v_min) / (v_max - v_min) (q_max - q_min). The target, which is m(depth) normalised by its
    quantiles, is then the label normalised by its own, since scale and shift cancel. Raises DataError for a constant
    label.
    """
    values = label[known].double()
    if len(values) == 0:
        return torch.zeros_like(label)
    smallest, largest = values.aminmax()
    if smallest == largest:
        raise DataError(f"a label of {smallest:g} everywhere, which has no range to normalise; leave this image out")
    low, high = MAPPINGS[mapping].of_depth(torch.tensor([NEAR, FAR], dtype=torch.float64)).sort().values
    # In float64: with far outliers all other values share a small part of the range.
    mapped = low + (label.double() - smallest) / (largest - smallest) * (high - low)
    return torch.where(known, MAPPINGS[mapping].to_depth(mapped).float(), 0)
