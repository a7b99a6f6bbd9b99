"""From the published archives, in miniature, to the readers' samples, by the commands as they are typed."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from mini_archives import TARS, archive_files, write_archive

from conftest import composed
from marigold.data.errors import DataError


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MARIGOLD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MARIGOLD_DOWNLOADS", str(tmp_path / "downloads"))


@pytest.mark.parametrize(("dataset", "source"), TARS)
def test_an_archive_is_prepared_and_read(tmp_path, dataset, source, prepare, reader):
    tar = write_archive(dataset, source, tmp_path / "downloads" / dataset)
    prepare(dataset, f"source={source}")
    assert (tmp_path / "data" / dataset / tar.name).is_symlink()
    split = f"split_list={tmp_path}/data/kitti/eigen_val_800.txt"
    changes = (["crop=[6,10]"] if dataset == "kitti" else []) + ([split] if "val" in source else [])
    samples = reader(dataset, tmp_path / "data", "image_size=[8,12]", *changes)
    assert len(samples) == (1 if dataset == "nyu" else 2)
    assert 2 <= samples[0].depth.min() < 2.3
    assert samples[0].image.shape == ((3, 6, 10) if dataset == "kitti" else (3, 8, 12))
    assert samples.storage.absent(samples.names) == []


@pytest.mark.parametrize("dry_run", ["dry_run=true", "dry_run=false"])
def test_what_is_not_in_an_archive_is_an_error(tmp_path, dry_run, prepare):
    tar = write_archive("diode", "archive", tmp_path)
    files = archive_files("diode", "archive", (8, 12))
    arguments = (f"prepare.archive={tar}", "max_broken=1", dry_run)
    with tarfile.open(tar, "w") as archive:
        for name in list(files)[:-1]:
            archive.addfile(tarfile.TarInfo(f"./{name}"))
    with pytest.raises(DataError, match=rf"{list(files)[-1]}"):
        prepare("diode", *arguments)
    with tarfile.open(tar, "w") as archive:
        archive.addfile(tarfile.TarInfo("readme.txt"))
    with pytest.raises(DataError, match=str(tar)):
        prepare("diode", *arguments)


def test_an_unpacked_archive_is_listed_where_it_is(tmp_path, prepare):
    folder = tmp_path / "diode"
    for name, data in archive_files("diode", "archive", (8, 12)).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with pytest.raises(DataError, match=f"out={folder}"):
        prepare("diode", f"prepare.archive={folder}", f"out={tmp_path / 'out'}")
    assert prepare("diode", f"prepare.archive={folder}", f"out={folder}").lists[0].split.count == 2
    other = write_archive("diode", "archive", tmp_path).rename(tmp_path / "diode_val.TAR")
    with pytest.raises(DataError, match=r"diode_val\.TAR"):
        prepare("diode", f"prepare.archive={other}")


def test_several_sets_in_one_command(tmp_path, call):
    sets = "dataset=nyu,kitti,diode"
    for dataset in ("nyu", "diode"):
        write_archive(dataset, "archive", tmp_path / "downloads" / dataset)
    before = set(tmp_path.rglob("*"))
    assert call("-m", sets, "source=archive", "dry_run=true")[0] == 2
    assert set(tmp_path.rglob("*")) == before
    code, text, error = call("-m", sets, "source=archive")
    assert code == 2  # kitti alone failed, and the one after it is there
    assert "kitti_eigen_split_test.tar" in error
    assert text.count("read in place: ") == 2
    assert text.count("NOT the official split") == 5
    for source in ("archive", "archive_val"):
        write_archive("kitti", source, tmp_path / "downloads/kitti")
    assert call("-m", "dataset=kitti", "source=archive,archive_val")[0] == 0
    lists = [(tmp_path / f"data/kitti/{name}.txt").read_text() for name in ("eigen_test", "eigen_val_800")]
    assert [("drive_0002" in lines, "drive_0001" in lines) for lines in lists] == [(True, False), (False, True)]
    sizes = ("++dataset.reader.image_size=[8,12]", "++dataset.reader.crop=[6,10]")
    code, text, error = call("check", "-m", sets, *sizes)
    assert code == 0, text + error
    assert text.count("all is well") == 5


def test_check_reads_every_list_and_reports_beside_the_data(tmp_path, call):
    write_archive("nyu", "archive", tmp_path / "downloads/nyu")
    assert call("dataset=nyu", "source=archive")[0] == 0
    lists = tmp_path / "data/nyu/filename_list_train.txt", tmp_path / "data/nyu/filename_list_test.txt"
    report = tmp_path / "data/nyu/check.txt"
    lists[0].write_text(lists[0].read_text().replace("depth_0001", "depth_0009"))
    code, text, _ = call("check", "dataset=nyu", "dataset.reader.image_size=[8,12]")
    assert (code, str(report) in text) == (1, True)
    assert "depth_0009.png" in report.read_text()
    lists[0].unlink()
    code, text, _ = call("check", "dataset=nyu", "dataset.reader.image_size=[8,12]")
    assert (code, f"{lists[0]}: not there" in text) == (0, True)
    assert not report.exists()
    lists[1].unlink()
    code, _, error = call("check", "dataset=nyu")
    assert (code, "python scripts/prepare.py dataset=nyu" in error) == (2, True)


@pytest.mark.parametrize("dataset", ["hypersim", "kitti", "nyu", "vkitti"])
def test_each_checked_list_is_read_where_it_is_written(tmp_path, dataset):
    first, *others = composed("prepare", f"dataset={dataset}").check.values()
    assert first == {}
    for other in others:
        name = other.official_split.partition("/")[2]
        assert name in Path(other.split_list).stem.replace("filename_list_", "")
        if dataset == "hypersim":
            assert other.root == f"{tmp_path}/data/hypersim/{name}"


def test_files_of_the_publisher_come_before_those_of_the_archive(tmp_path, prepare, reader):
    write_archive("diode", "archive", tmp_path / "downloads/diode")
    prepare("diode", "source=archive")
    for name, data in archive_files("diode", "archive", (8, 12)).items():
        target = tmp_path / "downloads/diode/val" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        if name.endswith("_depth.npy"):
            np.save(target, np.load(target) + 5)
    prepare("diode")
    assert 7 <= reader("diode", tmp_path / "data", "image_size=[8,12]")[0].depth.min() < 7.3


def test_another_archive_of_the_same_name_is_refused(tmp_path, prepare):
    first = write_archive("nyu", "archive", tmp_path / "downloads/nyu")
    second = write_archive("nyu", "archive", tmp_path / "other")
    prepare("nyu", f"prepare.archive={second}")
    with pytest.raises(DataError, match=str(first)):
        prepare("nyu", "source=archive")
    second.unlink()  # the link leads nowhere now
    prepare("nyu", "source=archive")
