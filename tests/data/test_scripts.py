"""Preparing and downloading as a user does: exit codes, the keys and files that errors name, the files left."""

import importlib

import pytest
from mini_archives import write_archive

from runs import ROOT, call_script, composed, environment
from web_server import Served, serving

QUICK = ("network.wait=0.001", "network.retries=1")


def verb(name: str, *words: str) -> bool:
    return importlib.import_module(f"marigold.{name}").run(composed(name, *words))


@pytest.mark.parametrize(
    ("name", "words", "named"),
    [
        ("prepare", ("dataset=vkitti", "source=archive"), "source"),
        ("prepare", ("dataset=rooms", "out=/nowhere/else", "dry_run=true"), "dry_run"),
        ("prepare", ("dataset=nyu", "action=check"), r"python scripts/prepare\.py dataset=nyu"),
        ("download", ("dataset=kitti",), "split_list"),
    ],
)
def test_an_error_names_the_key(name, words, named):
    with pytest.raises(ValueError, match=named):
        verb(name, *words)


def test_the_exit_code_of_several_sets(tmp_path):
    with serving({"/diode/diode_val.tar": Served(b"a tar")}) as server:
        # The first set fails, and the second comes.
        sets = ("dataset=nyu,diode", "source=archive", f"archives='{server.url('')}'", "-m")
        places = environment(MARIGOLD_DOWNLOADS=str(tmp_path))
        ran = call_script("download.py", *QUICK, *sets, cwd=ROOT, env=places)
    assert (ran.returncode, "nyu_labeled_extracted.tar" in ran.stdout) == (1, True)
    assert "next: python scripts/prepare.py dataset=diode source=archive\n" in ran.stdout
    assert (tmp_path / "diode/diode_val.tar").read_bytes() == b"a tar"
    ran = call_script("prepare.py", "dataset=nyu", "workers=many", cwd=tmp_path)
    assert (ran.returncode, len(ran.stderr.strip().splitlines()), "workers" in ran.stderr) == (2, 1, True)


def test_a_file_that_has_changed_is_taken_with_verify_false(tmp_path, capsys):
    with serving({"/val.tar.gz": Served(b"another")}) as server:
        words = (
            *QUICK,
            "dataset=diode",
            f"out={tmp_path}",
            f"download.publisher.files.0.url={server.url('/val.tar.gz')}",
        )
        assert not verb("download", *words)
        text = capsys.readouterr().out
        assert ("5c895d09" in text, "verify=false" in text, "next:" in text) == (True, True, False)
        assert verb("download", *words, "verify=false")
    assert f"raw={tmp_path}\n" in capsys.readouterr().out  # the next step


def test_both_lists_of_kitti_are_prepared_and_every_list_is_checked(tmp_path, capsys):
    data, sizes = tmp_path / "data", ("++dataset.reader.image_size=[8,12]", "++dataset.reader.crop=[6,10]")
    for source in ("archive", "archive_val"):
        write_archive("kitti", source, tmp_path / "downloads/kitti")
        verb("prepare", "dataset=kitti", f"source={source}")
    test, val = (data / f"kitti/{name}.txt" for name in ("eigen_test", "eigen_val_800"))
    assert ("drive_0002" in test.read_text(), "drive_0001" in val.read_text()) == (True, True)
    assert capsys.readouterr().out.count("NOT the official split") == 2
    assert verb("prepare", "dataset=kitti", "action=check", *sizes)
    assert capsys.readouterr().out.count("all is well") == 2
    val.write_text(val.read_text().replace("02/0000000001.png ", "02/0000000009.png "))
    assert not verb("prepare", "dataset=kitti", "action=check", *sizes)
    report = data / "kitti/check.txt"
    assert (str(report) in capsys.readouterr().out, "0000000009.png" in report.read_text()) == (True, True)
    val.unlink()
    assert verb("prepare", "dataset=kitti", "action=check", *sizes)
    assert (f"{val}: not there" in capsys.readouterr().out, report.exists()) == (True, False)
