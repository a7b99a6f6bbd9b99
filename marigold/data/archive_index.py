"""Where each member of a tar or zip lies: built once, cached, small in memory.

The index is one sorted numpy table (about 100 bytes a member), not one Python object per member: 54,000 pairs
take some 10 MB, and a look-up is a binary search.
"""

import json
import logging
import os
import struct
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marigold.data.errors import DataError
from marigold.files import atomic_file

log = logging.getLogger(__name__)

STORED, ZIP_STORED, ZIP_DEFLATED = 0, 1, 2
_FORMAT = 1  # of the cached index file
_CACHE_FOLDER = Path.home() / ".cache" / "marigold" / "archives"
_METHODS = {zipfile.ZIP_STORED: ZIP_STORED, zipfile.ZIP_DEFLATED: ZIP_DEFLATED}
_COLUMNS = [("offset", "<i8"), ("size", "<i8"), ("stored", "<i8"), ("method", "u1"), ("crc", "<u4")]


class Member(NamedTuple):
    """One member: size in bytes as read, size as stored, and where; `offset` is the header's in a zip."""

    offset: int
    size: int
    stored: int
    method: int
    crc: int | None


class ArchiveIndex:
    """The sorted table of an archive's members; folders are not members."""

    def __init__(self, table: np.ndarray) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def find(self, name: str) -> Member | None:
        key = name.encode()
        row = int(np.searchsorted(self._table["name"], key))
        if row == len(self._table) or self._table["name"][row] != key:
            return None
        _, offset, size, stored, method, crc = self._table[row].item()
        return Member(offset, size, stored, method, crc if method != STORED else None)

    def names(self) -> Sequence[str]:
        return [name.decode() for name in self._table["name"].tolist()]

    def data_offset(self, file: int, member: Member) -> int:
        """Where the member's data begin; in a zip only the member's own header tells."""
        if member.method == STORED:
            return member.offset
        header = os.pread(file, 30, member.offset)
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise DataError(f"no zip member at offset {member.offset}, the archive is damaged")
        name_size, extra_size = struct.unpack("<HH", header[26:30])
        return member.offset + 30 + name_size + extra_size


def load_or_build(path: Path, file: int, *, cache: bool = True) -> ArchiveIndex:
    """The cached index if it is of this size and modification time, else a new one, cached if possible and wanted.

    `file` is the open descriptor of `path`. Raises DataError for an archive that cannot be indexed.
    """
    status = os.fstat(file)
    head = {"format": _FORMAT, "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    # Behind a symbolic link may lie an archive that was indexed under its own name.
    beside = dict.fromkeys(place.with_name(place.name + ".index") for place in (path, path.resolve()))
    places = [*beside, _CACHE_FOLDER / f"{_slug(path)}.index"]
    for place in places:
        table = _load(place, head)
        if table is not None:
            return ArchiveIndex(table)
    table = _build(path)
    for place in places if cache else ():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(place) as out:
                out.write(json.dumps(head).encode() + b"\n")
                np.save(out, table)
            break
        except OSError as error:
            # Without a cache every worker indexes for itself: slower, still right.
            log.info("cannot keep the index of %s at %s: %s", path, place, error)
    return ArchiveIndex(table)


def _slug(path: Path) -> str:
    return str(path.resolve()).strip("/").replace("/", "_")[-200:]


def _load(place: Path, head: dict[str, int]) -> np.ndarray | None:
    try:
        with open(place, "rb") as file:
            if json.loads(file.readline(1000)) != head:
                return None
            return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # absent, or not a whole index: build it again
        return None


def _build(path: Path) -> np.ndarray:
    try:
        if zipfile.is_zipfile(path):
            members = dict(_zip_members(path))
        elif tarfile.is_tarfile(path):
            members = dict(_tar_members(path))
        else:
            raise DataError(f"{path}: neither a folder, a tar nor a zip")
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be indexed, the archive is damaged ({error})") from error
    width = max((len(name) for name in members), default=1)
    kind: list[tuple[str, str]] = [("name", f"S{width}"), *_COLUMNS]
    return np.array([(name, *member) for name, member in sorted(members.items())], dtype=kind)


def _tar_members(path: Path) -> Iterator[tuple[bytes, tuple[int, int, int, int, int]]]:
    """Name and place of each file; of two members of one name the later one counts, as when unpacking."""
    total = path.stat().st_size
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115 (closed below; the colon refuses compression)
    except tarfile.ReadError as error:
        raise DataError(f"{path}: a compressed tar cannot be read at an offset; unpack it (gunzip)") from error
    with archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined] # tarfile would keep every header in memory
            if member.isdir():
                continue
            where = f"{path}:{member.name}"
            if member.islnk() or member.issym():
                raise DataError(
                    f"{where}: a link to {member.linkname!r}; make the tar with `tar --hard-dereference -h`"
                )
            if not member.isreg() or member.issparse():
                raise DataError(f"{where}: not a plain file; make the tar without --sparse, of plain files only")
            if member.offset_data + member.size > total:
                raise DataError(f"{where}: the archive ends in the middle of this member")
            yield _safe(member.name, where), (member.offset_data, member.size, member.size, STORED, 0)


def _zip_members(path: Path) -> Iterator[tuple[bytes, tuple[int, int, int, int, int]]]:
    total = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.is_dir():
                continue
            where = f"{path}:{member.filename}"
            if member.flag_bits & 1:
                raise DataError(f"{where}: encrypted")
            if member.compress_type not in _METHODS:
                raise DataError(
                    f"{where}: compression method {member.compress_type}; only stored and deflated are read"
                )
            if member.header_offset + member.compress_size > total:
                raise DataError(f"{where}: the archive ends in the middle of this member")
            method = _METHODS[member.compress_type]
            place = (member.header_offset, member.file_size, member.compress_size, method, member.CRC)
            yield _safe(member.filename, where), place


def _safe(name: str, where: str) -> bytes:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or not parts:
        raise DataError(f"{where}: a name outside the archive; such an archive is not to be trusted")
    return "/".join(parts).encode()
