"""A folder is one process's at a time, for as long as that process lives; a new one appears whole or not at all."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from marigold.files import FolderInUse, lock_folder, new_file, new_folder

HOLDER = """
import os, subprocess, sys, time
from pathlib import Path
from marigold.files import lock_folder
with lock_folder(Path(sys.argv[1])):
    child = subprocess.Popen(["sleep", "60"])
    forked = os.fork()
    if not forked:  # the parent could be killed before this one has run at all
        print(child.pid, os.getpid(), flush=True)
    time.sleep(60)
"""


def test_another_process_holds_a_folder_as_long_as_it_lives(tmp_path):
    """Then at once: its children, started and forked, inherit nothing."""
    folder = tmp_path / "new/out"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        children = [int(pid) for pid in holder.stdout.readline().split()]
        try:
            with pytest.raises(FolderInUse, match=f"{folder}.*{holder.pid}"), lock_folder(folder):
                pytest.fail("two processes hold one lock")
            holder.kill()
            holder.wait()
            for child in children:
                os.kill(child, 0)  # is alive
            with lock_folder(folder):
                assert str(os.getpid()) in (folder / ".lock").read_text()
        finally:
            for child in children:
                os.kill(child, 9)


def test_the_lock_ends_with_the_block_whatever_ended_it(tmp_path):
    with pytest.raises(FolderInUse), lock_folder(tmp_path), lock_folder(tmp_path):
        pytest.fail("held twice")
    with lock_folder(tmp_path):
        pass


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def refuse(code):
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(code, os.strerror(code))))

    refuse(errno.ENOLCK)
    with caplog.at_level(logging.WARNING), lock_folder(tmp_path):
        (tmp_path / "result").touch()
    assert [str(tmp_path) in record.getMessage() for record in caplog.records] == [True]
    refuse(errno.EIO)  # is no lack of locks
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), lock_folder(tmp_path):
        pytest.fail("entered without a lock")


def test_a_new_folder_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new/out"
    path.mkdir(parents=True)  # an empty folder may be there
    with new_folder(path) as folder:
        (folder / "part").mkdir()
        (folder / "part/file").write_text("whole")
        assert not list(path.glob("*"))
    assert (path / "part/file").read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o055 == (tmp_path / "new").stat().st_mode & 0o055  # not private


def test_a_new_file_appears_with_those_beside_it(tmp_path):
    with new_file(tmp_path / "new/file") as partial:
        for name in ("file", "file.data"):
            partial.with_name(name).write_text(name)
        assert not (tmp_path / "new/file").exists()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["file", "file.data"]


def test_a_new_folder_does_not_appear_half_or_over_another(tmp_path):
    def fill(then):
        with new_folder(tmp_path / "out") as folder:
            (folder / "file").write_text("half")
            then()

    with pytest.raises(ZeroDivisionError):
        fill(lambda: 1 / 0)
    assert not list(tmp_path.iterdir())
    other = tmp_path / "out/other"  # that appears in the meantime
    with pytest.raises(OSError, match="out"):
        fill(lambda: (other.parent.mkdir(), other.write_text("theirs")))
    assert list(tmp_path.rglob("*")) == [tmp_path / "out", other]
