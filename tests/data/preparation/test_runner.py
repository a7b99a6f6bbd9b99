"""What goes wrong while writing: a full disk, a killed worker. Nothing that was written is lost."""

import multiprocessing
import os
import resource
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from marigold.data.errors import DataError
from marigold.data.preparation.journal import Outcome
from marigold.data.preparation.lists import PlannedList
from marigold.data.preparation.runner import Preparation, run
from marigold.files import atomic_file, write_atomically


class Numbers(Preparation):
    """Writes files of 1,000 bytes; the item `deadly` ends its process in the middle of its file."""

    def __init__(self, out: Path, count: int = 20, deadly: str = "") -> None:
        self.out, self.deadly = out, deadly
        self.lists = [PlannedList("list.txt", {str(i): f"{i}.bin" for i in range(count)}, None)]
        self.settings = {"dataset": "numbers"}

    def convert(self, item: str, out: Path) -> Outcome:
        if item == self.deadly and multiprocessing.parent_process() is not None:
            (out / "n").mkdir(exist_ok=True)
            with atomic_file(out / f"n/{item}.bin") as file:
                file.write(b"half")
                file.flush()
                os._exit(9)
        return Outcome(item, {f"n/{item}.bin": write_atomically(out / f"n/{item}.bin", bytes(1000))}, 1000)


ONE = (1, False, 0.0)  # workers, dry_run, max_broken


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
            run(Numbers(tmp_path / "out"), *ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == b"whole"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.bin"]  # no half file stays
    assert not list((tmp_path / "out").rglob("*.bin"))
    summary = run(Numbers(tmp_path / "out"), *ONE)
    assert (summary.already, summary.lists[0].split.count) == (0, 20)


def test_a_full_disk_is_seen_before_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 50_000})())
    with pytest.raises(DataError, match=str(tmp_path / "out")):
        run(Numbers(tmp_path / "out", count=100), *ONE)
    assert not (tmp_path / "out/n").exists()


def test_killed_workers_end_the_run_and_the_next_one_resumes(tmp_path):
    with pytest.raises(BrokenProcessPool):
        run(Numbers(tmp_path, deadly="15"), 2, False, 0.0)
    assert list((tmp_path / "n").glob(".15.bin.*.tmp"))
    assert run(Numbers(tmp_path), *ONE).already >= 1
    # What was half written is removed, and made again.
    assert sorted(path.name for path in (tmp_path / "n").iterdir()) == sorted(f"{i}.bin" for i in range(20))
    assert (tmp_path / "list.txt").read_text().split() == [f"{i}.bin" for i in range(20)]


def test_damaged_files_and_torn_lines_are_made_again_and_other_settings_refused(tmp_path):
    run(Numbers(tmp_path), *ONE)
    stamp = (tmp_path / "n/2.bin").stat().st_mtime_ns
    (tmp_path / "n/3.bin").write_bytes(bytes(10))
    (tmp_path / "n/4.bin").unlink()
    with open(tmp_path / ".prepare/journal.jsonl", "a") as journal:
        journal.write('{"name": "1')
    for already in (18, 20):
        assert run(Numbers(tmp_path), *ONE).already == already
    assert (tmp_path / "n/2.bin").stat().st_mtime_ns == stamp
    other = Numbers(tmp_path)
    other.settings = {"dataset": "letters"}
    with pytest.raises(DataError, match=r"numbers.*letters"):
        run(other, *ONE)
    for workers, max_broken in ((0, 0.0), (1, 1.5)):
        with pytest.raises(ValueError, match="max_broken"):
            run(Numbers(tmp_path), workers, False, max_broken)
