"""The publishers' own layouts give what the evaluation archives give; Virtual KITTI is read in place."""

import os

import numpy as np
import pytest
import torch
from mini_archives import archive_files, encoded, pack, unpack

from marigold.data.errors import DataError, MissingDataError
from marigold.data.preparation.layouts import ETH3D_SCENES
from marigold.data.splits import vkitti_lines

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


@pytest.mark.parametrize("dataset", ["kitti", "scannet", "diode"])
def test_the_publishers_files_give_the_archives_lists_and_samples(tmp_path, dataset, prepare, reader):
    files = archive_files(dataset)
    if dataset == "kitti":
        *truths, unannotated = (name for name in files if "proj_depth" in name)
        del files[unannotated]
        # The publisher's train and val are not the benchmark's, and its images lie beside them.
        raw_names = {truth: f"data_depth_annotated/train/{truth}" for truth in truths}
    else:
        raw_names = {name: f"val/{name}" for name in files} if dataset == "diode" else {}
    unpack(tmp_path / "raw", {raw_names.get(name, name): data for name, data in files.items()})
    tar, two, one = pack(tmp_path / "set.tar", files), tmp_path / "two" / dataset, tmp_path / "one" / dataset
    prepare(dataset, f"prepare.archive={tar}", f"out={one}")
    lists = sorted(one.glob("*.txt"))
    arguments = (f"raw={tmp_path / 'raw'}", f"out={two}", *(["prepare.photo_size=[8,12]"] * (dataset == "scannet")))
    if dataset != "diode":  # drawn at random
        with pytest.raises(DataError, match=r"prepare\.split_list"):
            prepare(dataset, *arguments)
        arguments = (*arguments, f"prepare.split_list={lists[0]}")
    assert prepare(dataset, *arguments).written == 0  # linked, not copied
    assert [(two / path.name).read_bytes() for path in lists] == [path.read_bytes() for path in lists]
    crop = ["crop=[6,10]"] * (dataset == "kitti")
    first, second = (reader(dataset, tmp_path / way, "image_size=[8,12]", *crop) for way in ("one", "two"))
    assert (len(first), first.dropped) == ((1, 1) if dataset == "kitti" else (2, 0))
    for sample, other in zip(first, second, strict=True):
        assert sample.name == other.name
        assert torch.equal(sample.image, other.image)
        assert torch.equal(sample.depth, other.depth)
    assert prepare(dataset, *arguments).already == 2


def test_eth3d(tmp_path, prepare, reader):
    raw = tmp_path / "raw"
    for number, scene in enumerate(ETH3D_SCENES):
        # One scene as its archive unpacked into a folder of its own.
        base = f"{scene}_dslr_depth/{scene}" if scene == "facade" else scene
        depth = np.full((8, 12), number + 1, "<f4").tobytes()
        file = f"dslr_images/DSC_{900 - number:04d}.JPG"
        unpack(raw, {f"{scene}/images/{file}": encoded(PIXELS, "JPEG"), f"{base}/ground_truth_depth/{file}": depth})
    unpack(raw, {"botanical_garden/images/dslr_images/DSC_0001.JPG": b""})  # of another part of the benchmark
    (raw / "office").rename(tmp_path / "elsewhere")
    (raw / "office").symlink_to(tmp_path / "elsewhere")
    summary = prepare("eth3d", f"raw={raw}", f"out={tmp_path / 'eth3d'}")
    assert (summary.lists[0].split.count, summary.written) == (13, 0)
    dataset = reader("eth3d", tmp_path, "image_size=[8,12]")
    assert dataset.names[0] == "rgb/terrains/images/dslr_images/DSC_0888.JPG"
    assert [dataset[i].depth.unique().item() for i in range(13)] == list(range(13, 0, -1))
    (raw / "courtyard/images/dslr_images/DSC_0900.JPG").unlink()
    with pytest.raises(DataError, match=r"courtyard.*multi_view_training_dslr_jpg\.7z"):
        prepare("eth3d", f"raw={raw}", f"out={tmp_path / 'other'}", "max_broken=0.5")


def test_scannet_shrinks_large_images_and_copies_where_no_link_can_be(tmp_path, prepare, reader, monkeypatch):
    files = archive_files("scannet") | {"scene0011_00/color/000100.jpg": encoded(PIXELS.repeat(2, 0).repeat(2, 1))}
    unpack(tmp_path / "raw", files)
    tar = pack(tmp_path / "set.tar", files)
    prepare("scannet", f"prepare.archive={tar}", f"out={tmp_path}")

    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    options = (f"prepare.split_list={tmp_path / 'filename_list_val_800.txt'}", "prepare.photo_size=[8,12]")
    out = tmp_path / "data/scannet"
    summary = prepare("scannet", f"raw={tmp_path / 'raw'}", *options)
    assert summary.written == sum(path.stat().st_size for path in out.glob("scene*/*/*"))
    sample = reader("scannet", tmp_path / "data", "image_size=[8,12]")[0]
    # Each pixel was repeated four times: the mean colour survives the shrinking.
    assert np.abs(sample.image.mean((1, 2)).numpy() - PIXELS.mean((0, 1)) / 255).max() < 0.02
    copy = "scene0011_00/color/000200.jpg"
    assert (out / copy).read_bytes() == files[copy]


def test_what_is_wrong_with_the_publishers_files_is_named(tmp_path, prepare):
    unpack(tmp_path / "raw", archive_files("diode"))
    arguments = (f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}")
    (depth,) = (tmp_path / "raw").rglob("*_outdoor_*_depth.npy")
    for make_bad in (lambda: depth.write_bytes(b""), depth.unlink):
        make_bad()
        with pytest.raises(DataError, match=depth.name):
            prepare("diode", *arguments)
    with pytest.raises(DataError, match=r"filename_list_outdoor\.txt"):  # nothing is left to list
        prepare("diode", *arguments, "max_broken=0.5")


@pytest.mark.parametrize("packed", [True, False])
def test_vkitti_in_place(tmp_path, packed, prepare, reader):
    raw, out, last = tmp_path / "raw", tmp_path / "vkitti", {"Scene01": 0, "Scene02": 1}
    names = [line.split() for split in ("train", "val") for line in vkitti_lines(split, last)]
    contents = encoded(PIXELS, "JPEG"), encoded(np.full((8, 12), 1234, np.uint16))
    for part, files, data in zip(("rgb", "depth"), zip(*names, strict=True), contents, strict=True):
        if packed:
            pack(raw / f"vkitti_2.0.3_{part}.tar", {name.removeprefix(f"{part}/"): data for name in files})
        else:
            unpack(raw, dict.fromkeys(files, data))
    arguments = (f"raw={raw}", f"out={out}", "prepare.last_frames={Scene01:0,Scene02:1}")
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
    for absent in ("Scene01", "rgb/none", "other/x.png"):  # of the names in the tars, in one of them, in none
        with pytest.raises(MissingDataError, match=absent.rpartition("/")[2]):
            dataset.storage.read(absent)
    if packed:
        return
    (raw / "depth/Scene01/clone/frames/depth/Camera_1/depth_00000.png").unlink()
    for dry_run in ("false", "true"):
        with pytest.raises(DataError, match="1 of 36 images"):
            prepare("vkitti", *arguments, f"dry_run={dry_run}")
    summary = prepare("vkitti", *arguments, "max_broken=0.1")
    assert [dict(result.dropped) for result in summary.lists] == [{}, {"missing": 1}]
