"""KITTI, ETH3D, ScanNet and DIODE from the publishers' downloads.

Each can also be listed from a published evaluation archive (`archive`), which is then read in place.
"""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from marigold.data.decode import decode_photo
from marigold.data.errors import DataError
from marigold.data.preparation.archives import (
    diode_lists,
    eth3d_depth_name,
    eth3d_lists,
    kitti_list,
    kitti_lists,
    list_archive,
    scannet_lists,
)
from marigold.data.preparation.images import raw_folder, take_over, write_file
from marigold.data.preparation.runner import PreparationSummary, RunOptions, run
from marigold.data.preparation.taken_over import PlannedList, TakenOver
from marigold.data.splits import read_split
from marigold.data.storage import FolderStorage

ETH3D_SCENES = (
    "courtyard",
    "delivery_area",
    "electro",
    "facade",
    "kicker",
    "meadow",
    "office",
    "pipes",
    "playground",
    "relief",
    "relief_2",
    "terrace",
    "terrains",
)


def prepare_kitti(
    raw: str,
    out: str,
    workers: int,
    dry_run: bool,
    max_broken: float,
    archive: str | None,
    split: str,
    split_list: str | None,
    annotated: str,
) -> PreparationSummary:
    """Link the photos of the raw drives and the annotated depth that `split_list` names.

    raw: holds {date}/{drive}/image_02. annotated: the unpacked data_depth_annotated, whose train/ and val/
    are merged. split: which of KITTI_SPLITS the list or the archive is. The images of both were drawn at
    random, so no rule gives them: a list or an archive must.
    """
    if archive is not None:
        return list_archive(archive, out, partial(kitti_lists, split=split), dry_run)
    folder = raw_folder(raw)
    lists = [kitti_list([" ".join(line) for line in _listed(split_list, "kitti")], split)]
    depth = [(Path(annotated, part), 0) for part in ("train", "val")]
    job = TakenOver("kitti", Path(out), lists, [[(folder, 0)], depth])
    return run(job, RunOptions(workers, dry_run, max_broken))


def prepare_eth3d(
    raw: str, out: str, workers: int, dry_run: bool, max_broken: float, archive: str | None
) -> PreparationSummary:
    """Link the photos and depth of the 13 training scenes, unpacked into `raw`, one folder a scene."""
    if archive is not None:
        return list_archive(archive, out, eth3d_lists, dry_run)
    folder = raw_folder(raw)
    names = []
    for scene in ETH3D_SCENES:
        photos = sorted((folder / scene / "images" / "dslr_images").glob("*.JPG"))
        if not photos:
            raise DataError(f"{folder / scene}/images/dslr_images: no photos; unpack multi_view_training_dslr_jpg.7z")
        for photo in photos:
            names += [f"rgb/{scene}/images/dslr_images/{photo.name}", eth3d_depth_name(scene, photo.name)]
    # Unpacked side by side the depth archives share the scenes' folders, else each has its own.
    places = [[(folder, 1)], [(folder, 2), (folder, 1)]]
    return run(TakenOver("eth3d", Path(out), eth3d_lists(names), places), RunOptions(workers, dry_run, max_broken))


def prepare_diode(
    raw: str, out: str, workers: int, dry_run: bool, max_broken: float, archive: str | None
) -> PreparationSummary:
    """Link the unpacked val/ folder, which holds indoors/ and outdoor/; `raw` is it or holds it."""
    if archive is not None:
        return list_archive(archive, out, diode_lists, dry_run)
    folder = raw_folder(raw)
    folder = folder / "val" if (folder / "val").is_dir() else folder
    lists = [planned for planned in diode_lists(FolderStorage(folder).names()) if planned.lines]
    if not lists:
        raise DataError(f"{folder}: neither indoors/ nor outdoor/ with photos; unpack val.tar.gz")
    return run(TakenOver("diode", Path(out), lists, [[(folder, 0)]]), RunOptions(workers, dry_run, max_broken))


def prepare_scannet(
    raw: str,
    out: str,
    workers: int,
    dry_run: bool,
    max_broken: float,
    archive: str | None,
    split_list: str | None,
    photo_size: tuple[int, int],
    jpeg_quality: int,
) -> PreparationSummary:
    """Link the depth of scannet_frames_25k and shrink its photos to the depth's size.

    photo_size: (height, width). The 800 frames were drawn at random: a list or an archive must name them.
    """
    if archive is not None:
        return list_archive(archive, out, scannet_lists, dry_run)
    folder, listed = raw_folder(raw), _listed(split_list, "scannet")
    lists = [PlannedList("filename_list_val_800.txt", [" ".join(line) for line in listed], "scannet/val_800")]
    job = ScanNetFrames(Path(out), lists, folder, photo_size, jpeg_quality)
    return run(job, RunOptions(workers, dry_run, max_broken))


class ScanNetFrames(TakenOver):
    """ScanNet's photos are larger than its depth; the benchmark compares at the depth's size."""

    def __init__(
        self, out: Path, lists: Sequence[PlannedList], raw: Path, size: tuple[int, int], quality: int
    ) -> None:
        super().__init__("scannet", out, lists, [[(raw, 0)]])
        self.size, self.quality = size, quality

    def settings(self) -> Mapping[str, object]:
        return {**super().settings(), "photo_size": list(self.size), "jpeg_quality": self.quality}

    def make(self, source: Path, out: Path, name: str, column: int) -> tuple[dict[str, int], int]:
        if column > 0:
            return take_over(source, out, name)
        try:
            photo = decode_photo(source.read_bytes())
        except DataError as error:
            raise DataError(f"{source}: {error}") from error
        if photo.shape[:2] == tuple(self.size):
            return take_over(source, out, name)
        files = write_file(out, name, _shrunk_jpeg(photo, self.size, self.quality))
        return files, sum(files.values())


def _shrunk_jpeg(photo: np.ndarray, size: tuple[int, int], quality: int) -> bytes:
    # Pillow's bilinear filter widens with the factor, so nothing aliases; 4:4:4 keeps the colours' resolution.
    small = Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    with io.BytesIO() as file:
        small.save(file, format="JPEG", quality=quality, subsampling=0)
        return file.getvalue()


def _listed(split_list: str | None, dataset: str) -> list[tuple[str, ...]]:
    if split_list is None:
        raise DataError(
            f"{dataset}: its images were drawn at random, so no rule lists them. Give prepare.split_list=FILE "
            "(one `photo depth` line an image), or source=archive, the published evaluation archive"
        )
    return read_split(split_list, columns=2)
