"""KITTI, ETH3D, ScanNet, DIODE and Virtual KITTI from trees in the publishers' own layouts."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marigold.data.errors import DataError
from marigold.data.preparation.layouts import ETH3D_SCENES
from marigold.data.splits import vkitti_lines

RNG = np.random.default_rng(0)


def image(path: Path, height: int = 8, width: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def depth_png(path: Path, value: int, height: int = 8, width: int = 12) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width), value, np.uint16)).save(path)


def diode(raw: Path, kind: str) -> Path:
    stem = raw / kind / "scene_00019/scan_00183" / f"00019_00183_{kind}_000_010"
    image(stem.with_suffix(".png"))
    np.save(f"{stem}_depth.npy", np.full((8, 12, 1), 3.0, np.float32))
    np.save(f"{stem}_depth_mask.npy", np.ones((8, 12)))
    return stem


def test_kitti_merges_the_two_parts_of_the_annotation(tmp_path, prepare, reader):
    raw, out = tmp_path / "raw", tmp_path / "kitti"
    day, lines = "2011_09_26", []
    for drive, part in (("0002", "val"), ("0009", "train")):
        sync = f"{day}_drive_{drive}_sync"
        for frame in (5, 6):
            image(raw / day / sync / f"image_02/data/{frame:010d}.png")
            truth = f"{sync}/proj_depth/groundtruth/image_02/{frame:010d}.png"
            depth_png(raw / f"data_depth_annotated/{part}/{truth}", 512)
            lines.append(f"{day}/{sync}/image_02/data/{frame:010d}.png {truth if frame == 5 else None} 721.5377")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    arguments = (f"raw={raw}", f"out={out}")
    with pytest.raises(DataError, match=r"prepare\.split_list.*source=archive"):
        prepare("kitti", *arguments)
    for split in ("eigen_val_800", "eigen_test"):
        summary = prepare("kitti", *arguments, f"prepare.split_list={tmp_path / 'list.txt'}", f"prepare.split={split}")
        assert summary.lists[0].split.path == str(out / f"{split}.txt")
    assert (summary.already, summary.lists[0].split.count) == (4, 4)
    dataset = reader("kitti", tmp_path, "crop=[6,10]")
    assert (len(dataset), dataset.dropped) == (2, 2)
    assert dataset[0].depth.unique().tolist() == [2.0]
    assert dataset[0].depth.shape == (1, 6, 10)


def test_eth3d(tmp_path, prepare, reader):
    raw = tmp_path / "raw"
    for number, scene in enumerate(ETH3D_SCENES):
        image(raw / scene / f"images/dslr_images/DSC_{900 - number:04d}.JPG")
        # One scene as its archive unpacked into a folder of its own.
        base = raw / f"{scene}_dslr_depth" / scene if scene == "facade" else raw / scene
        path = base / f"ground_truth_depth/dslr_images/DSC_{900 - number:04d}.JPG"
        path.parent.mkdir(parents=True)
        path.write_bytes(np.full((8, 12), number + 1, "<f4").tobytes())
    image(raw / "botanical_garden/images/dslr_images/DSC_0001.JPG")  # of another part of the benchmark
    (raw / "office").rename(tmp_path / "elsewhere")
    (raw / "office").symlink_to(tmp_path / "elsewhere")
    summary = prepare("eth3d", f"raw={raw}", f"out={tmp_path / 'eth3d'}")
    assert summary.lists[0].split.count == 13
    assert summary.written == 0  # linked, not copied
    dataset = reader("eth3d", tmp_path, "image_size=[8,12]")
    assert dataset.names[0] == "rgb/terrains/images/dslr_images/DSC_0888.JPG"
    assert [dataset[i].depth.unique().item() for i in range(13)] == list(range(13, 0, -1))
    (raw / "courtyard/images/dslr_images/DSC_0900.JPG").unlink()
    with pytest.raises(DataError, match=r"courtyard.*multi_view_training_dslr_jpg\.7z"):
        prepare("eth3d", f"raw={raw}", f"out={tmp_path / 'other'}", "max_broken=0.5")


def test_scannet_shrinks_the_images(tmp_path, prepare, reader):
    raw, out = tmp_path / "raw/scene0011_00", tmp_path / "scannet"
    image(raw / "color/000100.jpg", 96, 128)
    image(raw / "color/000200.jpg", 48, 64)
    lines = []
    for frame in (100, 200):
        depth_png(raw / f"depth/{frame:06d}.png", 1500, 48, 64)
        lines.append(f"scene0011_00/color/{frame:06d}.jpg scene0011_00/depth/{frame:06d}.png")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    options = (f"prepare.split_list={tmp_path / 'list.txt'}", "prepare.photo_size=[48,64]")
    prepare("scannet", f"raw={tmp_path / 'raw'}", f"out={out}", *options)
    dataset = reader("scannet", tmp_path, "image_size=[48,64]")
    assert [dataset[i].depth.unique().item() for i in range(2)] == [1.5, 1.5]
    # The mean colour survives the shrinking; the image of the right size is the same file.
    with Image.open(raw / "color/000100.jpg") as large:
        means = np.asarray(large).mean((0, 1)) / 255
    assert np.abs(dataset[0].image.mean((1, 2)).numpy() - means).max() < 0.01
    assert (out / "scene0011_00/color/000200.jpg").samefile(raw / "color/000200.jpg")


def test_diode_is_linked_and_listed_from_the_folder(tmp_path, prepare, reader):
    raw = tmp_path / "raw/val"
    stems = [diode(raw, kind) for kind in ("indoors", "outdoor")]
    summary = prepare("diode", f"raw={raw}", f"out={tmp_path / 'diode'}")
    assert [result.split.count for result in summary.lists] == [2, 1, 1]
    assert reader("diode", tmp_path, "image_size=[8,12]")[1].depth.unique().tolist() == [3.0]
    out = f"out={tmp_path / 'of the folder above'}"
    assert prepare("diode", f"raw={raw.parent}", out).lists[0].split.count == 2
    for make_bad in (lambda path: path.write_bytes(b""), Path.unlink):
        make_bad(Path(f"{stems[1]}_depth.npy"))
        with pytest.raises(DataError, match=r"00019_00183_outdoor_000_010_depth\.npy"):
            prepare("diode", f"raw={raw}", f"out={tmp_path / 'other'}")
    with pytest.raises(DataError, match=r"filename_list_outdoor\.txt"):  # nothing is left to list
        prepare("diode", f"raw={raw}", f"out={tmp_path / 'other'}", "max_broken=0.5")


def test_copies_where_no_link_can_be(tmp_path, prepare, monkeypatch):
    stem = diode(tmp_path / "raw", "indoors")

    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    summary = prepare("diode", f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}")
    assert summary.written == sum(path.stat().st_size for path in (tmp_path / "raw").rglob("*.*") if path.is_file())
    copy = tmp_path / "out" / stem.relative_to(tmp_path / "raw").with_suffix(".png")
    assert copy.read_bytes() == stem.with_suffix(".png").read_bytes()


LAST = {"Scene01": 0, "Scene02": 1}
SHORT = "prepare.last_frames={Scene01:0,Scene02:1}"


@pytest.mark.parametrize("packed", [True, False])
def test_vkitti_in_place(tmp_path, packed, prepare, reader):
    raw, out = tmp_path / "raw", tmp_path / "vkitti"
    for line in (*vkitti_lines("train", LAST), *vkitti_lines("val", LAST)):
        rgb, depth = line.split()
        image(raw / rgb)
        depth_png(raw / depth, 1234)
    arguments = (f"raw={raw}", f"out={out}", SHORT)
    if packed:
        for part in ("rgb", "depth"):
            with tarfile.open(raw / f"vkitti_2.0.3_{part}.tar", "w") as archive:
                archive.add(raw / part, ".")
            (raw / part).rename(tmp_path / part)
    before = set(tmp_path.rglob("*"))
    prepare("vkitti", *arguments, "dry_run=true")
    assert set(tmp_path.rglob("*")) == before
    summary = prepare("vkitti", *arguments)
    assert [result.split.count for result in summary.lists] == [24, 12]
    split_list = f"split_list={out / 'filename_list_train.txt'}"
    dataset = reader("vkitti", tmp_path, split_list, "image_size=[8,12]", "crop=[4,10]")
    assert len(dataset) == 24
    assert np.allclose(dataset[5].depth, 12.34)
    assert dataset[5].image.shape == (3, 4, 10)
    if packed:
        return
    (raw / "depth/Scene01/clone/frames/depth/Camera_1/depth_00000.png").unlink()
    for dry_run in ("false", "true"):
        with pytest.raises(DataError, match="1 of 36 images"):
            prepare("vkitti", *arguments, f"dry_run={dry_run}")
    summary = prepare("vkitti", *arguments, "max_broken=0.1")
    assert [dict(result.dropped) for result in summary.lists] == [{}, {"missing": 1}]
    with pytest.raises(DataError, match="of 25,512 images"):
        prepare("vkitti", f"raw={raw}", f"out={tmp_path / 'whole'}")
