"""KITTI, ETH3D, ScanNet, DIODE and Virtual KITTI from trees in the publishers' own layouts."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from marigold.config import build
from marigold.data.errors import DataError
from marigold.data.preparation.benchmarks import ETH3D_SCENES
from marigold.data.splits import vkitti_lines

CONFIGS = Path(__file__).parents[3] / "configs"
RNG = np.random.default_rng(0)


def compose_prepare(dataset: str, raw: Path, out: Path, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("prepare", [f"dataset={dataset}", f"raw={raw}", f"out={out}", *overrides])


def prepare(dataset: str, raw: Path, out: Path, *overrides: str):
    return build(compose_prepare(dataset, raw, out, *overrides).prepare, "prepare")


def reader(dataset: str, out: Path, *overrides: str):
    """The reader of the data set's own configuration file, on `out`."""
    name = out.relative_to(out.parent)
    config = compose_prepare(dataset, out, out, f"paths.data={out.parent}", *overrides)
    assert str(name) == dataset
    return build(config.dataset.reader, "reader")


def photo(path: Path, height: int = 8, width: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def depth_png(path: Path, value: int, height: int = 8, width: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width), value, np.uint16)).save(path)


def test_kitti_merges_the_two_parts_of_the_annotation(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "kitti"
    day, lines = "2011_09_26", []
    for drive, part in (("0002", "val"), ("0009", "train")):
        sync = f"{day}_drive_{drive}_sync"
        for frame in (5, 6):
            photo(raw / day / sync / f"image_02/data/{frame:010d}.png")
            depth_png(
                raw / f"data_depth_annotated/{part}/{sync}/proj_depth/groundtruth/image_02/{frame:010d}.png", 512
            )
            truth = f"{sync}/proj_depth/groundtruth/image_02/{frame:010d}.png" if frame == 5 else "None"
            lines.append(f"{day}/{sync}/image_02/data/{frame:010d}.png {truth} 721.5377")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    summary = prepare("kitti", raw, out, f"prepare.split_list={tmp_path / 'list.txt'}")
    assert summary.lists[0].split.count == 4
    assert summary.lists[0].split.path == str(out / "eigen_test.txt")
    dataset = reader("kitti", out, "dataset.reader.crop=[6,10]")
    assert (len(dataset), dataset.dropped) == (2, 2)
    assert dataset[0].depth.unique().tolist() == [2.0]
    assert dataset[0].depth.shape == (1, 6, 10)
    with pytest.raises(DataError, match=r"drawn at random.*source=archive"):
        prepare("kitti", raw, tmp_path / "other")
    val = prepare("kitti", raw, out, f"prepare.split_list={tmp_path / 'list.txt'}", "prepare.split=eigen_val_800")
    assert val.lists[0].split.path == str(out / "eigen_val_800.txt")


def test_eth3d(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "eth3d"
    for number, scene in enumerate(ETH3D_SCENES):
        photo(raw / scene / f"images/dslr_images/DSC_{900 - number:04d}.JPG")
        # One scene as its archive unpacked into a folder of its own.
        base = raw / f"{scene}_dslr_depth" / scene if scene == "facade" else raw / scene
        path = base / f"ground_truth_depth/dslr_images/DSC_{900 - number:04d}.JPG"
        path.parent.mkdir(parents=True)
        path.write_bytes(np.full((8, 12), number + 1, "<f4").tobytes())
    summary = prepare("eth3d", raw, out)
    assert summary.lists[0].split.count == 13
    assert summary.written == 0  # linked, not copied
    dataset = reader("eth3d", out, "dataset.reader.image_size=[8,12]")
    assert dataset.names[0] == "rgb/terrains/images/dslr_images/DSC_0888.JPG"
    assert [dataset[i].depth.unique().item() for i in range(13)] == list(range(13, 0, -1))
    (raw / "courtyard/images/dslr_images/DSC_0900.JPG").unlink()
    with pytest.raises(DataError, match=r"courtyard.*no photos"):
        prepare("eth3d", raw, tmp_path / "other")


def test_scannet_shrinks_the_photos(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "scannet"
    photo(raw / "scene0011_00/color/000100.jpg", 96, 128)
    photo(raw / "scene0011_00/color/000200.jpg", 48, 64)
    lines = []
    for frame in (100, 200):
        depth_png(raw / f"scene0011_00/depth/{frame:06d}.png", 1500, 48, 64)
        lines.append(f"scene0011_00/color/{frame:06d}.jpg scene0011_00/depth/{frame:06d}.png")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    options = (f"prepare.split_list={tmp_path / 'list.txt'}", "prepare.photo_size=[48,64]")
    prepare("scannet", raw, out, *options)
    dataset = reader("scannet", out, "dataset.reader.image_size=[48,64]")
    assert [dataset[i].depth.unique().item() for i in range(2)] == [1.5, 1.5]
    assert dataset[0].image.shape == (3, 48, 64)
    # The mean colour survives the shrinking; the photo of the right size is the same file.
    with Image.open(raw / "scene0011_00/color/000100.jpg") as large:
        means = np.asarray(large).mean((0, 1)) / 255
    assert np.abs(dataset[0].image.mean((1, 2)).numpy() - means).max() < 0.01
    assert (out / "scene0011_00/color/000200.jpg").samefile(raw / "scene0011_00/color/000200.jpg")


def test_diode_is_linked_and_listed_from_the_folder(tmp_path):
    raw, out = tmp_path / "val", tmp_path / "diode"
    for kind in ("indoors", "outdoor"):
        stem = raw / kind / "scene_00019/scan_00183" / f"00019_00183_{kind}_000_010"
        photo(stem.with_suffix(".png"))
        np.save(f"{stem}_depth.npy", np.full((8, 12, 1), 3.0, np.float32))
        np.save(f"{stem}_depth_mask.npy", np.ones((8, 12)))
    (raw / "diode_meta.json").write_text("{}")
    summary = prepare("diode", raw, out)
    assert [result.split.count for result in summary.lists] == [2, 1, 1]
    dataset = reader("diode", out, "dataset.reader.image_size=[8,12]")
    assert dataset[1].depth.unique().tolist() == [3.0]
    assert prepare("diode", tmp_path, tmp_path / "of the folder above").lists[0].split.count == 2
    empty = raw / "outdoor/scene_00019/scan_00183/00019_00183_outdoor_000_010_depth.npy"
    empty.write_bytes(b"")
    with pytest.raises(DataError, match=r"000_010_depth\.npy: an empty file"):
        prepare("diode", raw, tmp_path / "other")


def test_copies_where_no_link_can_be(tmp_path, monkeypatch):
    raw = tmp_path / "val"
    stem = raw / "indoors/x"
    photo(stem.with_suffix(".png"))
    np.save(f"{stem}_depth.npy", np.ones((8, 12), np.float32))
    np.save(f"{stem}_depth_mask.npy", np.ones((8, 12)))

    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    summary = prepare("diode", raw, tmp_path / "out")
    assert summary.written == sum(path.stat().st_size for path in raw.rglob("*.*") if path.is_file())
    assert (tmp_path / "out/indoors/x.png").read_bytes() == stem.with_suffix(".png").read_bytes()


LAST = {"Scene01": 0, "Scene02": 1}
SHORT = "prepare.last_frames={Scene01:0,Scene02:1}"


def write_vkitti(raw: Path) -> None:
    for line in (*vkitti_lines("train", LAST), *vkitti_lines("val", LAST)):
        rgb, depth = line.split()
        photo(raw / rgb)
        depth_png(raw / depth, 1234)


@pytest.mark.parametrize("packed", [True, False])
def test_vkitti_in_place(tmp_path, packed):
    raw, out = tmp_path / "raw", tmp_path / "vkitti"
    write_vkitti(raw)
    if packed:
        for part in ("rgb", "depth"):
            with tarfile.open(raw / f"vkitti_2.0.3_{part}.tar", "w") as archive:
                archive.add(raw / part, ".")
            (raw / part).rename(tmp_path / part)
    before = set(tmp_path.rglob("*"))
    prepare("vkitti", raw, out, SHORT, "dry_run=true")
    assert set(tmp_path.rglob("*")) == before
    summary = prepare("vkitti", raw, out, SHORT)
    assert [result.split.count for result in summary.lists] == [24, 12]
    dataset = reader(
        "vkitti",
        out,
        f"dataset.reader.split_list={out / 'filename_list_train.txt'}",
        "dataset.reader.image_size=[8,12]",
        "dataset.reader.crop=[4,10]",
    )
    assert len(dataset) == 24
    assert np.allclose(dataset[5].depth, 12.34)
    assert dataset[5].image.shape == (3, 4, 10)
    assert prepare("vkitti", raw, out, SHORT).lists == summary.lists


def test_vkitti_with_a_missing_frame(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "vkitti"
    write_vkitti(raw)
    (raw / "depth/Scene01/clone/frames/depth/Camera_1/depth_00000.png").unlink()
    with pytest.raises(DataError, match=r"1 of 36 images are missing or broken.*"):
        prepare("vkitti", raw, out, SHORT)
    summary = prepare("vkitti", raw, out, SHORT, "max_broken=0.1")
    assert [dict(result.dropped) for result in summary.lists] == [{}, {"missing": 1}]
    with pytest.raises(DataError, match="of 25,512 images are missing"):
        prepare("vkitti", raw, tmp_path / "whole")
