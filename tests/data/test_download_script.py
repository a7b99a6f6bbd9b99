"""scripts/download.py as people call it: what it says, and its exit code."""

import logging
import runpy
import sys
from pathlib import Path

import pytest

from web_server import Served, serving

SCRIPT = Path(__file__).parents[2] / "scripts/download.py"


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs the script as `python scripts/download.py ...` does: (exit code, stdout, stderr)."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # Hydra replaces them

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(SCRIPT.parents[1])
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "network.wait=0.001", "network.retries=1", *arguments])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        root.handlers[:] = handlers
        return exit_.value.code, *capsys.readouterr()

    yield run
    root.setLevel(level)


def test_an_archive(tmp_path, call):
    out = tmp_path / "raw"
    with serving({"/diode/diode_val.tar": Served(b"a tar")}) as server:
        arguments = ("dataset=diode", "source=archive", f"out={out}", f"archives={server.url('')}")
        code, text, _ = call(*arguments, "dry_run=true")
        assert (code, out.exists()) == (0, False)
        assert "dry run: 1 files" in text
        code, text, _ = call(*arguments)
        assert code == 0
        assert f"next: python scripts/prepare.py dataset=diode source=archive raw={out}\n" in text
        assert (out / "diode_val.tar").read_bytes() == b"a tar"
        code, text, _ = call("dataset=nyu", "source=archive", f"out={out}", f"archives={server.url('')}")
    assert code == 1
    assert "not downloaded: nyu_labeled_extracted.tar" in text
    assert "404" in text
    assert "next:" not in text


def test_known_sizes_hold_until_verify_is_off(tmp_path, call):
    with serving({"/val.tar.gz": Served(b"another")}) as server:
        url = f"download.publisher.files.0.url={server.url('/val.tar.gz')}"
        code, text, _ = call("dataset=diode", f"out={tmp_path}", url)
        assert code == 1
        assert "7 bytes, expected 2,774,625,282" in text
        assert "verify=false" in text
        code, text, _ = call("dataset=diode", f"out={tmp_path}", url, "verify=false")
    assert code == 0
    assert "tar -xzf" in text


def test_several_sets_and_the_folders_of_the_environment(tmp_path, call, monkeypatch):
    monkeypatch.setenv("MARIGOLD_DOWNLOADS", str(tmp_path / "down"))
    with serving({"/eth3d/eth3d.tar": Served(b"a tar"), "/kitti/kitti_sampled_val_800.tar": Served(b"b")}) as server:
        archives = f"archives='{server.url('')}'"
        code, text, _ = call("dataset=nyu,eth3d", "source=archive", archives, "-m")
        assert code == 1  # the first set failed, and the second came
        assert "not downloaded: nyu_labeled_extracted.tar" in text
        assert "next: python scripts/prepare.py dataset=eth3d source=archive\n" in text
        assert (tmp_path / "down/eth3d/eth3d.tar").read_bytes() == b"a tar"
        code, text, _ = call("dataset=kitti", "source=archive_val", archives, f"paths.downloads={tmp_path}/a b")
    assert code == 0, text
    assert (
        f"next: python scripts/prepare.py dataset=kitti source=archive_val 'paths.downloads={tmp_path}/a b'\n" in text
    )
    assert not (SCRIPT.parents[1] / "multirun").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["dataset=scannet"], 2, "only after signing its terms of use: see http://www.scan-net.org"),
        (["dataset=kitti"], 2, "give split_list=FILE"),
        (["dataset=hypersim", "source=archive"], 2, "source: no 'archive' in configs/download/; it has: publisher"),
        (["dataset=motorcycle"], 2, "this data set is not downloaded"),
        (["dataset=nyu", "network.retries=many"], 2, "retries"),
    ],
)
def test_errors_say_what_to_do(tmp_path, call, arguments, code, message):
    found, _, error = call(*arguments, f"out={tmp_path}")
    assert found == code
    assert message in error
    assert len(error.strip().splitlines()) == 1
