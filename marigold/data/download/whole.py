"""One whole file: resumed, checked, and given its name only when it is complete."""

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

Progress = Callable[[int], object]  # called with the number of bytes received


@dataclass(frozen=True)
class RemoteFile:
    """A file, named after the last part of its address. hash: METHOD:DIGEST, such as md5:..., if it is known."""

    url: str
    hash: str | None = None

    def file_name(self) -> str:
        name = unquote(urlsplit(self.url).path.rpartition("/")[2])
        if name in ("", ".", "..") or "/" in name:
            raise DataError(f"{self.url}: expected a file name at its end")
        return name


class WholeFile:
    """`file` to download into `folder`; NAME.part holds what has arrived, and NAME.part.json its version."""

    def __init__(self, file: RemoteFile, folder: Path) -> None:
        self.file, self.url, self.names = file, file.url, [file.file_name()]
        self._target = folder / file.file_name()
        self._part, self._note = (folder / f"{file.file_name()}.part{suffix}" for suffix in ("", ".json"))

    def missing(self) -> list[str]:
        return [] if self._target.exists() else self.names

    def size(self, client: Client, missing: list[str]) -> int:
        """Bytes still to fetch, 0 if the server does not state the file's size."""
        there = self._part.stat().st_size if self._part.exists() else 0
        return max(0, (client.version(self.url)[0].size or 0) - there)

    def fetch(self, client: Client, missing: list[str], progress: Progress) -> None:
        """Fetch the rest of the file, check its hash, and give it its name.

        Raises DataError if the server does not have the file, has another one, or breaks off too often, and OSError
        if writing fails; what has arrived stays for the next run.
        """
        if not missing:
            return self._check(self._target)
        try:
            with self._part.open("ab") as disk:
                client.retry(self.url, partial(self._append_rest, client, disk, progress), disk.tell)
                disk.flush()
                os.fsync(disk.fileno())  # a file with its final name must be whole on the disk
        except OSError as error:
            raise OSError(error.errno, f"{error.strerror}; run again to resume", str(self._part)) from error
        try:
            self._check(self._part)
        except DataError:
            self._part.unlink()  # resuming it would never make it right
            raise
        os.replace(self._part, self._target)
        return self._note.unlink(missing_ok=True)

    def _append_rest(self, client: Client, disk: BinaryIO, progress: Progress) -> None:
        """One try; from the first byte if the server has no ranges or another version."""
        known = self._noted()
        if known is None:  # the origin of these bytes is unknown
            disk.truncate(0)
        done = disk.seek(0, os.SEEK_END)
        if known is not None and known.size == done:
            return
        with client.get(self.url, done, known=known) as answer:
            if done and not (answer.partial and known is not None and answer.version.matches(known)):
                disk.truncate(0)
                disk.seek(0)
                if answer.partial:
                    raise TransientError("changed on the server, starting again")
            # Before the first byte, so that a run that is killed here leaves no bytes of unknown origin.
            write_atomically(self._note, json.dumps([self.url, *answer.version]))
            for chunk in answer.chunks:
                disk.write(chunk)
                progress(len(chunk))
        if answer.version.size not in (None, disk.tell()):
            raise TransientError(f"received {disk.tell():,} of {answer.version.size:,} bytes")

    def _noted(self) -> Version | None:
        """The version of the part file, if it came from this address."""
        try:
            url, size, tag = json.loads(self._note.read_text())
        except (FileNotFoundError, ValueError, TypeError):  # none, or a damaged one
            return None
        return Version(size, tag) if url == self.url else None

    def _check(self, path: Path) -> None:
        """Raises DataError if `path` does not have the known hash."""
        method, _, expected = (self.file.hash or "").partition(":")
        if expected:
            with path.open("rb") as content:
                found = hashlib.file_digest(content, method).hexdigest()
            if found != expected.lower():
                raise DataError(
                    f"{path} ({self.url}): {method} is {found}, expected {expected}: damaged, or a new version "
                    "(verify=false accepts it)"
                )
