"""Single members of zips on a server: only the zip's directory and the members' bytes are fetched."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from marigold.data.archive_index import Member, data_start, relative_name, unpack, zip_members
from marigold.data.download.http import Client
from marigold.data.download.whole import Progress
from marigold.data.errors import DataError
from marigold.files import write_atomically

_HEADERS = 1 << 17  # more than the longest name and extra field of a member take
_GAP = 1 << 16  # members this close share a request: a second one would cost more than these bytes
_RUN = 1 << 25  # the largest request, since it is held in memory


@dataclass(frozen=True)
class RemoteZip:
    """Members of the zip at `url` to write below `folder`, under their own names.

    prefixes: what may precede the names in the zip.
    """

    url: str
    folder: Path
    names: Sequence[str]
    prefixes: Sequence[str] = ("",)

    def __post_init__(self) -> None:
        for name in self.names:
            relative_name(name, self.folder)

    def missing(self) -> list[str]:
        """The names without a file; files are written whole or not at all, so existing ones need no check."""
        return [name for name in self.names if not any((self.folder / p / name).is_file() for p in self.prefixes)]

    def size(self, client: Client, missing: list[str]) -> int:
        """Total size, unpacked, of those `missing` members that the zip contains, in bytes."""
        members = zip_members(RangeFile(client, self.url), self.url)
        return sum(members[name].size for name in self._find(members, missing).values())

    def fetch(self, client: Client, missing: list[str], progress: Progress) -> None:
        """Write the members named `missing`, each checked by its CRC-32, whole or not at all.

        Raises DataError for a damaged member, and, once the others are written, for those that the zip lacks.
        """
        if not missing:
            return
        file = RangeFile(client, self.url)
        members = zip_members(file, self.url)
        found = self._find(members, missing)
        for start, stop, run in _runs(members, found.values()):
            data = memoryview(client.read(self.url, start, min(stop, file.size), file.version))
            for name in run:
                member, where = members[name], f"{self.url}:{name}"
                begin = member.offset - start + data_start(bytes(data[member.offset - start :][:30]), where)
                stored = bytes(data[begin : begin + member.stored])
                write_atomically(self.folder / name, unpack(member, stored, where))
                progress(member.size)
        if lacking := [name for name in missing if name not in found]:
            raise DataError(f"{self.url}: {len(lacking):,} members are not in the zip: {', '.join(lacking[:5])}")

    def _find(self, members: Mapping[str, Member], names: list[str]) -> dict[str, str]:
        """name -> its name in the zip, for the names that the zip has."""
        called = ((name, prefix + name) for name in names for prefix in self.prefixes)
        return {name: member for name, member in called if member in members}


class RangeFile(io.RawIOBase):
    """A file on a server as a seekable file; every read is one request."""

    def __init__(self, client: Client, url: str) -> None:
        self._client, self.url = client, url
        self.version, ranges = client.version(url)
        if not ranges or self.version.size is None:
            raise DataError(f"{url}: the server does not support ranges, so single members cannot be fetched")
        self.size: int = self.version.size
        self._at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence] + offset
        if at < 0:
            raise OSError(f"{self.url}: position {at}")  # what zipfile expects of a file
        self._at = at
        return at

    def read(self, size: int = -1) -> bytes:
        start, stop = self._at, self.size if size < 0 else min(self._at + size, self.size)
        self._at = max(start, stop)
        return self._client.read(self.url, start, stop, self.version) if start < stop else b""


def _runs(members: Mapping[str, Member], wanted: Iterable[str]) -> list[tuple[int, int, list[str]]]:
    """Groups of members to fetch with one request each, and the bytes [start, stop) that hold them."""
    # The length of a member's header is not known beforehand, but the member ends before the next one begins.
    follower = dict(pairwise(sorted({member.offset for member in members.values()})))
    runs: list[tuple[int, int, list[str]]] = []
    for name in sorted(wanted, key=lambda name: members[name].offset):
        start, longest = members[name].offset, members[name].offset + _HEADERS + members[name].stored
        stop = min(follower.get(start, longest), longest)
        if runs and start - runs[-1][1] <= _GAP and stop - runs[-1][0] <= _RUN:
            runs[-1] = (runs[-1][0], stop, [*runs[-1][2], name])
        else:
            runs.append((start, stop, [name]))
    return runs
