"""A folder is one process's at a time, for as long as that process lives; a new one appears whole or not at all."""

import errno
import fcntl
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from marigold.files import FolderInUse, lock_folder, new_file, new_folder

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from marigold.files import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    {then}
"""
FORKS = """import os
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)"""
STARTS = """child = subprocess.Popen(["sleep", "60"])
    print(child.pid, flush=True)
    time.sleep(60)"""


@pytest.fixture
def holder():
    """holder(folder, then): a process that has locked the folder."""
    started = []

    def start(folder, then="time.sleep(60)"):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", HOLDER.format(then=then), str(folder)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_refused_in_one_line_that_names_the_first(tmp_path, holder):
    folder = tmp_path / "new/out"
    first = holder(folder)
    expected = f"{folder} is in use by process {first.pid} on {socket.gethostname()}; [^\n]*$"
    with pytest.raises(FolderInUse, match=expected), lock_folder(folder):
        pytest.fail("two processes hold one lock")
    assert [path.name for path in folder.iterdir()] == [".lock"]
    with lock_folder(tmp_path / "new"):
        pass  # another folder


def test_a_killed_process_holds_nothing(tmp_path, holder):
    first = holder(tmp_path)
    first.kill()
    first.wait()
    with lock_folder(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


@pytest.mark.parametrize("then", [FORKS, STARTS], ids=["forked", "started"])
def test_children_of_a_killed_process_hold_nothing(tmp_path, holder, then):
    first = holder(tmp_path, then)
    child = int(first.stdout.readline())
    try:
        first.kill()
        first.wait()
        os.kill(child, 0)  # is alive
        with lock_folder(tmp_path):
            pass
    finally:
        os.kill(child, 9)


def test_the_lock_ends_with_the_block_whatever_ended_it(tmp_path):
    with pytest.raises(KeyError), lock_folder(tmp_path):
        raise KeyError
    with lock_folder(tmp_path), pytest.raises(FolderInUse), lock_folder(tmp_path):
        pytest.fail("held twice")
    with lock_folder(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog, code):
    def refuse(*arguments):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level(logging.WARNING), lock_folder(tmp_path):
        (tmp_path / "result").touch()
    assert [str(tmp_path) in record.getMessage() for record in caplog.records] == [True]


def test_other_errors_pass_through(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output"), lock_folder(tmp_path):
        pytest.fail("went on")


@pytest.mark.parametrize("before", ["nothing", "an empty folder"])
def test_a_new_folder_appears_when_it_is_whole(tmp_path, before):
    path = tmp_path / "new/out"
    if before == "an empty folder":
        path.mkdir(parents=True)
    with new_folder(path) as folder:
        (folder / "part").mkdir()
        (folder / "part/file").write_text("whole")
        assert not list(path.glob("*"))
    assert (path / "part/file").read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o055 == (tmp_path / "new").stat().st_mode & 0o055  # not private


def test_a_new_file_appears_with_those_beside_it_or_not_at_all(tmp_path):
    with new_file(tmp_path / "new/file") as partial:
        for name in ("file", "file.data"):
            partial.with_name(name).write_text(name)
        assert not (tmp_path / "new/file").exists()
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["file", "file.data"]

    def stopped_half_way() -> None:
        with new_file(tmp_path / "other") as partial:
            partial.write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        stopped_half_way()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_new_folder_does_not_appear_half_or_over_another(tmp_path):
    def fill(path, then):
        with new_folder(path) as folder:
            (folder / "file").write_text("half")
            then()

    def fail():
        raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fill(tmp_path / "out", fail)
    assert not list(tmp_path.iterdir())
    other = tmp_path / "out/other"  # that appears in the meantime
    with pytest.raises(OSError, match="out"):
        fill(tmp_path / "out", lambda: (other.parent.mkdir(), other.write_text("theirs")))
    assert other.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
