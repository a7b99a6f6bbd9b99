"""Single members of zips on a server: the zip's directory and just their bytes are fetched."""

import io
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path, PurePosixPath

from marigold.data.download.http import Client, Network
from marigold.data.download.run import Report, bar, require_room, side_by_side
from marigold.data.errors import DataError
from marigold.data.preparation.runner import free_space
from marigold.data.splits import evenly_spaced
from marigold.files import write_atomically

_TAIL = 1 << 20  # fetched first: the directory of about 8,000 members fits
_AHEAD = 1 << 16  # least that is fetched where no member is announced
_HEADERS = 1 << 17  # more than the longest name and extra field of a member take
_GAP = 1 << 16  # so near members come in one request: a request costs more than these bytes
_RUN = 1 << 25  # and no more than this in one, since it is held in memory
_PROBES = 16  # zips looked into for the estimate of the size


@dataclass(frozen=True)
class RemoteZip:
    """Members to take out of the zip at `url` and to put below `folder`, under their own names.

    prefixes: a member may be called so, each of these before the name.
    """

    url: str
    folder: Path
    names: tuple[str, ...]
    prefixes: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        for name in self.names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise DataError(f"{self.url}: member {name!r} would be written outside of {self.folder}")

    def missing(self) -> list[str]:
        """The names that no file has yet; a file is written whole or not at all, so there is there."""
        return [name for name in self.names if not any((self.folder / p / name).is_file() for p in self.prefixes)]


class RangeFile(io.RawIOBase):
    """A file on a server as a seekable one to read; what lies in the window is in memory."""

    def __init__(self, client: Client, url: str) -> None:
        self._client, self.url = client, url
        self.version, ranges = client.version(url)
        if not ranges or self.version.size is None:
            raise DataError(f"{url}: the server gives no parts of files, so its members cannot be taken singly")
        self.size: int = self.version.size
        self._at, self._start, self._window = 0, 0, b""
        self.load(self.size - _TAIL, self.size)

    def load(self, start: int, stop: int) -> None:
        """Move the window: one request."""
        self._start, stop = max(0, start), min(stop, self.size)
        self._window = self._client.read(self.url, self._start, stop, self.version)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise OSError(f"{self.url}: position {base + offset}")  # what zipfile expects of a file
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        stop = self.size if size < 0 else min(self._at + size, self.size)
        if stop <= self._at:
            return b""
        if not self._start <= self._at or stop > self._start + len(self._window):
            self.load(self._at, max(stop, self._at + _AHEAD))
        data = self._window[self._at - self._start : stop - self._start]
        self._at = stop
        return data


def download_members(
    out: Path, archives: Sequence[RemoteZip], network: Network, dry_run: bool, next_step: str
) -> Report:
    """Fetch the members that are not there yet, zip by zip, some zips at a time.

    Each member is checked by its CRC-32. A zip or member that cannot be had is reported and the others are
    fetched. Raises DataError if the disk is too small (before, by an estimate from some zips; then before each
    zip), and OSError if writing fails; what has come stays.
    """
    todo = {archive: missing for archive in archives if (missing := archive.missing())}
    names = sum(len(archive.names) for archive in archives)
    left = sum(map(len, todo.values()))
    room = free_space(out)
    with Client(network) as client:
        needed = _estimate(client, todo, left)
        if dry_run:
            return Report(out, True, names, names - left, needed, room, next_step)
        require_room(out, needed)
        with bar("all", needed) as every:
            lock, came = threading.Lock(), [0]

            def progress(count: int) -> None:
                with lock:
                    came[0] += count
                    every.update(count)

            jobs = {a.url: partial(_fetch_zip, client, a, todo[a], progress) for a in todo}
            failed = side_by_side(jobs, network.connections)
    return Report(out, False, names, names - left, came[0], room, next_step, failed)


def _fetch_zip(
    client: Client, archive: RemoteZip, names: list[str], progress: Callable[[int], None], stop: threading.Event
) -> None:
    """Write the members called `names`; those that the zip lacks are named in DataError after the others came."""
    with _opened(client, archive.url) as (content, file):
        found = _find(content, archive, names)
        wanted = {info.filename: info for info in found.values()}
        size = sum(info.file_size for info in wanted.values())
        require_room(archive.folder, size)
        with bar(archive.url.rpartition("/")[2], size) as one:
            for start, end, run in _runs(content, wanted):
                if stop.is_set():
                    return
                file.load(start, end)
                for info in run:
                    write_atomically(archive.folder / info.filename, _unpacked(content, info, archive.url))
                    one.update(info.file_size)
                    progress(info.file_size)
    if lacking := [name for name in names if name not in found]:
        raise DataError(f"{len(lacking):,} of the members are not in the zip: {', '.join(lacking[:5])}")


@contextmanager
def _opened(client: Client, url: str) -> Iterator[tuple[zipfile.ZipFile, RangeFile]]:
    with RangeFile(client, url) as file:
        try:
            content = zipfile.ZipFile(file)
        except zipfile.BadZipFile as error:
            raise DataError(f"{url}: not a zip: {error}") from error
        with content:
            yield content, file


def _find(content: zipfile.ZipFile, archive: RemoteZip, names: Sequence[str]) -> dict[str, zipfile.ZipInfo]:
    """The members by the names they are wanted by."""
    members = {info.filename: info for info in content.infolist()}
    found = ((name, members.get(prefix + name)) for name in names for prefix in archive.prefixes)
    return {name: info for name, info in found if info is not None}


def _runs(
    content: zipfile.ZipFile, wanted: Mapping[str, zipfile.ZipInfo]
) -> Iterator[tuple[int, int, list[zipfile.ZipInfo]]]:
    """Members to fetch with one request each time, with the bytes [start, end) that hold them."""
    # A member's header has a length of its own, but it ends before the next one begins.
    offsets = sorted({info.header_offset for info in content.infolist()})
    follower = dict(pairwise(offsets))
    start = end = 0
    run: list[zipfile.ZipInfo] = []
    for info in sorted(wanted.values(), key=lambda info: info.header_offset):
        at, longest = info.header_offset, info.header_offset + _HEADERS + info.compress_size
        stop = min(follower.get(at, longest), longest)
        if run and (at - end > _GAP or stop - start > _RUN):
            yield start, end, run
            run = []
        if not run:
            start = at
        end = stop
        run.append(info)
    if run:
        yield start, end, run


def _unpacked(content: zipfile.ZipFile, info: zipfile.ZipInfo, url: str) -> bytes:
    try:
        return content.read(info)  # compares the CRC-32
    # RuntimeError: zipfile's for an encrypted member and, as NotImplementedError, for an unknown compression.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DataError(f"{url}: {info.filename} is damaged: {error}") from error


def _estimate(client: Client, todo: Mapping[RemoteZip, Sequence[str]], left: int) -> int:
    """Bytes that the missing members will take, from some zips, unpacked."""
    sizes: list[int] = []
    for archive in evenly_spaced(list(todo), min(_PROBES, len(todo))) if todo else ():
        try:
            with _opened(client, archive.url) as (content, _):
                sizes += [info.file_size for info in _find(content, archive, todo[archive]).values()]
        except DataError:
            break  # the run itself will name it; to be as patient with the others would take long
    return round(sum(sizes) / len(sizes) * left) if sizes else 0
