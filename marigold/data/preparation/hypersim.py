"""Hypersim: HDF5 radiance and distance -> tone-mapped image and planar depth, and the filtered lists.

The images are made by `hypersim_recipe`; here are the frames' files, the filter and the lists.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from marigold.data.decode import decode_hdf5
from marigold.data.errors import DataError
from marigold.data.preparation.hypersim_recipe import (
    NOT_AN_OBJECT,
    SPLITS,
    Matrix,
    planar_factor,
    read_cameras,
    released_frames,
    tone_map,
)
from marigold.data.preparation.images import PNG_LEVEL, to_millimetres, write_png
from marigold.data.preparation.journal import Outcome
from marigold.data.preparation.lists import PlannedList, PreparationSummary
from marigold.data.preparation.runner import Preparation, run
from marigold.data.storage import FolderStorage, Storage, open_storage


@dataclass(frozen=True)
class Filter:
    """Which frames are listed: depth range in metres, RGB range of 255, share of pixels without geometry.

    prs-eth/Marigold issue 158. The last test holds for `max_invalid_splits` only: no validation or test frame
    was dropped for it. `depth_range_of_known`: take the range over known pixels only, not over the zeros too.
    """

    min_depth_range: float
    min_rgb_range: int
    max_invalid: float
    max_invalid_splits: list[str]
    depth_range_of_known: bool

    def reason(self, split: str, facts: Mapping[str, int | float]) -> str:
        """Why a frame is dropped, or "" if it is kept."""
        # The published statistics have the zeros of unknown pixels in them, so a frame with any has its range from 0.
        nearest = facts["depth_min_known"] if self.depth_range_of_known else facts["depth_min"]
        if facts["depth_max"] - nearest < self.min_depth_range:
            return f"depth range < {self.min_depth_range:g} m"
        if facts["rgb_max"] - facts["rgb_min"] < self.min_rgb_range:
            return f"RGB range < {self.min_rgb_range}"
        if split in self.max_invalid_splits and facts["invalid_ratio"] > self.max_invalid:
            return f"more than {self.max_invalid:g} without geometry"
        return ""


def prepare_hypersim(
    raw: str,
    out: str,
    workers: int,
    dry_run: bool,
    max_broken: float,
    split_csv: str,
    camera_csv: str | None,
    scenes: list[str] | None,
    filter: Filter,
    official: str | None,
) -> PreparationSummary:
    """Convert the frames of `raw` (scene folders, or the publisher's zips) that `split_csv` releases.

    `camera_csv`: the publisher's metadata_camera_parameters.csv for each scene's own camera, or None for the one
    pinhole of the published training data. `scenes`: only these, or None for all. The filter decides on the
    lists alone, so changing it converts nothing again. `official`: compare the lists with the known ones of this
    set, or None.
    """
    lines: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    wanted = (frame for frame in released_frames(Path(split_csv)) if scenes is None or frame[1] in scenes)
    for split, scene, camera, frame in wanted:
        line = f"{scene}/rgb_{camera}_fr{frame}.png {scene}/depth_plane_{camera}_fr{frame}.png"
        lines[split][f"{split}/{scene}/{camera}/{frame}"] = line
    lists = []
    for split, found in lines.items():
        known = f"{official}/{split}" if official else None  # the rendered rooms are of this layout, and of no list
        lists += (
            [PlannedList(f"filename_list_{split}.txt", found, known, f"filename_meta_{split}.csv")] if found else []
        )
    if not lists:
        raise DataError(f"{split_csv}: no released frame" + (f" of the scenes {scenes}" if scenes else ""))
    settings, cameras = {"dataset": "hypersim", "cameras": "nominal", "png_compress_level": PNG_LEVEL}, None
    note = "one pinhole for all scenes, as published"
    if camera_csv is not None:
        settings["cameras"], cameras = "per scene", read_cameras(Path(camera_csv))
        note = f"each scene's own, {camera_csv}"
    job = HypersimFrames(Path(raw), Path(out), lists, settings, cameras, filter)
    return replace(run(job, workers, dry_run, max_broken), note=f"camera: {note}")


@dataclass(frozen=True)
class HypersimFrames(Preparation):
    """The released frames as items `split/scene/camera/frame`; cameras: by scene, None for the one pinhole."""

    raw: Path
    out: Path
    lists: Sequence[PlannedList]
    settings: Mapping[str, object]
    cameras: Mapping[str, Matrix] | None
    filter: Filter

    def convert(self, item: str, out: Path) -> Outcome:
        split, scene, camera, frame = item.split("/")
        storage, matrix = _open_scene(self.raw, scene), None
        if self.cameras is not None and (matrix := self.cameras.get(scene)) is None:
            raise DataError(f"prepare.camera_csv: no camera for scene {scene}")
        final = f"{scene}/images/scene_{camera}_final_hdf5/frame.{frame}"
        geometry = f"{scene}/images/scene_{camera}_geometry_hdf5/frame.{frame}"
        colour = _array(storage, f"{final}.color.hdf5", 3, "f")
        distance = _array(storage, f"{geometry}.depth_meters.hdf5", 2, "f")
        entity = _array(storage, f"{geometry}.render_entity_id.hdf5", 2, "i")
        # Compared here: numpy would broadcast some wrong sizes without a word.
        if not colour.shape[:2] == distance.shape == entity.shape or colour.shape[2] != 3:
            raise DataError(f"{final}: sizes differ: {colour.shape}, {distance.shape}, {entity.shape}")
        if (entity == 0).any():
            raise DataError(f"{geometry}.render_entity_id.hdf5: entity id 0, which the publisher never gives")

        known = entity != NOT_AN_OBJECT
        image = tone_map(colour, known)
        depth = distance * planar_factor(entity.shape[0], entity.shape[1], matrix)
        millimetres, unfit = to_millimetres(depth, known)
        files = {
            name: write_png(out / name, pixels)
            for kind, pixels in (("rgb", image), ("depth_plane", millimetres))
            for name in [f"{split}/{scene}/{kind}_{camera}_fr{frame}.png"]
        }
        return Outcome(item, files, sum(files.values()), _facts(image, millimetres, known, unfit))

    def why_dropped(self, item: str, facts: Mapping[str, int | float]) -> str:
        # By what the journal noted of the frame, so that another filter opens no image again.
        return self.filter.reason(item.partition("/")[0], facts)


def _facts(image: np.ndarray, millimetres: np.ndarray, known: np.ndarray, unfit: int) -> dict[str, int | float]:
    # Of the written millimetres, not of the floats: the filter must see what the reader will.
    positive = millimetres[millimetres > 0]
    return {
        "rgb_min": int(image.min()),
        "rgb_max": int(image.max()),
        "depth_min": int(millimetres.min()) / 1000,
        "depth_max": int(millimetres.max()) / 1000,
        "depth_min_known": int(positive.min()) / 1000 if positive.size else 0.0,
        "invalid_ratio": float(1 - known.mean()),
        "out_of_range": unfit,
    }


def _array(storage: Storage, name: str, ndim: int, kind: str) -> np.ndarray:
    data = storage.read(name)
    try:
        array = decode_hdf5(data)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    if array.ndim != ndim or array.dtype.kind != kind or array.size == 0:
        raise DataError(f"{name}: expected {ndim} axes of kind {kind!r}, got {array.dtype} {array.shape}")
    return array


@lru_cache(maxsize=4)  # the frames of a scene follow each other
def _open_scene(raw: Path, scene: str) -> Storage:
    # Not `open_storage(raw)`: it would open the zips of all 457 scenes to read from one.
    archive = raw / f"{scene}.zip"
    return open_storage(archive) if archive.is_file() and not (raw / scene).is_dir() else FolderStorage(raw)
