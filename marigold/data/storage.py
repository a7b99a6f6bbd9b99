"""Folders, tars and zips behind one interface that reads a file's bytes by name.

A member of an archive is read with one `os.pread`, which needs no lock and no seek position, so one storage serves any
number of threads and forked workers, and a spawned worker reopens it from its pickle.
"""

import os
import stat
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

from marigold.data.archive_index import Member, archive_members, data_start, relative_name, unpack
from marigold.data.errors import DataError, MissingDataError

# The largest file of the seven data sets is ETH3D's raw depth, 97.5 MB. Reading a file that claims more than this
# could take the machine's memory.
MAX_FILE_BYTES = 512 * 2**20
ARCHIVE_SUFFIXES = (".tar", ".zip")


@runtime_checkable
class Storage(Protocol):
    """Named files behind one interface; names are relative, with `/` between their parts."""

    def read(self, name: str) -> bytes:
        """The whole file; raises DataError, naming it, when it is missing, outside or too large."""

    def names(self) -> Sequence[str]:
        """Every file's name, sorted, without a leading `./`; no content is read."""


def open_storage(path: str | Path) -> Storage:
    """Open a folder, a `.tar` or a `.zip` for reading; raises DataError when it is none of these.

    A folder stands for its own files and the files in archives directly inside it.
    """
    path = Path(path)
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.suffix in ARCHIVE_SUFFIXES and not file.is_dir())
        archives = [("", ArchiveStorage(file)) for file in inside]
        return LayeredStorage([("", FolderStorage(path)), *archives]) if archives else FolderStorage(path)
    if not path.exists():
        raise MissingDataError(f"{path}: no such folder or archive")
    archive = ArchiveStorage(path)
    if not archive.members:
        raise DataError(f"{path}: an archive without files")
    return archive


class FolderStorage:
    """The files below one folder; a symbolic link may not lead out of it."""

    def __init__(self, root: str | Path) -> None:
        self.root = os.path.realpath(root)

    def read(self, name: str) -> bytes:
        path = os.path.join(self.root, relative_name(name))
        real = os.path.realpath(path)
        if os.path.commonpath((real, self.root)) != self.root:
            raise DataError(f"{path}: a symbolic link out of {self.root}, to {real}")
        try:
            status = os.stat(real)
            # A named pipe or a device would block the reader or never end.
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path}: not a file")
            _check_size(path, status.st_size)
            with open(real, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            kind = MissingDataError if isinstance(error, FileNotFoundError | NotADirectoryError) else DataError
            raise kind(f"{path}: {error.strerror or error}") from error

    def names(self) -> Sequence[str]:
        # The folder of a teacher's labels may not exist yet; it then has no files.
        return sorted(_files_below(self.root)) if os.path.isdir(self.root) else []


class ArchiveStorage:
    """The members of one `.tar` (not compressed) or `.zip`, read at their offsets; opened when first needed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        # Neither descriptor nor index: a spawned worker opens the file itself and finds the index on the disk.
        return ArchiveStorage, (self.path,)

    @cached_property
    def members(self) -> dict[str, Member]:
        return archive_members(self.path)

    @cached_property
    def _file(self) -> int:
        file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, file)
        return file

    def read(self, name: str) -> bytes:
        plain = relative_name(name)
        where = f"{self.path}:{plain}"
        member = self.members.get(plain)
        if member is None:
            raise MissingDataError(f"{where}: no such member among {len(self.members)} in the archive")
        _check_size(where, max(member.size, member.stored))
        offset = member.offset
        if member.crc is not None:
            offset += data_start(os.pread(self._file, 30, offset), where)
        return unpack(member, os.pread(self._file, member.stored, offset), where)

    def names(self) -> Sequence[str]:
        return sorted(self.members)


class LayeredStorage:
    """Several storages as one, each below its own prefix; a name is looked up in them in order.

    layers: (prefix, storage), such as ("rgb/", ...) and ("depth/", ...); with "" as every prefix, the first one that
    has a name wins.
    """

    def __init__(self, layers: Sequence[tuple[str, Storage]]) -> None:
        self.layers = layers

    def read(self, name: str) -> bytes:
        plain = relative_name(name)
        nowhere = []
        for prefix, layer in self.layers:
            if plain.startswith(prefix):
                try:
                    return layer.read(plain[len(prefix) :])
                except MissingDataError as error:
                    nowhere.append(str(error))
        below = ", ".join(prefix for prefix, _ in self.layers)
        raise MissingDataError("; ".join(nowhere) or f"{name}: expected a name below {below}")

    def names(self) -> Sequence[str]:
        return sorted({prefix + name for prefix, layer in self.layers for name in layer.names()})


def _files_below(folder: str, prefix: str = "") -> Iterator[str]:
    # A listing distinguishes files from folders; asking for each of 75,000 names takes minutes on a network disk.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):  # a link to a folder may lead out of the root or form a cycle
                yield from _files_below(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file():
                yield prefix + entry.name


def _check_size(where: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise DataError(f"{where}: {size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
