"""The offset of each member of a tar or zip, and unpacking a member's stored bytes with all checks."""

import io
import json
import logging
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from marigold.data.errors import DataError
from marigold.files import write_atomically

log = logging.getLogger(__name__)


class Member(NamedTuple):
    """One file: its offset (in a zip, of its own header) and its size in bytes, stored and unpacked.

    crc: the checksum of a zip's member; None for a tar's, which has none.
    """

    offset: int
    stored: int
    size: int
    deflated: bool = False
    crc: int | None = None


def relative_name(name: str, root: object = "the root") -> str:
    """The name without `.` and empty parts; raises DataError if it is empty, absolute or leaves the root by `..`."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise DataError(f"{name!r}: not a relative name inside {root} (no leading /, no .., no backslash)")
    return "/".join(parts)


def archive_members(path: Path) -> dict[str, Member]:
    """The files in a tar or zip, by name; raises DataError for one that cannot be read at an offset.

    A zip has a directory. A tar is read through once, and its index is kept beside it, valid for one size and
    modification time of the tar.
    """
    try:
        # Tested first: zipfile searches from the end, and would find the directory of a zip that a tar holds last.
        if not tarfile.is_tarfile(path):
            return zip_members(path, str(path))
        status, real = path.stat(), path.resolve()  # several links may lead to one archive
        index = real.with_name(f"{real.name}.index")
        # No hash: reading 15 GB for one costs as much as the index saves.
        head = [status.st_size, status.st_mtime_ns]
        if (found := _cached(index, head)) is not None:
            return found
        members = _tar_members(path)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as an archive ({error})") from error
    try:
        write_atomically(index, json.dumps({"head": head, "members": members}))
    except OSError as error:
        # As in a read-only folder: every process then reads all headers of the tar, slower but still correct.
        log.info("cannot keep the index of %s: %s", path, error)
    return members


def zip_members(file: Path | io.RawIOBase, where: str) -> dict[str, Member]:
    """The files in a zip, by name. Raises DataError, which names `where`, for one that is damaged or encrypted."""
    members = {}
    try:
        with zipfile.ZipFile(file) as archive:
            listed = [info for info in archive.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise DataError(f"{where}: neither a folder, a tar nor a whole zip ({error})") from error
    for info in listed:
        # Bit 0: encrypted (PKWARE's APPNOTE.TXT, 4.4.4).
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{where}:{info.filename}: encrypted or neither stored nor deflated; pack the zip anew")
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        place = Member(info.header_offset, info.compress_size, info.file_size, deflated, info.CRC)
        members[relative_name(info.filename, where)] = place
    return members


def data_start(header: bytes, where: str) -> int:
    """The number of bytes before a zip member's data, from the first 30 bytes of the member's own header."""
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise DataError(f"{where}: not at the offset in the zip's directory, the archive is damaged")
    # APPNOTE.TXT, 4.3.7: this header's extra field need not be as long as the one in the directory.
    name_size, extra_size = struct.unpack("<HH", header[26:30])
    return int(30 + name_size + extra_size)


def unpack(member: Member, data: bytes, where: str) -> bytes:
    """The member's bytes out of the stored ones; raises DataError if they are cut, damaged or of another size."""
    if len(data) < member.stored:
        raise DataError(f"{where}: the archive ends in the middle of this member")
    if member.deflated:
        try:
            # Raw deflate, without zlib's header; never more than the size in the directory, which a bomb understates.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, member.size + 1)
        except zlib.error as error:
            raise DataError(f"{where}: damaged compressed data ({error})") from error
    if len(data) != member.size:
        raise DataError(f"{where}: not the {member.size:,} bytes that the zip's directory states")
    if member.crc is not None and zlib.crc32(data) != member.crc:
        raise DataError(f"{where}: checksum mismatch, the archive is damaged")
    return data


def _cached(place: Path, head: list[int]) -> dict[str, Member] | None:
    try:
        content = json.loads(place.read_bytes())
        return {name: Member(*at) for name, at in content["members"].items()} if content["head"] == head else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # absent, or damaged
        return None


def _tar_members(path: Path) -> dict[str, Member]:
    """The files in a tar, by name; of two with the same name the later one counts, as when unpacking."""
    total, members = path.stat().st_size, {}
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
            # A sparse file is stored in pieces, which are not contiguous.
            if not member.isreg() or member.issparse():
                raise DataError(f"{where}: a link or not a plain file; make the tar with `tar --hard-dereference -h`")
            if member.offset_data + member.size > total:
                raise DataError(f"{where}: the archive ends in the middle of this member")
            members[relative_name(member.name, path)] = Member(member.offset_data, member.size, member.size)
    return members
