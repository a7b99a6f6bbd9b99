"""Hypersim: HDF5 radiance and distance -> tone-mapped image and planar depth, and the filtered lists.

The formulas are in `hypersim_recipe`; this module has the frames' files, the filter and the lists.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
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
from marigold.data.preparation.journal import Converted
from marigold.data.preparation.lists import PlannedList, PreparationSummary
from marigold.data.preparation.runner import run
from marigold.data.storage import FolderStorage, Storage, open_storage


@dataclass(frozen=True)
class Filter:
    """Which frames are listed: depth range in metres, RGB range of 255, share of pixels without geometry.

    prs-eth/Marigold issue 158. The last test applies to `max_invalid_splits` only: no validation or test frame
    was dropped for it. `depth_range_of_known`: take the range over known pixels only, without the zeros.
    """

    min_depth_range: float
    min_rgb_range: int
    max_invalid: float
    max_invalid_splits: list[str]
    depth_range_of_known: bool

    def reason(self, split: str, facts: Mapping[str, int | float]) -> str:
        """Why a frame is dropped, or "" if it is kept."""
        # The published statistics include the zeros of unknown pixels, so the range of a frame with any starts at 0.
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
    pinhole of the published training data. `scenes`: only these, or None for all. The filter affects the lists
    alone, so changing it converts nothing again. `official`: the set whose known lists these should be, or None.
    """
    lines: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    wanted = (frame for frame in released_frames(Path(split_csv)) if scenes is None or frame[1] in scenes)
    for split, scene, camera, frame in wanted:
        line = f"{scene}/rgb_{camera}_fr{frame}.png {scene}/depth_plane_{camera}_fr{frame}.png"
        lines[split][f"{split}/{scene}/{camera}/{frame}"] = line
    # Without `official` the set is another one of this layout, such as the rendered rooms.
    lists = [
        PlannedList(
            f"filename_list_{split}.txt", found, official and f"{official}/{split}", f"filename_meta_{split}.csv"
        )
        for split, found in lines.items()
        if found
    ]
    if not lists:
        raise DataError(f"{split_csv}: no released frame" + (f" of the scenes {scenes}" if scenes else ""))
    cameras = None if camera_csv is None else read_cameras(Path(camera_csv))
    kind = "nominal" if cameras is None else "per scene"
    summary = run(
        partial(convert, Path(raw), cameras),
        lists,
        out=Path(out),
        settings={"dataset": "hypersim", "cameras": kind, "png_compress_level": PNG_LEVEL},
        workers=workers,
        dry_run=dry_run,
        max_broken=max_broken,
        # From the journal's facts, so that another filter opens no image again.
        why_dropped=lambda item, facts: filter.reason(item.partition("/")[0], facts),
    )
    note = f"each scene's own, {camera_csv}" if camera_csv else "one pinhole for all scenes, as published"
    return replace(summary, note=f"camera: {note}")


def convert(raw: Path, cameras: Mapping[str, Matrix] | None, item: str, out: Path) -> Converted:
    """Write image and depth of the frame `split/scene/camera/frame`; cameras: by scene, None for the one pinhole."""
    split, scene, camera, frame = item.split("/")
    storage, matrix = _open_scene(raw, scene), None
    if cameras is not None and (matrix := cameras.get(scene)) is None:
        raise DataError(f"prepare.camera_csv: no camera for scene {scene}")
    final = f"{scene}/images/scene_{camera}_final_hdf5/frame.{frame}"
    geometry = f"{scene}/images/scene_{camera}_geometry_hdf5/frame.{frame}"
    colour = _array(storage, f"{final}.color.hdf5", 3, "f")
    distance = _array(storage, f"{geometry}.depth_meters.hdf5", 2, "f")
    entity = _array(storage, f"{geometry}.render_entity_id.hdf5", 2, "i")
    # Compared here: numpy would silently broadcast some wrong sizes.
    if not colour.shape[:2] == distance.shape == entity.shape or colour.shape[2] != 3:
        raise DataError(f"{final}: sizes differ: {colour.shape}, {distance.shape}, {entity.shape}")
    if (entity == 0).any():
        raise DataError(f"{geometry}.render_entity_id.hdf5: entity id 0, which the publisher never uses")

    known = entity != NOT_AN_OBJECT
    image = tone_map(colour, known)
    depth = distance * planar_factor(entity.shape[0], entity.shape[1], matrix)
    millimetres, unfit = to_millimetres(depth, known)
    names = [f"{split}/{scene}/{kind}_{camera}_fr{frame}.png" for kind in ("rgb", "depth_plane")]
    files = {name: write_png(out / name, pixels) for name, pixels in zip(names, (image, millimetres), strict=True)}
    return Converted(files, _facts(image, millimetres, known, unfit))


def _facts(image: np.ndarray, millimetres: np.ndarray, known: np.ndarray, unfit: int) -> dict[str, int | float]:
    # From the millimetres as written, not the floats: the filter must see what the reader will.
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
