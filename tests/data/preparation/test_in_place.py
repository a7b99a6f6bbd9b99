"""From the published archives, in miniature, to the readers' samples."""

from pathlib import Path

import pytest
from mini_archives import archive_files, pack, unpack, write_archive

from marigold.data.errors import DataError
from runs import composed


@pytest.mark.parametrize(("dataset", "count"), [("nyu", 1), ("eth3d", 2)])  # the others: test_benchmarks.py
def test_an_archive_is_prepared_and_read(tmp_path, dataset, count, prepare, reader):
    tar = write_archive(dataset, "archive", tmp_path / "downloads" / dataset)
    prepare(dataset, "source=archive")
    assert (tmp_path / "data" / dataset / tar.name).is_symlink()
    samples = reader(dataset, tmp_path / "data", "image_size=[8,12]")
    samples.check_files()
    assert len(samples) == count
    assert 2 <= samples[0].depth.min() < 2.3


@pytest.mark.parametrize("dry_run", ["dry_run=true", "dry_run=false"])
def test_what_is_not_in_an_archive_is_an_error(tmp_path, dry_run, prepare):
    *names, last = archive_files("diode")
    for files, named in ((dict.fromkeys(names, b""), last), ({"readme.txt": b""}, "diode_val.tar")):
        tar = pack(tmp_path / "diode_val.tar", files)
        with pytest.raises(DataError, match=named):
            prepare("diode", f"prepare.archive={tar}", "max_broken=1", dry_run)


def test_an_unpacked_archive_is_listed_where_it_is(tmp_path, prepare):
    folder = unpack(tmp_path / "diode", archive_files("diode"))
    with pytest.raises(DataError, match=f"out={folder}"):
        prepare("diode", f"prepare.archive={folder}", f"out={tmp_path / 'out'}")
    assert prepare("diode", f"prepare.archive={folder}", f"out={folder}").lists[0].split.count == 2
    other = write_archive("diode", "archive", tmp_path).rename(tmp_path / "diode_val.TAR")
    with pytest.raises(DataError, match=r"diode_val\.TAR"):
        prepare("diode", f"prepare.archive={other}")


@pytest.mark.parametrize("dataset", ["hypersim", "kitti", "nyu", "vkitti"])
def test_each_checked_list_is_read_where_it_is_written(tmp_path, dataset):
    first, *others = composed("prepare", f"dataset={dataset}").check.values()
    assert first == {}
    for other in others:
        name = other.official_split.partition("/")[2]
        assert name in Path(other.split_list).stem.replace("filename_list_", "")
        if dataset == "hypersim":
            assert other.root == f"{tmp_path}/data/hypersim/{name}"


def test_another_archive_of_the_same_name_is_refused(tmp_path, prepare):
    first = write_archive("nyu", "archive", tmp_path / "downloads/nyu")
    second = write_archive("nyu", "archive", tmp_path / "other")
    prepare("nyu", f"prepare.archive={second}")
    with pytest.raises(DataError, match=str(first)):
        prepare("nyu", "source=archive")
    second.unlink()  # the link leads nowhere now
    prepare("nyu", "source=archive")
