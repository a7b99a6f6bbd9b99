"""Folder, tar or zip -> bytes, all the same to a data set.

An archive is indexed once; the index is a small file beside it, or in the cache folder when the archive's own
folder is read-only. A member is then one `os.pread` away, which needs no lock and no seek position, so one
storage serves any number of threads and forked workers, and a spawned worker reopens it from its pickle.
"""

import os
import stat
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from marigold.data.archive_index import ZIP_DEFLATED, ArchiveIndex, load_or_build
from marigold.data.errors import DataError, MissingDataError

# The largest file of the seven data sets is ETH3D's raw depth, 97.5 MB. A file that claims more than this is
# not one of theirs, and reading it could take the machine's memory.
MAX_FILE_BYTES = 512 * 2**20
ARCHIVE_SUFFIXES = (".tar", ".zip")


@runtime_checkable
class Storage(Protocol):
    """Named files behind one interface; names are relative, with `/` between their parts."""

    def read(self, name: str) -> bytes:
        """The whole file; raises DataError, naming it, when it is missing, outside or too large."""
        ...

    def names(self) -> Sequence[str]:
        """Every file's name, sorted, without a leading `./`."""
        ...

    def absent(self, names: Iterable[str]) -> list[str]:
        """Those of the names that `read` would not find, in order; no content is read."""
        ...


def open_storage(path: str | Path, *, max_file_bytes: int = MAX_FILE_BYTES, cache_index: bool = True) -> Storage:
    """Open a folder, a `.tar` or a `.zip` for reading; raises DataError when it is none of these.

    A folder stands for the archives directly inside it too. cache_index: keep an archive's index on the disk.
    """
    path = Path(path)
    if path.is_dir():
        archives = sorted(file for file in path.iterdir() if file.suffix in ARCHIVE_SUFFIXES and not file.is_dir())
        folder = FolderStorage(path, max_file_bytes)
        return OverlaidStorage(folder, archives, cache_index) if archives else folder
    if not path.exists():
        raise MissingDataError(f"{path}: no such folder or archive")
    return ArchiveStorage(path, max_file_bytes, cache_index)


def relative_name(name: str) -> str:
    """The name without leading `./`; raises DataError if it is empty, absolute or leaves the root by `..`."""
    plain = name
    while plain.startswith("./"):
        plain = plain[2:].lstrip("/")
    parts = plain.split("/")
    if not plain or plain.startswith("/") or ".." in parts or "\0" in plain or "\\" in plain:
        raise DataError(f"{name!r}: not a relative name inside the root (no leading /, no .., no backslash)")
    return plain if "." not in parts and "" not in parts else "/".join(p for p in parts if p not in ("", "."))


class FolderStorage:
    """The files below one folder; a symbolic link may not lead out of it."""

    def __init__(self, root: Path, max_file_bytes: int = MAX_FILE_BYTES) -> None:
        self.root = os.path.realpath(root)
        self.max_file_bytes = max_file_bytes

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
            _check_size(path, status.st_size, self.max_file_bytes)
            with open(real, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            kind = MissingDataError if isinstance(error, FileNotFoundError | NotADirectoryError) else DataError
            raise kind(f"{path}: {error.strerror or error}") from error

    def absent(self, names: Iterable[str]) -> list[str]:
        # One listing a folder: on a network disk a look at each of 75,000 files takes minutes.
        there: dict[str, set[str]] = {}
        missing = []
        for name in names:
            folder, _, file = relative_name(name).rpartition("/")
            if folder not in there:
                there[folder] = _files_in(os.path.join(self.root, folder))
            if file not in there[folder]:
                missing.append(name)
        return missing

    def names(self) -> Sequence[str]:
        found = []
        for folder, _, files in os.walk(self.root):
            inside = os.path.relpath(folder, self.root)
            found += files if inside == "." else [f"{inside}/{file}" for file in files]
        return sorted(found)


class ArchiveStorage:
    """The members of one `.tar` (not compressed) or `.zip`, read at their offsets."""

    def __init__(self, path: Path, max_file_bytes: int = MAX_FILE_BYTES, cache_index: bool = True) -> None:
        self.path = path
        self.max_file_bytes, self.cache_index = max_file_bytes, cache_index
        self._open()

    def _open(self) -> None:
        try:
            self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror or error}") from error
        weakref.finalize(self, os.close, self._file)
        self._index: ArchiveIndex = load_or_build(self.path, self._file, cache=self.cache_index)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "max_file_bytes": self.max_file_bytes, "cache_index": self.cache_index}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def read(self, name: str) -> bytes:
        plain = relative_name(name)
        where = f"{self.path}:{plain}"
        member = self._index.find(plain)
        if member is None:
            raise MissingDataError(f"{where}: no such member among {len(self._index)} in the archive")
        _check_size(where, member.size, self.max_file_bytes)
        data = self._pread(member.stored, self._index.data_offset(self._file, member), where)
        if member.method == ZIP_DEFLATED:
            data = _inflate(data, member.size, where)
        if member.crc is not None and zlib.crc32(data) != member.crc:
            raise DataError(f"{where}: checksum mismatch, the archive is damaged")
        return data

    def _pread(self, size: int, offset: int, where: str) -> bytes:
        data = os.pread(self._file, size, offset)
        if len(data) < size:  # one pread may return less than asked for, 2 GiB at most
            rest = [data]
            while len(data) and sum(map(len, rest)) < size:
                done = sum(map(len, rest))
                data = os.pread(self._file, size - done, offset + done)
                rest.append(data)
            data = b"".join(rest)
        if len(data) < size:
            raise DataError(f"{where}: the archive ends in the middle of this member")
        return data

    def names(self) -> Sequence[str]:
        return self._index.names()

    def absent(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self._index.find(relative_name(name)) is None]


class OverlaidStorage:
    """A folder over archives: a name is looked up in the folder and then in each archive, opened when needed."""

    def __init__(self, folder: FolderStorage, archives: Sequence[Path], cache_index: bool = True) -> None:
        self.folder, self.archives, self.cache_index = folder, archives, cache_index

    @cached_property
    def _layers(self) -> list[Storage]:
        size = self.folder.max_file_bytes
        return [self.folder, *(ArchiveStorage(path, size, self.cache_index) for path in self.archives)]

    def read(self, name: str) -> bytes:
        try:
            return self.folder.read(name)
        except MissingDataError as error:
            nowhere = [str(error)]
        for layer in self._layers[1:]:
            try:
                return layer.read(name)
            except MissingDataError as error:
                nowhere.append(str(error))
        raise MissingDataError("; ".join(nowhere))

    def names(self) -> Sequence[str]:
        return sorted({name for layer in self._layers for name in layer.names()})

    def absent(self, names: Iterable[str]) -> list[str]:
        missing = self.folder.absent(names)
        for layer in self._layers[1:] if missing else ():
            missing = layer.absent(missing)
        return missing


class MountedStorage:
    """Several storages as one: each under its own first part of the name, as `rgb` and `depth`."""

    def __init__(self, mounts: Mapping[str, Storage]) -> None:
        self.mounts = dict(mounts)

    def read(self, name: str) -> bytes:
        first, _, rest = relative_name(name).partition("/")
        if first not in self.mounts or not rest:
            raise DataError(f"{name}: expected a name below {', '.join(sorted(self.mounts))}")
        return self.mounts[first].read(rest)

    def names(self) -> Sequence[str]:
        return sorted(self._all_names())

    def _all_names(self) -> Iterator[str]:
        for first, storage in self.mounts.items():
            yield from (f"{first}/{name}" for name in storage.names())

    def absent(self, names: Iterable[str]) -> list[str]:
        names = list(names)
        plain = {name: relative_name(name) for name in names}
        below: dict[str, list[str]] = {first: [] for first in self.mounts}
        missing = set()
        for name in plain.values():
            first, _, rest = name.partition("/")
            if first in below and rest:
                below[first].append(rest)
            else:
                missing.add(name)
        for first, rests in below.items():
            missing |= {f"{first}/{rest}" for rest in self.mounts[first].absent(rests)}
        return [name for name in names if plain[name] in missing]


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from error


def _check_size(where: str, size: int, limit: int) -> None:
    if size > limit:
        raise DataError(f"{where}: {size:,} bytes, more than the limit of {limit:,}")


def _inflate(data: bytes, size: int, where: str) -> bytes:
    # Never decompress more than the directory promises: a bomb lies about its size.
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise DataError(f"{where}: damaged compressed data ({error})") from error
    if len(plain) != size:
        raise DataError(f"{where}: {'more' if len(plain) > size else 'less'} data than the {size:,} bytes promised")
    return plain
