"""NYUv2's labelled part: the publisher's .mat file -> image, raw and filled depth of 1449 images, two lists."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from marigold.data.errors import DataError
from marigold.data.preparation.images import PNG_LEVEL, raw_folder, to_millimetres, write_png
from marigold.data.preparation.in_place import prepare_archive
from marigold.data.preparation.journal import Outcome
from marigold.data.preparation.layouts import lines_of, plan_lists
from marigold.data.preparation.lists import PreparationSummary
from marigold.data.preparation.runner import Preparation, run

LABELED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"


def prepare_nyu(
    raw: str,
    out: str,
    workers: int,
    dry_run: bool,
    max_broken: float,
    archive: str | None,
) -> PreparationSummary:
    """Convert `raw`/nyu_depth_v2_labeled.mat, split by `raw`/splits.mat; or list a published `archive`."""
    if archive is not None:
        return prepare_archive("nyu", archive, out, dry_run, split=None)
    return run(NyuImages(raw_folder(raw), Path(out)), workers, dry_run, max_broken)


class NyuImages(Preparation):
    """The images as items `split/scene/rgb_id.png`; ids are the 1-based positions in the .mat file."""

    def __init__(self, raw: Path, out: Path) -> None:
        self.mat, self.out = raw / LABELED, out
        scenes = read_scenes(self.mat)
        splits = read_split_ids(raw / SPLITS)
        every = Counter(number for ids in splits.values() for number in ids)
        if sorted(every.elements()) != list(range(1, len(scenes) + 1)):
            raise DataError(f"{raw / SPLITS}: train and test are not the {len(scenes)} images, each once")
        names = [f"{split}/{scenes[i - 1]}/rgb_{i:04d}.png" for split, ids in splits.items() for i in ids]
        self.lists = plan_lists("nyu", lines_of("nyu", names))
        self.settings = {"dataset": "nyu", "png_compress_level": PNG_LEVEL}

    def convert(self, item: str, out: Path) -> Outcome:
        number = int(item[-8:-4])  # of .../rgb_0001.png
        photo = _slice(self.mat, "images", number)
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise DataError(f"{self.mat}, image {number}: expected 8-bit RGB, got {photo.dtype} {photo.shape}")
        files = {item: write_png(out / item, photo)}
        for key, kind in (("rawDepths", "depth"), ("depths", "filled")):
            depth = _slice(self.mat, key, number)
            if depth.dtype.kind != "f" or depth.shape != photo.shape[:2]:
                raise DataError(f"{self.mat}, {key} {number}: {depth.dtype} {depth.shape}, photo {photo.shape}")
            # All known: the sensor's 0 stays 0. Rounded: the publisher gives floats, no integers that were cut.
            millimetres, _ = to_millimetres(depth, np.ones(depth.shape, bool), rounded=True)
            name = item.replace("/rgb_", f"/{kind}_")
            files[name] = write_png(out / name, millimetres)
        return Outcome(item, files, sum(files.values()))


def read_scenes(mat: Path) -> list[str]:
    """The scene's name of each image: the file holds references to strings of 16-bit characters."""
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
    """Raise DataError for all that h5py and loadmat raise for a file that is broken, no .mat or without the key."""
    try:
        yield
    # NotImplementedError: loadmat does not read version 7.3, which is HDF5.
    except (OSError, ValueError, KeyError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{what}: not readable ({error})") from error


@lru_cache(maxsize=1)
def _open(mat: Path) -> h5py.File:
    return h5py.File(mat, "r")
