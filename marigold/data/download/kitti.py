"""KITTI: only the listed images of 175 GB of drives, and only the listed maps of the annotated depth."""

from collections import defaultdict
from pathlib import Path

from marigold.data.download.members import RemoteZip
from marigold.data.download.run import Report, Settings, download
from marigold.data.errors import DataError
from marigold.data.splits import read_split


def download_kitti(
    settings: Settings, split_list: str | None, drive_url: str, depth_url: str, next_step: str
) -> Report:
    """Fetch the files named in `split_list` (a line: image, depth or None, ...) out of the zips of drives and depth.

    drive_url: with {drive} in it, e.g. 2011_09_26_drive_0002. `scripts/prepare.py dataset=kitti` reads the result.
    """
    if split_list is None:
        raise DataError(
            "KITTI's test images were drawn at random, so no rule lists them: give split_list=FILE (one `image "
            "depth` line an image), or source=archive, which holds only these images"
        )
    images: dict[str, list[str]] = defaultdict(list)
    depth = []
    for image, annotation, *_ in read_split(split_list, columns=2):
        # Drives are offered raw and, with _sync after the name, synchronised and rectified; the latter are used.
        folder = image.split("/")[1] if image.count("/") else ""
        if not folder.endswith("_sync"):
            raise DataError(f"{split_list}: expected DATE/DRIVE_sync/image_02/data/NUMBER.png, got {image}")
        images[folder.removesuffix("_sync")].append(image)
        if annotation != "None":
            depth.append(annotation)
    out = Path(settings.out)
    zips = [RemoteZip(drive_url.format(drive=drive), out, names) for drive, names in images.items()]
    # The publisher's train and val are not the benchmark's: a test image's depth may be in either.
    annotated = RemoteZip(depth_url, out / "data_depth_annotated", depth, ("train/", "val/"))
    return download(settings, [*zips, annotated], next_step)
