"""One whole file: the rest of what is already there, checked, and under its name only when it is complete."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from marigold.data.download.http import Client, Patience, TransientError, Version
from marigold.data.errors import DataError
from marigold.files import write_atomically

Progress = Callable[[int], object]  # called with the number of bytes that came, below 0 if they are thrown away


@dataclass(frozen=True)
class RemoteFile:
    """A file and what is known of it. name: what to call it; None: the last part of its address."""

    url: str
    name: str | None = None
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None

    def file_name(self) -> str:
        name = self.name or unquote(urlsplit(self.url).path.rpartition("/")[2])
        if name in ("", ".", "..") or "/" in name:
            raise DataError(f"{self.url}: no file name in it; give one with `name`")
        return name


def part_of(target: Path) -> Path:
    """Where the beginning of a file is kept until all of it has come."""
    return target.with_name(f"{target.name}.part")


def download_file(client: Client, file: RemoteFile, target: Path, progress: Progress) -> None:
    """Fetch what is missing of `file` and rename it to `target` once size and hashes are right.

    What has come stays in `target`.part, with the version it belongs to beside it, for the next run. Raises
    DataError if the server does not have the file, has another one, or breaks off too often, and OSError if
    writing fails.
    """
    part, note = part_of(target), target.with_name(f"{target.name}.part.json")
    target.parent.mkdir(parents=True, exist_ok=True)
    patience = client.patience(file.url)
    with _alone(part) as disk:
        while not _complete(disk, _noted(note, file.url)):
            try:
                _fetch_rest(client, file, disk, note, patience, progress)
                break
            except TransientError as error:
                if error.status == 416:
                    _empty(disk, progress)
                patience.wait(error)
        disk.flush()
        os.fsync(disk.fileno())
        try:
            check_file(part, file)
        except DataError:
            part.unlink()  # gone on with, it would never become right
            raise
        os.replace(part, target)
    note.unlink(missing_ok=True)


def check_file(path: Path, file: RemoteFile) -> None:
    """Raises DataError if size or hash of `path` are not those known of `file`."""
    size = path.stat().st_size
    if file.size not in (None, size):
        raise DataError(f"{path} ({file.url}): {_is_of(size, file)}")
    for method, expected in (("md5", file.md5), ("sha256", file.sha256)):
        if expected is None:
            continue
        with path.open("rb") as content:
            found = hashlib.file_digest(content, method).hexdigest()
        if found != expected.lower():
            raise DataError(f"{path} ({file.url}): {method} is {found}, expected {expected}: {_OTHER}")


_OTHER = "damaged, or a new version (verify=false takes it nevertheless)"


def _is_of(size: int, file: RemoteFile) -> str:
    return f"{size:,} bytes, expected {file.size:,}: {_OTHER}"


def _fetch_rest(
    client: Client, file: RemoteFile, disk: BinaryIO, note: Path, patience: Patience, progress: Progress
) -> None:
    """One try to append what is missing; starts again if the server has no ranges or has another version."""
    known = _noted(note, file.url)
    if known is None:  # nobody knows what these bytes are of
        _empty(disk, progress)
    done = disk.seek(0, os.SEEK_END)
    with client.get(file.url, done, known=known) as answer:
        total = answer.version.size
        if file.size is not None and total not in (None, file.size):
            raise DataError(f"{file.url}: {_is_of(total or 0, file)}")
        changed = known is not None and known.differs(answer.version)
        if changed or answer.start != done:
            _empty(disk, progress)
            if answer.start != 0:
                raise TransientError("changed on the server meanwhile: starting again")
        write_atomically(note, json.dumps({"url": file.url, **asdict(answer.version)}))
        for chunk in answer.chunks:
            _write(disk, chunk)
            progress(len(chunk))
            patience.reached(disk.tell())
    end = total if total is not None else file.size
    if end is not None and disk.tell() < end:
        raise TransientError(f"broken off after {disk.tell():,} of {end:,} bytes")


def _write(disk: BinaryIO, chunk: bytes) -> None:
    """Write all of `chunk`, unbuffered: a full disk keeps what fits, and the next run goes on from there."""
    left = memoryview(chunk)
    try:
        while left:
            left = left[disk.write(left) :]
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror}; what has come is kept, run again to go on", disk.name
        ) from error


@contextmanager
def _alone(part: Path) -> Iterator[BinaryIO]:
    """The part file, to be appended to, for one process at a time: two would mix their bytes."""
    with part.open("ab", buffering=0) as disk:
        try:
            fcntl.flock(disk, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{part}: another process is downloading it") from error
        yield disk


def _empty(disk: BinaryIO, progress: Progress) -> None:
    progress(-disk.seek(0, os.SEEK_END))
    disk.truncate(0)
    disk.seek(0)


def _complete(disk: BinaryIO, version: Version | None) -> bool:
    return version is not None and version.size is not None and disk.seek(0, os.SEEK_END) == version.size


def _noted(note: Path, url: str) -> Version | None:
    """The version that the part file is of, if it is of this address."""
    try:
        content = json.loads(note.read_text())
        return Version(content["size"], content["etag"], content["modified"]) if content["url"] == url else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None  # none, or not one that this module wrote whole: the part is begun anew
