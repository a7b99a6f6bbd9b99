"""scripts/prepare.py and scripts/download.py as they are called: exit codes, what they name, what they leave."""

import importlib

import pytest
from mini_archives import write_archive

from runs import ROOT, composed
from web_server import Served, serving

QUICK = ("network.wait=0.001", "network.retries=1")


@pytest.mark.parametrize(
    ("name", "words", "named"),
    [
        ("prepare", ("dataset=diode", "raw=/nowhere", "out=/nowhere/else"), "/nowhere"),
        ("prepare", ("dataset=nyu", "source=archive_val"), "source"),
        ("prepare", ("dataset=vkitti", "source=archive"), "source"),
        ("prepare", ("dataset=rooms", "out=/nowhere/else", "dry_run=true"), "dry_run"),
        ("prepare", ("dataset=motorcycle", "action=check"), "lists"),
        ("prepare", ("dataset=nyu", "action=check"), r"python scripts/prepare\.py dataset=nyu"),
        ("download", ("dataset=kitti",), "split_list"),
        ("download", ("dataset=motorcycle",), "source"),
    ],
)
def test_an_error_names_the_key(name, words, named):
    verb = importlib.import_module(f"marigold.{name}")
    with pytest.raises(ValueError, match=named):
        verb.run(composed(name, *words))


def test_an_error_is_one_line(tmp_path, call):
    for name, key in (("prepare.py", "workers"), ("download.py", "network.retries")):
        code, _, error = call(name, "dataset=kitti", f"out={tmp_path}", f"{key}=many")
        assert (code, len(error.strip().splitlines()), key.rpartition(".")[2] in error) == (2, 1, True)


def test_downloads_of_several_sets_and_of_a_changed_file(tmp_path, call):
    with serving({"/diode/diode_val.tar": Served(b"a tar"), "/val.tar.gz": Served(b"another")}) as server:
        # The first set fails, and the second comes.
        sets = ("dataset=nyu,diode", "source=archive", f"archives='{server.url('')}'", "-m")
        code, text, _ = call("download.py", *QUICK, *sets)
        assert (code, "nyu_labeled_extracted.tar" in text) == (1, True)
        assert "next: python scripts/prepare.py dataset=diode source=archive\n" in text
        assert (tmp_path / "downloads/diode/diode_val.tar").read_bytes() == b"a tar"
        url = f"download.publisher.files.0.url={server.url('/val.tar.gz')}"
        code, text, _ = call("download.py", *QUICK, "dataset=diode", f"out={tmp_path}", url)
        assert (code, "2,774,625,282" in text, "verify=false" in text, "next:" in text) == (1, True, True, False)
        code, text, _ = call("download.py", *QUICK, "dataset=diode", f"out={tmp_path}", url, "verify=false")
        assert (code, f"raw={tmp_path}\n" in text) == (0, True)
        assert "1 of 1 files are there and checked" in text  # what the rehearsal reads
    assert not (ROOT / "multirun").exists()


def test_preparing_and_checking_several_sets(tmp_path, call):
    data, downloads = tmp_path / "data", tmp_path / "downloads"
    write_archive("nyu", "archive", downloads / "nyu")
    code, text, error = call("prepare.py", "-m", "dataset=kitti,nyu", "source=archive")
    assert code == 2  # kitti failed, and the one after it is there
    assert "kitti_eigen_split_test.tar" in error
    assert (text.count("read in place: "), text.count("NOT the official split")) == (1, 2)
    for source in ("archive", "archive_val"):
        write_archive("kitti", source, downloads / "kitti")
    assert call("prepare.py", "-m", "dataset=kitti", "source=archive,archive_val")[0] == 0
    lists = [(data / f"kitti/{name}.txt").read_text() for name in ("eigen_test", "eigen_val_800")]
    assert [("drive_0002" in lines, "drive_0001" in lines) for lines in lists] == [(True, False), (False, True)]
    sizes = ("++dataset.reader.image_size=[8,12]", "++dataset.reader.crop=[6,10]")
    code, text, error = call("prepare.py", "check", "-m", "dataset=kitti,nyu", *sizes)
    assert (code, text.count("all is well")) == (0, 4), text + error
    # Every list is checked, and what is wrong stands beside the data.
    train, report = data / "nyu/filename_list_train.txt", data / "nyu/check.txt"
    train.write_text(train.read_text().replace("depth_0001", "depth_0009"))
    code, text, _ = call("prepare.py", "check", "dataset=nyu", sizes[0])
    assert (code, str(report) in text, "depth_0009.png" in report.read_text()) == (1, True, True)
    train.unlink()
    code, text, _ = call("prepare.py", "check", "dataset=nyu", sizes[0])
    assert (code, f"{train}: not there" in text, report.exists()) == (0, True, False)
