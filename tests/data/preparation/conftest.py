"""scripts/prepare.py as people call it."""

import logging
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts/prepare.py"


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs the script as `python scripts/prepare.py ...` does: (exit code, stdout, stderr)."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # Hydra replaces them

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(SCRIPT.parents[1])
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        root.handlers[:] = handlers
        return code, *capsys.readouterr()

    yield run
    root.setLevel(level)
