"""NYUv2's labelled part: the publisher's .mat file -> image, raw and filled depth of 1449 images, two lists."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import h5py
import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from marigold.data.errors import DataError
from marigold.data.preparation.images import PNG_LEVEL, to_millimetres, write_png
from marigold.data.preparation.in_place import prepare_archive
from marigold.data.preparation.journal import Converted
from marigold.data.preparation.layouts import lines_of, plan_lists
from marigold.data.preparation.lists import PreparationSummary
from marigold.data.preparation.runner import run


def prepare_nyu(
    raw: str, out: str, workers: int, dry_run: bool, max_broken: float, archive: str | None
) -> PreparationSummary:
    """Convert `raw`/nyu_depth_v2_labeled.mat, split by `raw`/splits.mat; or list a published `archive`."""
    if archive is not None:
        return prepare_archive("nyu", archive, out, dry_run, split=None)
    mat, split_file = Path(raw, "nyu_depth_v2_labeled.mat"), Path(raw, "splits.mat")
    scenes, splits = read_scenes(mat), read_split_ids(split_file)
    # An id is an image's position in the .mat file, from 1.
    if sorted(i for ids in splits.values() for i in ids) != list(range(1, len(scenes) + 1)):
        raise DataError(f"{split_file}: train and test are not the {len(scenes)} images, each once")
    names = [f"{split}/{scenes[i - 1]}/rgb_{i:04d}.png" for split, ids in splits.items() for i in ids]
    return run(
        partial(convert, mat),
        plan_lists("nyu", lines_of("nyu", names)),
        out=Path(out),
        settings={"dataset": "nyu", "png_compress_level": PNG_LEVEL},
        workers=workers,
        dry_run=dry_run,
        max_broken=max_broken,
    )


def convert(mat: Path, item: str, out: Path) -> Converted:
    """Write image, raw and filled depth of the item `split/scene/rgb_id.png`."""
    number = int(item[-8:-4])
    image = _slice(mat, "images", number)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise DataError(f"{mat}, image {number}: expected 8-bit RGB, got {image.dtype} {image.shape}")
    files = {item: write_png(out / item, image)}
    for key, kind in (("rawDepths", "depth"), ("depths", "filled")):
        depth = _slice(mat, key, number)
        if depth.dtype.kind != "f" or depth.shape != image.shape[:2]:
            raise DataError(f"{mat}, {key} {number}: {depth.dtype} {depth.shape}, image {image.shape}")
        # All known: the sensor's 0 stays 0. Rounded: the publisher gives floats, not truncated integers.
        millimetres, _ = to_millimetres(depth, np.ones(depth.shape, bool), rounded=True)
        name = item.replace("/rgb_", f"/{kind}_")
        files[name] = write_png(out / name, millimetres)
    return Converted(files)


def read_scenes(mat: Path) -> list[str]:
    """The name of each image's scene: the file holds references to strings of 16-bit characters."""
    with _reading(f"{mat}, scenes"):
        file = _open(mat)
        references = np.ravel(file["scenes"][()])
        return ["".join(map(chr, np.ravel(file[reference][()]))) for reference in references]


def read_split_ids(splits: Path) -> dict[str, list[int]]:
    """The 1-based image ids of `train` and `test`."""
    with _reading(f"{splits}, trainNdxs and testNdxs"):
        content = loadmat(str(splits))
        return {split: [int(i) for i in np.ravel(content[f"{split}Ndxs"])] for split in ("train", "test")}


def _slice(mat: Path, key: str, number: int) -> np.ndarray:
    """One image as (H, W) or (H, W, C): MATLAB's column-major order reversed every axis."""
    with _reading(f"{mat}, {key} {number}"):
        # One image at a time: all of the file's arrays take 2.8 GB.
        return np.asarray(_open(mat)[key][number - 1]).T


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Raise DataError for whatever h5py and loadmat raise on a missing or broken file or a missing key."""
    try:
        yield
    # NotImplementedError: loadmat does not read version 7.3, which is HDF5.
    except (OSError, ValueError, KeyError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{what}: not readable ({error})") from error


@lru_cache(maxsize=1)
def _open(mat: Path) -> h5py.File:
    return h5py.File(mat, "r")
