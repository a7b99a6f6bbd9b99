"""KITTI, ETH3D, ScanNet and DIODE, from the publishers' downloads or from the published evaluation archives."""

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from marigold.data.decode import decode_photo
from marigold.data.errors import DataError
from marigold.data.preparation.in_place import files_of, list_files, prepare_archive
from marigold.data.preparation.layouts import LAYOUTS, lines_of, plan_lists
from marigold.data.preparation.lists import PreparationSummary, check_space, existing
from marigold.data.splits import read_split
from marigold.files import atomic_file, write_atomically

JPEG_QUALITY = 95  # of ScanNet's shrunk images


def prepare_benchmark(
    dataset: str,
    raw: str,
    out: str,
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
    layout, folder, place = LAYOUTS[dataset], Path(raw), Path(out)
    # Linked folders included: scenes are often links to another disk.
    found = (Path(at, file) for at, _, files in os.walk(folder, followlinks=True) for file in files)
    sources = {layout.name_of(path.relative_to(folder).as_posix()): path for path in sorted(found)}
    if split_list is not None:
        lines = {line[0]: " ".join(line) for line in read_split(split_list, columns=2)}
    elif layout.drawn:
        raise DataError(
            f"{dataset}: its images were drawn at random, so no rule lists them. Give prepare.split_list=FILE "
            "(one `image depth` line an image), or source=archive, the published evaluation archive"
        )
    else:
        lines = lines_of(dataset, sources)
    if not lines:
        raise DataError(f"{folder}: no images of {dataset}; give the publisher's unpacked files as raw=DIR")
    listed = {name for line in lines.values() for name in files_of(line)}
    # An empty file is as good as a missing one.
    wanted = {name: path for name, path in sources.items() if name in listed and path.stat().st_size}
    to_write = [path.stat().st_size for name, path in wanted.items() if not (place / name).exists()]
    needed = sum(to_write) if folder.stat().st_dev != existing(place).stat().st_dev else 0  # else links suffice
    check_space(place, needed)

    def provide() -> int:
        sizes = {name: photo_size if name in lines else None for name in wanted}
        bar = tqdm(wanted.items(), unit="file", desc=dataset)
        return sum(take_over(path, place / name, sizes[name]) for name, path in bar)

    already = sum(all((place / name).exists() for name in files_of(line)) for line in lines.values())
    lists = plan_lists(dataset, lines, split)
    summary = list_files(lists, wanted, provide, raw, place, dry_run, max_broken)
    return replace(summary, already=already, needed=needed)


def take_over(source: Path, target: Path, size: tuple[int, int] | None) -> int:
    """Make `target` the same file, by a hard link where the file system has them; returns the bytes written.

    size: (height, width) that the image is shrunk to, or None. Raises DataError if it cannot be decoded.
    """
    if size is not None and (small := shrunk(source, size)) is not None:
        return write_atomically(target, small)
    if target.exists() and target.stat().st_size == source.stat().st_size:
        return 0
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)  # resolved: a hard link to a symbolic link is one itself
    except OSError:  # another file system, or one without links
        with open(source, "rb") as original, atomic_file(target) as copy:
            shutil.copyfileobj(original, copy)
        return target.stat().st_size
    return 0


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
