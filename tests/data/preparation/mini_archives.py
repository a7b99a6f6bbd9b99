"""The published evaluation archives in miniature: real names and formats, two images each."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

Size = tuple[int, int]  # height, width
TARS = {
    ("nyu", "archive"): "nyu_labeled_extracted.tar",
    ("kitti", "archive"): "kitti_eigen_split_test.tar",
    ("kitti", "archive_val"): "kitti_sampled_val_800.tar",
    ("eth3d", "archive"): "eth3d.tar",
    ("scannet", "archive"): "scannet_val_sampled_800_1.tar",
    ("diode", "archive"): "diode_val.tar",
}
UNITS = {"nyu": 1000, "kitti": 256, "scannet": 1000}  # of a 16-bit depth PNG, per metre


def write_archive(dataset: str, source: str, folder: Path, size: Size = (8, 12)) -> Path:
    """The archive that scripts/download.py dataset=... source=... brings; depth runs from 2 to 3 m."""
    return pack(folder / TARS[dataset, source], archive_files(dataset, source, size))


def pack(path: Path, files: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def unpack(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def archive_files(dataset: str, source: str = "archive", size: Size = (8, 12)) -> dict[str, bytes]:
    noise = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    # Repeated, so that an image of a real set's size compresses.
    photo = encoded(np.resize(noise, (*size, 3)), "JPEG" if dataset in ("eth3d", "scannet") else "PNG")
    metres = np.linspace(2, 3, size[0] * size[1], dtype=np.float32).reshape(size)
    png = encoded((metres * UNITS[dataset]).astype(np.uint16)) if dataset in UNITS else b""
    files: dict[str, bytes] = {}
    for i in (1, 2):
        if dataset == "nyu":
            stem = f"{('train', 'test')[i - 1]}/office_0001"
            files |= {f"{stem}/rgb_{i:04d}.png": photo}
            files |= {f"{stem}/{kind}_{i:04d}.png": png for kind in ("depth", "filled")}
        elif dataset == "kitti":
            drive = f"2011_09_26_drive_{'0002' if source == 'archive' else '0001'}_sync"
            files[f"2011_09_26/{drive}/image_02/data/{i:010d}.png"] = photo
            files[f"{drive}/proj_depth/groundtruth/image_02/{i:010d}.png"] = png
        elif dataset == "eth3d":
            files[f"rgb/office/images/dslr_images/DSC_{i:04d}.JPG"] = photo
            depth = f"depth/office_dslr_depth/office/ground_truth_depth/dslr_images/DSC_{i:04d}.JPG"
            files[depth] = metres.astype("<f4").tobytes()
        elif dataset == "scannet":
            files[f"scene0011_00/color/{i * 100:06d}.jpg"] = photo
            files[f"scene0011_00/depth/{i * 100:06d}.png"] = png
        else:
            kind = ("indoors", "outdoor")[i - 1]
            stem = f"{kind}/scene_00019/scan_00183/00019_00183_{kind}_000_010"
            files[f"{stem}.png"] = photo
            files[f"{stem}_depth.npy"] = npy(metres[..., None])
            files[f"{stem}_depth_mask.npy"] = npy(np.ones(size, np.float32))
    return files


def encoded(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options) -> bytes:
    with io.BytesIO() as file:
        image = Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(file, format=kind, **options)
        return file.getvalue()


def npy(array: np.ndarray, **options) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array, **options)
        return file.getvalue()
