"""Preparations as the configuration builds them, and scripts/prepare.py as it is called."""

import logging
import runpy
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from marigold.config import build

ROOT = Path(__file__).parents[3]


def composed(name: str, *overrides: str):
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, list(overrides))


@pytest.fixture(scope="session")
def prepare():
    """prepare(dataset, *overrides) -> the summary of the preparation."""
    return lambda dataset, *overrides: build(composed("prepare", f"dataset={dataset}", *overrides).prepare, "prepare")


@pytest.fixture(scope="session")
def reader():
    """reader(dataset, folder of all data, *changes of the reader) -> the set as scripts/eval.py opens it."""

    def read(dataset: str, data: Path, *overrides: str):
        changes = [f"dataset.reader.{change}" for change in overrides]
        return build(
            composed("prepare", f"dataset={dataset}", f"paths.data={data}", *changes).dataset.reader, "reader"
        )

    return read


@pytest.fixture
def call(capsys, monkeypatch):
    """Runs the script as `python scripts/prepare.py ...` does: (exit code, stdout, stderr)."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # Hydra replaces them

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts/prepare.py"), *arguments])
        code = 0
        try:
            runpy.run_path(str(ROOT / "scripts/prepare.py"), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        root.handlers[:] = handlers
        return code, *capsys.readouterr()

    yield run
    root.setLevel(level)
