"""One whole file: the rest of what is already there, checked, and under its name only when it is complete."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from marigold.data.download.http import Client, TransientError, Version
from marigold.data.errors import DataError
from marigold.files import write_atomically

Progress = Callable[[int], object]  # called with the number of bytes that came


@dataclass(frozen=True)
class RemoteFile:
    """A file, which is called as the last part of its address, and what is known of it."""

    url: str
    size: int | None = None
    md5: str | None = None
    sha256: str | None = None

    def file_name(self) -> str:
        name = unquote(urlsplit(self.url).path.rpartition("/")[2])
        if name in ("", ".", "..") or "/" in name:
            raise DataError(f"{self.url}: expected a file name at its end")
        return name


class WholeFile:
    """`file` to download into `folder`; what has come of it lies in NAME.part, and in NAME.part.json its version."""

    def __init__(self, file: RemoteFile, folder: Path) -> None:
        self.file, self.url, self.names = file, file.url, [file.file_name()]
        self._target = folder / file.file_name()
        self._part, self._note = (folder / f"{file.file_name()}.part{suffix}" for suffix in ("", ".json"))

    def missing(self) -> list[str]:
        return [] if self._target.exists() else self.names

    def size(self, client: Client, missing: list[str]) -> int:
        """Bytes still to come."""
        there = self._part.stat().st_size if self._part.exists() else 0
        return max(0, (client.version(self.url)[0].size or self.file.size or 0) - there)

    def fetch(self, client: Client, missing: list[str], progress: Progress) -> None:
        """Fetch what is missing, check size and hashes, and give the file its name.

        Raises DataError if the server does not have the file, has another one, or breaks off too often, and OSError
        if writing fails; what has come stays for the next run.
        """
        if not missing:
            return self._check(self._target)
        try:
            with self._part.open("ab") as disk:
                client.retry(self.url, partial(self._append_rest, client, disk, progress), disk.tell)
                disk.flush()
                os.fsync(disk.fileno())  # its final name says that it is whole: the bytes come first
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; run again to resume", str(self._part)) from error
        try:
            self._check(self._part)
        except DataError:
            self._part.unlink()  # resumed, it would never become right
            raise
        os.replace(self._part, self._target)
        return self._note.unlink(missing_ok=True)

    def _append_rest(self, client: Client, disk: BinaryIO, progress: Progress) -> None:
        """One try; from the first byte on if the server has no ranges or has another version."""
        known = self._noted()
        if known is None:  # the origin of these bytes is unknown
            disk.truncate(0)
        done = disk.seek(0, os.SEEK_END)
        if known is not None and known.size == done:
            return
        with client.get(self.url, done, known=known) as answer:
            if answer.version.size is not None:
                self._check_size(self.url, answer.version.size)
            if done and not (answer.partial and known is not None and answer.version.matches(known)):
                disk.truncate(0)
                disk.seek(0)
                if answer.partial:
                    raise TransientError("changed on the server, starting again")
            # Before the first byte: a run that is killed here leaves no bytes of unknown origin.
            write_atomically(self._note, json.dumps([self.url, *answer.version]))
            for chunk in answer.chunks:
                disk.write(chunk)
                progress(len(chunk))
        if answer.version.size not in (None, disk.tell()):
            raise TransientError(f"received {disk.tell():,} of {answer.version.size:,} bytes")

    def _noted(self) -> Version | None:
        """The version that the part file is of, if it is of this address."""
        try:
            url, size, tag = json.loads(self._note.read_text())
        except (FileNotFoundError, ValueError, TypeError):  # none, or not one that this module wrote whole
            return None
        return Version(size, tag) if url == self.url else None

    def _check(self, path: Path) -> None:
        """Raises DataError if size or hash of `path` are not those known of the file."""
        self._check_size(path, path.stat().st_size)
        for method, expected in (("md5", self.file.md5), ("sha256", self.file.sha256)):
            if expected is not None:
                with path.open("rb") as content:
                    found = hashlib.file_digest(content, method).hexdigest()
                if found != expected.lower():
                    raise DataError(f"{path} ({self.url}): {method} is {found}, expected {expected}: {_OTHER}")

    def _check_size(self, where: object, size: int) -> None:
        if self.file.size not in (None, size):
            raise DataError(f"{where}: {size:,} bytes, expected {self.file.size:,}: {_OTHER}")


_OTHER = "damaged, or a new version (verify=false takes it nevertheless)"
