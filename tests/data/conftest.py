"""Preparations and readers as the configuration builds them."""

from pathlib import Path

import pytest

from marigold.config import build
from runs import composed


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MARIGOLD_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MARIGOLD_DOWNLOADS", str(tmp_path / "downloads"))


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
