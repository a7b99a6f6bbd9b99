"""Writing what the readers read: 8-bit RGB and 16-bit grey PNGs, and files taken over as they are."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from marigold.data.errors import DataError, MissingDataError
from marigold.files import atomic_file, write_atomically

PNG_LEVEL = 4  # of 9: within 3 % of the size of Pillow's default, 6, in a third of the time


def write_png(path: Path, pixels: np.ndarray) -> int:
    """Write uint8 (H, W, 3) or uint16 (H, W) atomically and return the size in bytes."""
    with io.BytesIO() as file:
        Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", compress_level=PNG_LEVEL)
        return write_atomically(path, file.getvalue())


def to_millimetres(depth: np.ndarray, known: np.ndarray, *, rounded: bool = False) -> tuple[np.ndarray, int]:
    """Metres as uint16 millimetres, 0 where unknown; and how many known pixels did not fit.

    A depth that is not finite, not positive or 65.536 m and more has no 16-bit value and becomes 0. Truncated,
    as the published Hypersim was, unless `rounded`.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        exact = np.rint(depth * 1000) if rounded else depth * 1000
        fits = known & np.isfinite(depth) & (depth > 0) & (exact < 65536)
        millimetres = np.where(fits, exact, 0).astype(np.uint16)
    return millimetres, int((known & ~fits).sum())


def raw_folder(raw: str) -> Path:
    """The folder of the publisher's files; raises MissingDataError if there is none."""
    if not Path(raw).is_dir():
        raise MissingDataError(f"{raw}: no such folder; give the publisher's files by raw=DIR, or source=archive")
    return Path(raw)


def take_over(source: Path, target: Path) -> tuple[int, int]:
    """Make `target` the same file: a hard link if the file system can, else a copy.

    Returns the size and the bytes that it took on the disk. Raises DataError if the source is empty.
    """
    size = source.stat().st_size
    if size == 0:
        raise DataError(f"{source}: an empty file")
    if target.exists() and target.samefile(source):
        return size, 0
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), target)  # resolved: a hard link to a symbolic link is one itself
    except OSError:  # another file system, or one without links
        with open(source, "rb") as original, atomic_file(target) as copy:
            shutil.copyfileobj(original, copy)
        return size, size
    return size, 0
