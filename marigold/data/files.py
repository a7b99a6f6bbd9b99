"""Writing files so that a killed run or a full disk never leaves half of one under its final name."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL = ".*.tmp"  # what a process that is killed while it writes leaves behind


def remove_partial_files(folder: Path) -> int:
    """Delete what killed runs left below `folder`, which nobody may be writing to; returns how many there were."""
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
