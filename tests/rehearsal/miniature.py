"""Small files with plausible content: images and depth of any size that compress to a few kilobytes, tars and zips."""

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

Size = tuple[int, int]
CELL = 32  # pixels per side of a cell of one value: 4 JPEG blocks, and rows that repeat, so that both compress


def field(seed: int, size: Size) -> np.ndarray:
    """A random value per cell, float32 (H, W) in [0, 1]; every seed has its own."""
    rows, columns = (-(-side // CELL) for side in size)
    cells = np.random.default_rng(seed).random((rows, columns), np.float32)
    return cells.repeat(CELL, 0).repeat(CELL, 1)[: size[0], : size[1]]


def depth(seed: int, size: Size, near: float, far: float) -> np.ndarray:
    """Metres, float32 (H, W), from `near` to `far`."""
    return near + (far - near) * field(seed, size)


def photo(seed: int, size: Size) -> np.ndarray:
    """uint8 (H, W, 3)."""
    return (255 * np.stack([field(3 * seed + channel, size) for channel in range(3)], -1)).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: int) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, kind, **options)
        return file.getvalue()


def depth_png(metres: np.ndarray, units: float) -> bytes:
    return encoded(np.rint(metres * units).astype(np.uint16))


def npy(array: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array)
        return file.getvalue()


def hdf5(array: np.ndarray) -> bytes:
    """One array called `dataset`, as Hypersim's files hold it."""
    with io.BytesIO() as buffer:
        with h5py.File(buffer, "w") as file:
            file.create_dataset("dataset", data=array, compression="gzip", compression_opts=1)
        return buffer.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w", prefix: str = "") -> None:
    """prefix: "./", which `tar -cf X.tar .` puts before every name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(prefix + name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def write_zip(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
