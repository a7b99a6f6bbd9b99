"""What goes wrong while writing: a full disk, a killed worker. Nothing that was written is lost."""

import multiprocessing
import os
import resource
from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from marigold.data.errors import DataError
from marigold.data.preparation.images import write_file
from marigold.data.preparation.journal import Outcome
from marigold.data.preparation.runner import ListResult, RunOptions, run, write_list
from marigold.files import atomic_file, write_atomically


class Numbers:
    """Writes `n` files of 1,000 bytes; the items in `deadly` end their process."""

    def __init__(self, out: Path, count: int = 20, deadly: tuple[str, ...] = ()) -> None:
        self.out, self.count, self.deadly = out, count, deadly

    def items(self) -> Sequence[str]:
        return [str(i) for i in range(self.count)]

    def settings(self) -> Mapping[str, object]:
        return {"dataset": "numbers"}

    def convert(self, item: str, out: Path) -> Outcome:
        if item in self.deadly and multiprocessing.parent_process() is not None:
            os._exit(9)
        if int(item) >= 1000:
            raise DataError(f"{item}: too large a number")
        files = write_file(out, f"n/{item}.bin", bytes(1000))
        return Outcome(item, files, 1000)

    def finish(self, outcomes: Mapping[str, Outcome]) -> Sequence[ListResult]:
        return [write_list(self.out / "list.txt", list(outcomes), None, {})]


ONE = RunOptions(workers=1, dry_run=False, max_broken=0.0)


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
            run(Numbers(tmp_path / "out"), ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == b"whole"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["x.bin"]  # no half file stays
    assert not list((tmp_path / "out").rglob("*.bin"))
    summary = run(Numbers(tmp_path / "out"), ONE)
    assert (summary.already, summary.lists[0].split.count) == (0, 20)


def test_a_full_disk_is_seen_before_the_start(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 50_000})()
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"GiB are needed and 0\.00 GiB are free"):
        run(Numbers(tmp_path / "out", count=100), ONE)
    assert not (tmp_path / "out/n").exists()


def test_a_worker_that_dies_ends_the_run_and_the_next_one_goes_on(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(BrokenProcessPool):
        run(Numbers(out, deadly=("15",)), RunOptions(2, False, 0.0))
    done = len(list(out.rglob("*.bin")))
    assert done >= 1
    summary = run(Numbers(out), RunOptions(2, False, 0.0))
    assert summary.already >= 1
    assert summary.lists[0].split.count == 20
    assert (out / "list.txt").read_text().split() == [str(i) for i in range(20)]  # in order, whoever was first


class Interrupted(Numbers):
    """Its process is killed while it writes the first item."""

    def convert(self, item: str, out: Path) -> Outcome:
        (out / "n").mkdir(exist_ok=True)
        with atomic_file(out / f"n/{item}.bin") as file:
            file.write(b"half")
            file.flush()
            os._exit(9)


def test_what_a_killed_worker_was_writing_is_removed_by_the_next_run(tmp_path):
    with pytest.raises(BrokenProcessPool):
        run(Interrupted(tmp_path), RunOptions(workers=2, dry_run=False, max_broken=0.0))
    assert [path.suffix for path in (tmp_path / "n").iterdir()] == [".tmp"] * len(list((tmp_path / "n").iterdir()))
    assert list((tmp_path / "n").iterdir())
    run(Numbers(tmp_path), ONE)
    assert sorted(path.name for path in (tmp_path / "n").iterdir()) == sorted(f"{i}.bin" for i in range(20))


def test_wrong_options(tmp_path):
    for options in (RunOptions(0, False, 0.0), RunOptions(1, False, 1.5)):
        with pytest.raises(ValueError, match="workers >= 1"):
            run(Numbers(tmp_path), options)


def test_a_journal_of_other_settings(tmp_path):
    run(Numbers(tmp_path / "out"), ONE)
    other = Numbers(tmp_path / "out")
    other.settings = lambda: {"dataset": "letters"}  # type: ignore[method-assign]
    with pytest.raises(DataError, match=r"was prepared with .*numbers.*letters"):
        run(other, ONE)
