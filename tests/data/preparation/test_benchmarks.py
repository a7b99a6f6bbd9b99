"""The benchmarks and Virtual KITTI: both routes give the same samples, and what is missing is named."""

import os

import numpy as np
import pytest
import torch
from mini_archives import archive_files, encoded, pack, unpack, write_archive

from marigold.data import splits
from marigold.data.errors import DataError, MissingDataError

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def raw_name(dataset: str, name: str) -> str:
    """The publisher's name of a file of the evaluation archive."""
    if dataset == "kitti" and "proj_depth" in name:
        return f"data_depth_annotated/train/{name}"
    if dataset == "eth3d":  # one depth archive unpacked beside the images, the other in a folder of its own
        parent = "depth/office_dslr_depth/" if "0001.JPG" in name else "depth/"
        return name.removeprefix("rgb/").removeprefix(parent)
    return f"val/{name}" if dataset == "diode" else name


@pytest.mark.parametrize("dataset", ["kitti", "eth3d", "scannet", "diode"])
def test_the_publishers_files_give_the_archives_lists_and_samples(tmp_path, dataset, prepare, reader):
    files, raw = archive_files(dataset), tmp_path / "raw"
    if dataset == "kitti":
        del files[[name for name in files if "proj_depth" in name][-1]]
    unpack(raw, {raw_name(dataset, name): data for name, data in files.items()})
    unpack(raw, {"botanical_garden/images/dslr_images/DSC_0001.JPG": b"of another part of ETH3D"})
    scene = next(path for path in raw.iterdir() if path.name not in ("botanical_garden", "data_depth_annotated"))
    scene.rename(tmp_path / "elsewhere")
    scene.symlink_to(tmp_path / "elsewhere")
    tar, two, one = pack(tmp_path / "set.tar", files), tmp_path / "two" / dataset, tmp_path / "one" / dataset
    prepare(dataset, f"prepare.archive={tar}", f"out={one}")
    lists = sorted(one.glob("*.txt"))
    arguments = (f"raw={raw}", f"out={two}", *(["prepare.photo_size=[8,12]"] * (dataset == "scannet")))
    if dataset in ("kitti", "scannet"):  # drawn at random
        with pytest.raises(DataError, match=r"prepare\.split_list"):
            prepare(dataset, *arguments)
        arguments = (*arguments, f"prepare.split_list={lists[0]}")
    assert prepare(dataset, *arguments).written == 0  # linked, not copied
    assert [(two / path.name).read_bytes() for path in lists] == [path.read_bytes() for path in lists]
    crop = ["crop=[6,10]"] * (dataset == "kitti")
    first, second = (reader(dataset, tmp_path / way, "image_size=[8,12]", *crop) for way in ("one", "two"))
    assert len(first) == (1 if dataset == "kitti" else 2)
    for sample, other in zip(first, second, strict=True):
        assert sample.name == other.name
        assert torch.equal(sample.image, other.image)
        assert torch.equal(sample.depth, other.depth)
    assert prepare(dataset, *arguments).already == 2


def test_scannet_shrinks_large_images_and_copies_where_no_link_can_be(tmp_path, prepare, reader, monkeypatch):
    files = archive_files("scannet") | {"scene0011_00/color/000100.jpg": encoded(PIXELS.repeat(2, 0).repeat(2, 1))}
    unpack(tmp_path / "raw", files)
    prepare("scannet", f"prepare.archive={pack(tmp_path / 'set.tar', files)}", f"out={tmp_path}")

    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    options = (f"prepare.split_list={tmp_path / 'filename_list_val_800.txt'}", "prepare.photo_size=[8,12]")
    out, copy = tmp_path / "data/scannet", "scene0011_00/color/000200.jpg"
    summary = prepare("scannet", f"raw={tmp_path / 'raw'}", *options)
    assert summary.written == sum(path.stat().st_size for path in out.glob("scene*/*/*"))
    sample = reader("scannet", tmp_path / "data", "image_size=[8,12]")[0]
    # Each pixel was repeated four times: the mean colour survives the shrinking.
    assert np.abs(sample.image.mean((1, 2)).numpy() - PIXELS.mean((0, 1)) / 255).max() < 0.02
    assert (out / copy).read_bytes() == files[copy]
    (tmp_path / "raw/scene0011_00/color/000100.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"000100\.jpg"):
        prepare("scannet", f"raw={tmp_path / 'raw'}", *options)


def test_missing_files_of_the_publisher_are_named(tmp_path, prepare):
    unpack(tmp_path / "raw", archive_files("diode"))
    arguments = (f"raw={tmp_path / 'raw'}", f"out={tmp_path / 'out'}")
    (depth,) = (tmp_path / "raw").rglob("*_outdoor_*_depth.npy")
    for make_bad in (lambda: depth.write_bytes(b""), depth.unlink):
        make_bad()
        with pytest.raises(DataError, match=depth.name):
            prepare("diode", *arguments)
    with pytest.raises(DataError, match=r"filename_list_outdoor\.txt"):  # no image is left to list
        prepare("diode", *arguments, "max_broken=0.5")
    with pytest.raises(DataError, match="nowhere"):
        prepare("diode", "raw=/nowhere")


def test_archives_that_cannot_be_listed(tmp_path, prepare):
    *names, last = archive_files("diode")
    for files, named in ((dict.fromkeys(names, b""), last), ({"readme.txt": b""}, "diode_val.tar")):
        tar = pack(tmp_path / "diode_val.tar", files)
        for dry_run in ("true", "false"):
            with pytest.raises(DataError, match=named):
                prepare("diode", f"prepare.archive={tar}", "max_broken=1", f"dry_run={dry_run}")
    for wrong in (tar.rename(tmp_path / "diode_val.TAR"), unpack(tmp_path / "unpacked", archive_files("diode"))):
        with pytest.raises(DataError, match=str(wrong)):
            prepare("diode", f"prepare.archive={wrong}")


def test_another_archive_of_the_same_name_is_refused(tmp_path, prepare):
    first = write_archive("nyu", "archive", tmp_path / "downloads/nyu")
    second = write_archive("nyu", "archive", tmp_path / "other")
    prepare("nyu", f"prepare.archive={second}")
    with pytest.raises(DataError, match=str(first)):
        prepare("nyu", "source=archive")
    second.unlink()  # the link leads nowhere now
    prepare("nyu", "source=archive")
    assert (tmp_path / "data/nyu" / first.name).samefile(first)


def test_vkitti_is_read_in_the_publishers_tars(tmp_path, prepare, reader, monkeypatch):
    monkeypatch.setattr(splits, "VKITTI_LAST_FRAMES", dict.fromkeys(splits.VKITTI_LAST_FRAMES, 0))
    raw, out = tmp_path / "raw", tmp_path / "vkitti"
    lines = [line.split() for split in ("train", "val") for line in splits.vkitti_lines(split)]
    parts = [[name.partition("/")[2] for name in column] for column in zip(*lines, strict=True)]
    pack(raw / "vkitti_2.0.3_rgb.tar", dict.fromkeys(parts[0], encoded(PIXELS, "JPEG")))
    depth = dict.fromkeys(parts[1][:-1], encoded(np.full((8, 12), 1234, np.uint16)))  # lacks the last one, of val
    pack(raw / "vkitti_2.0.3_depth.tar", depth)
    for dry_run in ("false", "true"):
        with pytest.raises(DataError, match="1 of 60 images"):
            prepare("vkitti", f"raw={raw}", f"out={out}", f"dry_run={dry_run}")
    summary = prepare("vkitti", f"raw={raw}", f"out={out}", "max_broken=0.1")
    assert [dict(result.dropped) for result in summary.lists] == [{}, {"missing": 1}]
    assert [result.split.count for result in summary.lists] == [48, 11]
    dataset = reader(
        "vkitti", tmp_path, f"split_list={out}/filename_list_train.txt", "image_size=[8,12]", "crop=[4,10]"
    )
    assert np.allclose(dataset[5].depth, 12.34)
    assert dataset[5].image.shape == (3, 4, 10)
    for absent in ("Scene01", "rgb/none", "other/x.png"):  # of the names in the tars, in one of them, in none
        with pytest.raises(MissingDataError, match=absent.rpartition("/")[2]):
            dataset.storage.read(absent)
