"""From the published archives, in miniature, to the readers' samples, by the commands as people call them."""

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from mini_archives import TARS, archive_files, write_archive

from marigold.config import build

CONFIGS = Path(__file__).parents[3] / "configs"
DATASETS = sorted({dataset for dataset, _ in TARS})


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MARIGOLD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MARIGOLD_DOWNLOADS", str(tmp_path / "downloads"))


def composed(name: str, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, list(overrides))


def reader(dataset: str, *overrides: str):
    """As scripts/eval.py opens it, for images of 8 x 12."""
    config = composed("eval", f"dataset={dataset}", "dataset.reader.image_size=[8,12]", *overrides)
    return build(config.dataset.reader, "dataset.reader")


@pytest.mark.parametrize(("dataset", "source"), TARS)
def test_an_archive_is_prepared_and_read(tmp_path, dataset, source):
    tar = write_archive(dataset, source, tmp_path / "downloads" / dataset)
    build(composed("prepare", f"dataset={dataset}", f"source={source}").prepare, "prepare")
    assert (tmp_path / "data" / dataset / tar.name).is_symlink()
    split = f"dataset.reader.split_list={tmp_path}/data/kitti/eigen_val_800.txt"
    changes = (["dataset.reader.crop=[6,10]"] if dataset == "kitti" else []) + ([split] if "val" in source else [])
    samples = reader(dataset, *changes)
    assert len(samples) == (1 if dataset == "nyu" else 2)
    assert 2 <= samples[0].depth.min() < 2.3
    assert samples[0].image.shape == ((3, 6, 10) if dataset == "kitti" else (3, 8, 12))
    assert samples.storage.absent(samples.names) == []


def test_both_of_kittis_archives_lie_side_by_side(tmp_path, call):
    for source in ("archive", "archive_val"):
        write_archive("kitti", source, tmp_path / "downloads/kitti")
    code, text, error = call("-m", "dataset=kitti", "source=archive,archive_val")
    assert code == 0, error
    lists = {name: (tmp_path / f"data/kitti/{name}.txt").read_text() for name in ("eigen_test", "eigen_val_800")}
    assert [("drive_0002" in lines, "drive_0001" in lines) for lines in lists.values()] == [
        (True, False),
        (False, True),
    ]
    code, text, error = call("check", "dataset=kitti", "dataset.reader.crop=[6,10]")
    assert code == 0, text + error
    assert text.count("2 samples checked") == 2
    assert text.count("official split") == 2  # each list is told of once


def test_several_sets_in_one_command(tmp_path, call):
    for dataset in ("nyu", "eth3d", "scannet", "diode"):
        write_archive(dataset, "archive", tmp_path / "downloads" / dataset)
    sets = "dataset=nyu,kitti,eth3d,scannet,diode"
    before = set(tmp_path.rglob("*"))
    assert call("-m", sets, "source=archive", "dry_run=true")[0] == 2
    assert set(tmp_path.rglob("*")) == before
    code, text, error = call("-m", sets, "source=archive")
    assert code == 2  # kitti alone failed, and those after it are there
    assert "kitti_eigen_split_test.tar: no such folder or archive" in error
    assert text.count("read in place: ") == 4
    assert text.count("NOT the official split") == 7
    assert "not the official" not in text  # the log says nothing of what the text says
    code, text, error = call("check", "-m", "dataset=nyu,eth3d,scannet,diode", "++dataset.reader.image_size=[8,12]")
    assert code == 0, text + error
    assert text.count("all is well") == 5


def test_check_reads_every_list_and_reports_beside_the_data(tmp_path, call):
    write_archive("nyu", "archive", tmp_path / "downloads/nyu")
    assert call("dataset=nyu", "source=archive")[0] == 0
    lists = tmp_path / "data/nyu/filename_list_train.txt", tmp_path / "data/nyu/filename_list_test.txt"
    lists[0].write_text(lists[0].read_text().replace("depth_0001", "depth_0009"))
    code, text, _ = call("check", "dataset=nyu", "dataset.reader.image_size=[8,12]")
    assert code == 1
    assert f"all offenders are in {tmp_path}/data/nyu/check.txt" in text
    assert "depth_0009.png: no such member" in (tmp_path / "data/nyu/check.txt").read_text()
    lists[0].unlink()
    code, text, _ = call("check", "dataset=nyu", "dataset.reader.image_size=[8,12]")
    assert code == 0
    assert f"{lists[0]}: not there, not checked" in text
    assert not (tmp_path / "data/nyu/check.txt").exists()
    lists[1].unlink()
    code, _, error = call("check", "dataset=nyu")
    assert code == 2
    assert "python scripts/prepare.py dataset=nyu" in error


@pytest.mark.parametrize("dataset", ["hypersim", "kitti", "nyu", "vkitti"])
def test_each_checked_list_is_read_where_it_is_written(tmp_path, dataset):
    config = composed("prepare", f"dataset={dataset}")
    first, *others = config.check.values()
    assert first == {}
    for other in others:
        name = other.official_split.partition("/")[2]
        assert name in Path(other.split_list).stem.replace("filename_list_", "")
        if dataset == "hypersim":
            assert other.root == f"{tmp_path}/data/hypersim/{name}"


def test_files_of_the_publisher_come_before_those_of_the_archive(tmp_path):
    write_archive("diode", "archive", tmp_path / "downloads/diode")
    build(composed("prepare", "dataset=diode", "source=archive").prepare, "prepare")
    for name, data in archive_files("diode", "archive", (8, 12)).items():
        target = tmp_path / "downloads/diode/val" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
        if name.endswith("_depth.npy"):
            np.save(target, np.load(target) + 5)
    build(composed("prepare", "dataset=diode").prepare, "prepare")
    assert 7 <= reader("diode")[0].depth.min() < 7.3


def test_another_archive_of_the_same_name_is_refused(tmp_path, call):
    first = write_archive("nyu", "archive", tmp_path / "downloads/nyu")
    second = write_archive("nyu", "archive", tmp_path / "other")
    assert call("dataset=nyu", f"prepare.archive={second}")[0] == 0
    code, _, error = call("dataset=nyu", "source=archive")
    assert code == 2
    assert f"exists and is not {first}" in error
    second.unlink()  # the link leads nowhere now
    assert call("dataset=nyu", "source=archive")[0] == 0
