"""Readers against values written by hand: units, masks, crops, lists."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marigold.data import splits
from marigold.data.base import benchmark_crop
from marigold.data.benchmarks import DIODE, ETH3D, KITTI, NYU
from marigold.data.errors import DataError, MissingDataError
from marigold.data.training_sets import Hypersim, VirtualKitti
from marigold.types import Camera

PHOTO = np.array([[[0, 51, 102], [255, 204, 153]], [[1, 2, 3], [4, 5, 6]]], np.uint8)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_pairs(root: Path, depth: np.ndarray, photo: np.ndarray = PHOTO, names: tuple[str, ...] = ("a",)) -> None:
    for name in names:
        save(root / f"{name}.png", photo)
        save(root / f"{name}_d.png", depth)
    (root / "list.txt").write_text("".join(f"{name}.png {name}_d.png\n" for name in names))


def read(cls, root: Path, min_depth: float = 1e-5, max_depth: float = 80.0, **more):
    split_list = str(root / "list.txt")
    return cls(name="set", root=str(root), split_list=split_list, min_depth=min_depth, max_depth=max_depth, **more)


@pytest.mark.parametrize(("cls", "unit"), [(Hypersim, 1000), (VirtualKitti, 100), (KITTI, 256)])
def test_units_mask_and_image(tmp_path, cls, unit):
    save(tmp_path / "rgb/x.png", PHOTO)
    save(tmp_path / "depth/x.png", np.array([[0, unit], [2 * unit, 8 * unit]], np.uint16))
    (tmp_path / "list.txt").write_text("rgb/x.png depth/x.png")
    sample = read(cls, tmp_path, min_depth=1.0, max_depth=8.0)[0]
    assert sample.name == "rgb/x.png"
    assert torch.equal(sample.depth, torch.tensor([[[0.0, 1.0], [2.0, 8.0]]]))
    # Strict at both ends; what is farther stays in `depth`.
    assert torch.equal(sample.valid, torch.tensor([[[False, False], [True, False]]]))
    assert sample.image.dtype == torch.float32
    assert torch.equal(sample.image, torch.from_numpy(PHOTO.astype(np.float32).transpose(2, 0, 1) / np.float32(255)))
    assert sample.image.is_contiguous()


@pytest.mark.parametrize(("size", "top", "left"), [((375, 1242), 23, 13), ((376, 1241), 24, 12)])
def test_benchmark_crop(size, top, left):
    # Sizes of two recording days, from the reference implementation's formula worked by hand.
    assert benchmark_crop(size, (352, 1216)) == (slice(top, top + 352), slice(left, left + 1216))


def test_crop_takes_the_same_window_of_everything(tmp_path):
    photo = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    depth = (np.arange(35, dtype=np.uint16).reshape(5, 7) + 1) * 256
    write_pairs(tmp_path, depth, photo)
    sample = read(KITTI, tmp_path, crop=(2, 4), max_depth=30.5)[0]
    assert torch.equal(sample.depth[0], torch.arange(1.0, 36).reshape(5, 7)[3:, 1:5])
    assert torch.equal(sample.valid, sample.depth < 30.5)
    assert (sample.image[0] * 255).round()[0, 0] == photo[3, 1, 0]
    assert sample.camera is None
    cameras = {"*": [1.0, 1.0, 1.0, 1.0], "[ab]*": [9.0, 8.0, 3.5, 2.5], "2011_*": [2.0, 2.0, 2.0, 2.0]}
    assert read(KITTI, tmp_path, cameras=cameras)[0].camera == Camera(9.0, 8.0, 3.5, 2.5)
    assert read(KITTI, tmp_path, cameras=cameras, crop=(2, 4))[0].camera == Camera(9.0, 8.0, 2.5, -0.5)
    with pytest.raises(ValueError, match=r"cameras\['\*'\]"):
        read(KITTI, tmp_path, cameras={"*": [0.0, 5.0, 1.0, 1.0]})
    with pytest.raises(DataError, match=r"a\.png.*5 x 7.*6 x 4"):
        read(KITTI, tmp_path, crop=(6, 4))[0]


def test_limit_is_evenly_spaced_and_unofficial(tmp_path, caplog, monkeypatch):
    write_pairs(tmp_path, np.full((2, 2), 1000, np.uint16), names=tuple("abcdefgh"))
    dataset = read(NYU, tmp_path, limit=2, official_split="nyu/test")
    assert dataset.names == ["a.png", "e.png"]
    assert (dataset.split.name, dataset.split.count, dataset.split.official) == ("nyu/test[2]", 2, False)
    whole = read(NYU, tmp_path)
    assert whole.split.official is None
    # Beyond the set: all of it, with a warning.
    monkeypatch.setitem(splits.KNOWN_SPLITS, "nyu/test", splits.KnownSplit(8, whole.split.sha256))
    dataset = read(NYU, tmp_path, limit=9, official_split="nyu/test")
    assert dataset.names == whole.names
    assert (dataset.split.official, dataset.split.part, dataset.split.count) == (True, False, 8)
    assert "limit=9" in caplog.text


def test_eth3d_raw_floats(tmp_path):
    save(tmp_path / "a.jpg", PHOTO)
    depth = np.array([[1.5, np.inf], [-1, np.nan]], "<f4")
    (tmp_path / "a_depth.JPG").write_bytes(depth.tobytes())
    (tmp_path / "list.txt").write_text("a.jpg a_depth.JPG\n")
    sample = read(ETH3D, tmp_path, max_depth=float("inf"))[0]
    assert sample.depth[0].tolist() == [[1.5, 0], [0, 0]]
    assert sample.valid[0].tolist() == [[True, False], [False, False]]
    (tmp_path / "a_depth.JPG").write_bytes(depth.tobytes()[:-4])
    with pytest.raises(DataError, match=r"a_depth\.JPG.*16 bytes, got 12"):
        read(ETH3D, tmp_path)[0]


def test_diode_mask_alone_decides(tmp_path):
    save(tmp_path / "a.png", PHOTO)
    np.save(tmp_path / "a_depth.npy", np.array([0.2, 900, 3, 0], np.float32).reshape(2, 2, 1))
    np.save(tmp_path / "a_mask.npy", np.array([[1, 1], [0, 0]], np.float64))
    (tmp_path / "list.txt").write_text("a.png a_depth.npy a_mask.npy\n")
    sample = read(DIODE, tmp_path, min_depth=0.6, max_depth=350.0)[0]
    assert sample.valid[0].tolist() == [[True, True], [False, False]]
    assert sample.depth[0].tolist() == [[np.float32(0.2), 900], [3, 0]]
    for value in (np.inf, 0):  # is no depth, though the mask calls it valid
        np.save(tmp_path / "a_depth.npy", np.array([value, 900, 3, 0], np.float32).reshape(2, 2, 1))
        with pytest.raises(DataError, match=r"a\.png.*a_mask\.npy.* 1 pixel"):
            read(DIODE, tmp_path)[0]
    for file, content in (("a_mask.npy", np.ones((3, 2))), ("a_depth.npy", np.ones((2, 2), np.int32))):
        np.save(tmp_path / file, content)
        with pytest.raises(DataError, match=file):
            read(DIODE, tmp_path)[0]


def test_workers_of_a_loader_read_the_same_samples(tmp_path):
    write_pairs(tmp_path, np.full((2, 2), 1000, np.uint16), names=tuple("abc"))
    dataset = read(NYU, tmp_path, max_depth=10.0)
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    assert [sample.name for sample in loader] == [sample.name for sample in dataset] == dataset.names


def test_wrong_range_and_root(tmp_path):
    write_pairs(tmp_path, np.full((2, 2), 1000, np.uint16))
    with pytest.raises(ValueError, match="min_depth"):
        read(NYU, tmp_path, min_depth=10.0, max_depth=1.0)
    nowhere = NYU(name="n", root=str(tmp_path / "no"), split_list=str(tmp_path / "list.txt"), min_depth=0, max_depth=1)
    with pytest.raises(MissingDataError, match=str(tmp_path / "no")):
        nowhere.check_files()
