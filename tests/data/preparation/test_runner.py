"""What goes wrong while writing: a full disk, a killed worker. Nothing that was written is lost."""

import multiprocessing
import os
import resource
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import pytest

from marigold.data.errors import DataError
from marigold.data.preparation.journal import Converted
from marigold.data.preparation.lists import PlannedList
from marigold.data.preparation.runner import run
from marigold.files import atomic_file, write_atomically


def convert(deadly: str, item: str, out: Path) -> Converted:
    """Write a file of 1,000 bytes; once an item is done, `deadly` ends its process in the middle of its file."""
    if item == deadly and multiprocessing.parent_process() is not None:
        (out / "n").mkdir(exist_ok=True)
        with atomic_file(out / f"n/{item}.bin") as file:
            file.write(b"half")
            file.flush()
            while "n/0.bin" not in (out / ".prepare/journal.jsonl").read_text():
                time.sleep(0.01)
            os._exit(9)
    return Converted({f"n/{item}.bin": write_atomically(out / f"n/{item}.bin", bytes(1000))})


def numbers(out: Path, count: int = 20, deadly: str = "", dataset: str = "numbers", **options):
    lists = [PlannedList("list.txt", {str(i): f"{i}.bin" for i in range(count)}, None)]
    given = {"settings": {"dataset": dataset}, "workers": 1, "dry_run": False, "max_broken": 0.0, **options}
    return run(partial(convert, deadly), lists, out=out, **given)


def test_a_file_size_limit_in_the_middle(tmp_path):
    """A real failure of write(2): the kernel refuses the bytes beyond the limit (EFBIG), as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "x.bin"
    write_atomically(path, b"whole")
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, old[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomically(path, bytes(1000))
        with pytest.raises(OSError, match="File too large"):
            numbers(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == b"whole"
    assert not [*(tmp_path / "out").rglob("*.bin"), *tmp_path.rglob("*.tmp")]
    assert numbers(tmp_path / "out").lists[0].split.count == 20


def test_a_full_disk_is_seen_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 50_000})())
    with pytest.raises(DataError, match=str(tmp_path / "out")):
        numbers(tmp_path / "out", count=100)
    assert not (tmp_path / "out/n").exists()


def test_killed_workers_end_the_run_and_the_next_one_resumes(tmp_path):
    with pytest.raises(BrokenProcessPool):
        numbers(tmp_path, deadly="15", workers=2)
    assert list((tmp_path / "n").glob(".15.bin.*.tmp"))
    assert numbers(tmp_path).already >= 1
    # What was half written is removed, and made again.
    assert sorted(path.name for path in (tmp_path / "n").iterdir()) == sorted(f"{i}.bin" for i in range(20))
    assert (tmp_path / "list.txt").read_text().split() == [f"{i}.bin" for i in range(20)]


def test_damaged_files_and_torn_lines_are_made_again_and_other_settings_refused(tmp_path):
    numbers(tmp_path)
    stamp = (tmp_path / "n/2.bin").stat().st_mtime_ns
    (tmp_path / "n/3.bin").write_bytes(bytes(10))
    (tmp_path / "n/4.bin").unlink()
    with open(tmp_path / ".prepare/journal.jsonl", "a") as journal:
        journal.write('{"name": "1')
    for already in (18, 20):
        assert numbers(tmp_path).already == already
    assert (tmp_path / "n/2.bin").stat().st_mtime_ns == stamp
    with pytest.raises(DataError, match=r"numbers.*letters"):
        numbers(tmp_path, dataset="letters")
    with pytest.raises(ValueError, match="max_broken"):
        numbers(tmp_path, max_broken=1.5)
