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


def test_what_came_and_what_did_not(tmp_path, call, monkeypatch):
    monkeypatch.setenv("MARIGOLD_DOWNLOADS", str(tmp_path / "down"))
    with serving({"/diode/diode_val.tar": Served(b"a tar"), "/val.tar.gz": Served(b"another")}) as server:
        # The first set fails, and the second comes.
        code, text, _ = call("dataset=nyu,diode", "source=archive", f"archives='{server.url('')}'", "-m")
        assert (code, "nyu_labeled_extracted.tar" in text) == (1, True)
        assert "next: python scripts/prepare.py dataset=diode source=archive\n" in text
        assert (tmp_path / "down/diode/diode_val.tar").read_bytes() == b"a tar"
        arguments = ("dataset=diode", f"out={tmp_path}", f"download.publisher.files.0.url={server.url('/val.tar.gz')}")
        code, text, _ = call(*arguments)
        assert (code, "2,774,625,282" in text, "verify=false" in text, "next:" in text) == (1, True, True, False)
        code, text, _ = call(*arguments, "verify=false")
        assert (code, f"raw={tmp_path}\n" in text) == (0, True)
        assert "1 of 1 files are there and checked" in text  # what the rehearsal reads
    assert not (SCRIPT.parents[1] / "multirun").exists()


@pytest.mark.parametrize(
    ("argument", "named"),
    [("dataset=kitti", "split_list"), ("dataset=motorcycle", "source"), ("network.retries=many", "retries")],
)
def test_errors_are_one_line_that_names_the_key(tmp_path, call, argument, named):
    code, _, error = call("dataset=diode", f"out={tmp_path}", argument)
    assert (code, len(error.strip().splitlines())) == (2, 1)
    assert named in error
