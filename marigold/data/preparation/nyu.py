"""NYUv2's labelled part: the publisher's .mat file -> photo, raw and filled depth of 1449 images, two lists."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import h5py
import numpy as np
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from marigold.data.errors import DataError
from marigold.data.preparation.archives import list_archive, nyu_lists
from marigold.data.preparation.images import encode_png, raw_folder, to_millimetres, write_file
from marigold.data.preparation.journal import Outcome
from marigold.data.preparation.runner import ListResult, PreparationSummary, RunOptions, run, write_list

LABELED, SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"


def prepare_nyu(
    raw: str,
    out: str,
    workers: int,
    dry_run: bool,
    max_broken: float,
    archive: str | None,
    png_compress_level: int,
) -> PreparationSummary:
    """Convert `raw`/nyu_depth_v2_labeled.mat, split by `raw`/splits.mat; or list a published `archive`."""
    if archive is not None:
        return list_archive(archive, out, nyu_lists, dry_run)
    return run(NyuImages(raw_folder(raw), Path(out), png_compress_level), RunOptions(workers, dry_run, max_broken))


class NyuImages:
    """The images as items `split/scene/id`; ids are the 1-based positions in the .mat file."""

    def __init__(self, raw: Path, out: Path, png_compress_level: int) -> None:
        self.mat, self.out, self.png_compress_level = raw / LABELED, out, png_compress_level
        scenes = read_scenes(self.mat)
        splits = read_split_ids(raw / SPLITS)
        every = Counter(number for ids in splits.values() for number in ids)
        if sorted(every.elements()) != list(range(1, len(scenes) + 1)):
            raise DataError(f"{raw / SPLITS}: train and test are not the {len(scenes)} images, each once")
        self._items = [f"{split}/{scenes[i - 1]}/{i:04d}" for split, ids in splits.items() for i in sorted(ids)]

    def items(self) -> Sequence[str]:
        return self._items

    def settings(self) -> Mapping[str, object]:
        return {"dataset": "nyu", "png_compress_level": self.png_compress_level}

    def convert(self, item: str, out: Path) -> Outcome:
        split, scene, number = item.split("/")
        photo = _slice(self.mat, "images", int(number))
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise DataError(f"{self.mat}, image {number}: expected 8-bit RGB, got {photo.dtype} {photo.shape}")
        files = write_file(out, f"{split}/{scene}/rgb_{number}.png", encode_png(photo, self.png_compress_level))
        for key, name in (("rawDepths", "depth"), ("depths", "filled")):
            depth = _slice(self.mat, key, int(number))
            if depth.dtype.kind != "f" or depth.shape != photo.shape[:2]:
                raise DataError(f"{self.mat}, {key} {number}: {depth.dtype} {depth.shape}, photo {photo.shape}")
            millimetres, _ = to_millimetres(depth, np.ones(depth.shape, bool), rounded=True)
            png = encode_png(millimetres, self.png_compress_level)
            files |= write_file(out, f"{split}/{scene}/{name}_{number}.png", png)
        return Outcome(item, files, sum(files.values()))

    def finish(self, outcomes: Mapping[str, Outcome]) -> Sequence[ListResult]:
        results = []
        for split in ("train", "test"):
            wanted = [item for item in self._items if item.startswith(f"{split}/")]
            kept = [_line(item) for item in wanted if item in outcomes]
            dropped = {"broken": len(wanted) - len(kept)} if len(kept) < len(wanted) else {}
            path = self.out / f"filename_list_{split}.txt"
            results.append(write_list(path, kept, f"nyu/{split}", dropped))
        return results


def read_scenes(mat: Path) -> list[str]:
    """The scene's name of each image: the file holds references to strings of 16-bit characters."""
    file = _open(mat)
    try:
        references = np.ravel(file["scenes"][()])
        return ["".join(map(chr, np.ravel(file[reference][()]))) for reference in references]
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{mat}: no readable `scenes` ({error})") from error


def read_split_ids(splits: Path) -> dict[str, list[int]]:
    """The 1-based image ids of `train` and `test`."""
    try:
        content = loadmat(str(splits))
        return {split: [int(i) for i in np.ravel(content[f"{split}Ndxs"])] for split in ("train", "test")}
    # What loadmat has for a file that is broken, no .mat, in HDF5 (NotImplementedError) or without the key.
    except (OSError, ValueError, KeyError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{splits}: no readable trainNdxs and testNdxs ({error})") from error


def _slice(mat: Path, key: str, number: int) -> np.ndarray:
    """One image as (H, W) or (H, W, C): MATLAB's column-major order reversed every axis."""
    try:
        return np.asarray(_open(mat)[key][number - 1]).T
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{mat}, {key} {number}: {error}") from error


@lru_cache(maxsize=1)
def _open(mat: Path) -> h5py.File:
    try:
        return h5py.File(mat, "r")
    except OSError as error:
        raise DataError(f"{mat}: {error}") from error


def _line(item: str) -> str:
    split, scene, number = item.split("/")
    return " ".join(f"{split}/{scene}/{name}_{number}.png" for name in ("rgb", "depth", "filled"))
