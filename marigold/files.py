"""Writing files so that neither a killed run, a full disk nor a second run leaves a folder in an unintended state."""

import csv
import errno
import fcntl
import io
import logging
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

PARTIAL = ".*.tmp"  # left behind by a process that was killed while it wrote
LOCK = ".lock"
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}  # ENOSYS: Lustre
_held: set[int] = set()


class FolderInUse(ValueError):
    """Another process is writing to a folder; the message names the folder and that process."""


def remove_partial_files(folder: Path) -> int:
    """Delete the partial files of killed runs below `folder`, to which nothing may be writing; return their number."""
    left = [path for path in folder.rglob(PARTIAL) if path.is_file()]
    for path in left:
        path.unlink()
    return len(left)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write that appears at `path` whole, on the disk, or not at all.

    It is written beside its place, synchronised and renamed. OSError (no room, no permission) passes through,
    after the partial file is removed.
    """
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
        try:
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)  # a temporary file is private; a data set is not
            os.replace(file.name, path)
        finally:
            Path(file.name).unlink(missing_ok=True)  # a finished one has its final name by now


def write_atomically(path: Path, data: bytes | str) -> int:
    """Write the whole content of `path` with `atomic_file`, folders included; returns the number of bytes."""
    content = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(content)
    return len(content)


def csv_text(lines: Iterable[Iterable[object]]) -> str:
    """The lines as csv; a float in its shortest exact representation."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """The name of a file to write that appears at `path` whole, on the disk, or not at all.

    Files that are written beside it appear beside `path`, before it. OSError (no room, no permission) passes through,
    after the partial files are removed.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp") as private:
        partial = Path(private) / path.name
        yield partial
        _synchronise(partial.parent)
        for written in sorted(partial.parent.iterdir(), key=lambda each: each == partial):
            written.replace(path.parent / written.name)  # a folder takes the place of an empty folder only


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill that appears at `path` whole, on the disk, or not at all.

    OSError passes through as in `new_file`, also if something is at `path` already.
    """
    with new_file(path) as partial:
        partial.mkdir()  # readable by others, unlike the temporary folder around it
        yield partial


def _synchronise(folder: Path) -> None:
    for written in folder.rglob("*"):
        descriptor = os.open(written, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep out other processes that lock `folder`, which is created if necessary.

    The kernel holds the lock, on `folder/.lock`, and releases it however this process ends; no child inherits it.
    Raises FolderInUse while another process, or this one, holds it. On a file system without locks the folder is not
    protected, and a warning is logged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)  # Python's are closed on exec
    _held.add(descriptor)
    try:
        _lock(descriptor, folder)
        yield
    finally:
        if descriptor in _held:  # a forked child has closed its own
            _held.remove(descriptor)
            os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
        raise FolderInUse(f"{folder} is in use by {holder}; wait for its end, or choose another folder") from error
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
        log.warning("%s: no locks on this file system (%s); let no other run write there", folder, error.strerror)
        return
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _close_in_child() -> None:
    # A worker that outlives its killed parent would otherwise continue holding the parent's lock.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
