"""KITTI: of 175 GB of drives only the listed images, and of the annotated depth only the listed maps."""

from collections import defaultdict
from pathlib import Path

from marigold.data.download.members import RemoteZip
from marigold.data.download.run import Report, Settings, download
from marigold.data.errors import DataError
from marigold.data.splits import read_split


def download_kitti(
    settings: Settings, split_list: str | None, drive_url: str, depth_url: str, next_step: str
) -> Report:
    """Fetch what `split_list` (a line: image, depth or None, ...) names out of the zips of drives and of depth.

    drive_url: with {drive} in it, e.g. 2011_09_26_drive_0002. What comes is what `scripts/prepare.py
    dataset=kitti` reads.
    """
    if split_list is None:
        raise DataError(
            "KITTI's test images were drawn at random, so no rule lists them: give split_list=FILE (one `photo "
            "depth` line an image), or source=archive, which holds just these images"
        )
    photos: dict[str, list[str]] = defaultdict(list)
    depth = []
    for photo, annotation, *_ in read_split(split_list, columns=2):
        # Drives come raw and, with _sync after the name, synchronised and rectified, as which the images are used.
        folder = photo.split("/")[1] if photo.count("/") else ""
        if not folder.endswith("_sync"):
            raise DataError(f"{split_list}: expected DATE/DRIVE_sync/image_02/data/NUMBER.png, got {photo}")
        photos[folder.removesuffix("_sync")].append(photo)
        if annotation != "None":
            depth.append(annotation)
    out = Path(settings.out)
    zips = [RemoteZip(drive_url.format(drive=drive), out, names) for drive, names in photos.items()]
    # The publisher's own train and val are not the benchmark's: a test image's depth is in either.
    annotated = RemoteZip(depth_url, out / "data_depth_annotated", depth, ("train/", "val/"))
    return download(settings, [*zips, annotated], next_step)
