"""scripts/download.py as users call it: what it says, and its exit code."""

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


def test_known_sizes_hold_until_verify_is_off(tmp_path, call):
    out = tmp_path / "raw"
    with serving({"/val.tar.gz": Served(b"another")}) as server:
        arguments = ("dataset=diode", f"out={out}", f"download.publisher.files.0.url={server.url('/val.tar.gz')}")
        code, text, _ = call(*arguments, "dry_run=true")
        assert (code, out.exists()) == (0, False)
        code, text, _ = call(*arguments)
        assert (code, "2,774,625,282" in text, "verify=false" in text, "next:" in text) == (1, True, True, False)
        code, text, _ = call(*arguments, "verify=false")
    assert (code, f"raw={out}\n" in text) == (0, True)
    assert (out / "val.tar.gz").read_bytes() == b"another"


def test_several_sets_and_the_folders_of_the_environment(tmp_path, call, monkeypatch):
    monkeypatch.setenv("MARIGOLD_DOWNLOADS", str(tmp_path / "down"))
    with serving({"/eth3d/eth3d.tar": Served(b"a tar")}) as server:
        archives = f"archives='{server.url('')}'"
        code, text, _ = call("dataset=nyu,eth3d", "source=archive", archives, "-m")
        assert code == 1  # the first set failed, and the second came
        assert "nyu_labeled_extracted.tar" in text
        assert "next: python scripts/prepare.py dataset=eth3d source=archive\n" in text
        assert (tmp_path / "down/eth3d/eth3d.tar").read_bytes() == b"a tar"
    assert not (SCRIPT.parents[1] / "multirun").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["dataset=scannet"], "http://www.scan-net.org"),
        (["dataset=kitti"], "split_list"),
        (["dataset=hypersim", "source=archive"], "source"),
        (["dataset=motorcycle"], "source"),
        (["dataset=nyu", "network.retries=many"], "retries"),
    ],
)
def test_errors_are_one_line_that_names_the_key(tmp_path, call, arguments, named):
    code, _, error = call(*arguments, f"out={tmp_path}")
    assert (code, len(error.strip().splitlines())) == (2, 1)
    assert named in error
