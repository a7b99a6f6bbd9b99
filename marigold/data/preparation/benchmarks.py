"""KITTI, ETH3D, ScanNet and DIODE, from the publishers' downloads or from the published evaluation archives."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from marigold.data.decode import decode_photo
from marigold.data.errors import DataError
from marigold.data.preparation.images import raw_folder, take_over
from marigold.data.preparation.in_place import prepare_archive
from marigold.data.preparation.journal import Outcome
from marigold.data.preparation.layouts import LAYOUTS, lines_of, plan_lists
from marigold.data.preparation.lists import PlannedList, PreparationSummary
from marigold.data.preparation.runner import Preparation, run
from marigold.data.splits import read_split
from marigold.files import write_atomically

JPEG_QUALITY = 95  # of ScanNet's shrunk images


def prepare_benchmark(
    dataset: str,
    raw: str,
    out: str,
    workers: int,
    dry_run: bool,
    max_broken: float,
    archive: str | None,
    split: str | None = None,
    split_list: str | None = None,
    photo_size: tuple[int, int] | None = None,
) -> PreparationSummary:
    """Link the publisher's files in `raw` into `out` under the names of the evaluation archive, or list an `archive`.

    dataset: one of LAYOUTS. split: which of its lists this is, for KITTI. split_list: the images, for a set whose
    images were drawn at random. photo_size: (height, width) of the depth, to which larger images are shrunk.
    """
    if archive is not None:
        return prepare_archive(dataset, archive, out, dry_run, split)
    layout, folder = LAYOUTS[dataset], raw_folder(raw)
    files = {layout.name_of(name): folder / name for name in _names(folder)}
    if split_list is not None:
        lines = {line[0]: " ".join(line) for line in read_split(split_list, columns=2)}
    elif layout.drawn:
        raise DataError(
            f"{dataset}: its images were drawn at random, so no rule lists them. Give prepare.split_list=FILE "
            "(one `image depth` line an image), or source=archive, the published evaluation archive"
        )
    else:
        lines = lines_of(dataset, files)
    # A scene that was not unpacked would otherwise give a shorter list, not an error.
    absent = [scene for scene in layout.scenes if not any(f"/{scene}/" in image for image in lines)]
    if absent or not lines:
        raise DataError(f"{folder}: no images of {', '.join(absent) or dataset}; unpack {layout.unpack}")
    lists = plan_lists(dataset, lines, split)
    settings: dict[str, object] = {"dataset": dataset}  # linked files depend on nothing else
    if photo_size is not None:
        settings |= {"photo_size": list(photo_size), "jpeg_quality": JPEG_QUALITY}
    listed = {name: files.get(name) for line in lines.values() for name in line.split() if "/" in name}
    return run(TakenOver(Path(out), lists, settings, folder, listed, photo_size), workers, dry_run, max_broken)


@dataclass(frozen=True)
class TakenOver(Preparation):
    """One item per listed image; `files`: listed name -> the publisher's file in `raw`, None if it is not there."""

    out: Path
    lists: Sequence[PlannedList]
    settings: Mapping[str, object]
    raw: Path
    files: Mapping[str, Path | None]
    photo_size: tuple[int, int] | None

    def convert(self, item: str, out: Path) -> Outcome:
        files, written = {}, 0
        line = next(planned.lines[item] for planned in self.lists if item in planned.lines)
        for name in line.split():
            if "/" not in name:  # None, for no ground truth, or KITTI's focal length
                continue
            source = self.files[name]
            if source is None:
                raise DataError(f"missing: {name} in {self.raw}")
            small = shrunk(source, self.photo_size) if name == item and self.photo_size else None
            if small is None:
                files[name], taken = take_over(source, out / name)
            else:
                files[name] = taken = write_atomically(out / name, small)
            written += taken
        return Outcome(item, files, written)


def shrunk(source: Path, size: tuple[int, int]) -> bytes | None:
    """The image as a JPEG of `size` (height, width), or None if it has that size."""
    try:
        image = decode_photo(source.read_bytes())
    except DataError as error:
        raise DataError(f"{source}: {error}") from error
    if image.shape[:2] == size:
        return None
    # Pillow's bilinear filter widens with the factor, so nothing aliases; 4:4:4 keeps the colours' resolution.
    small = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    with io.BytesIO() as file:
        small.save(file, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
        return file.getvalue()


def _names(folder: Path) -> list[str]:
    """Every file below the folder, linked folders included."""
    found = os.walk(folder, followlinks=True)  # scenes are often links to another disk
    return sorted(Path(place, file).relative_to(folder).as_posix() for place, _, files in found for file in files)
