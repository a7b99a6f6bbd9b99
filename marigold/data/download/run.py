"""What every download shares: room on the disk asked for first, a bar per file and in all, a report at the end."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from tqdm import tqdm

from marigold.data.download.http import Client, Network
from marigold.data.download.whole import RemoteFile, check_file, download_file, part_of
from marigold.data.errors import DataError
from marigold.data.preparation.runner import free_space

T = TypeVar("T")


@dataclass(frozen=True)
class Report:
    """What a download did, or with `dry_run` would do. Sizes in bytes; failed: what is not there and why."""

    out: Path
    dry_run: bool
    files: int
    already: int
    size: int
    free: int
    next_step: str
    failed: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """The report for people, several lines."""
        if self.dry_run:
            lines = [
                f"dry run: {self.files:,} files, {self.already:,} of them already in {self.out}; the others have "
                f"about {gib(self.size)}, {gib(self.free)} are free. Nothing was written."
            ]
        else:
            whole = self.files - len(self.failed)
            lines = [f"{self.out}: {whole:,} of {self.files:,} files are there and checked, {gib(self.size)} came now"]
        lines += [f"  not downloaded: {name}: {reason}" for name, reason in sorted(self.failed.items())]
        if not self.failed and not self.dry_run:
            lines.append(f"next: {self.next_step}")
        return "\n".join(lines)


def download_files(
    out: str, files: list[RemoteFile], network: Network, verify: bool, dry_run: bool, next_step: str
) -> Report:
    """Fetch whole files into `out`; those that are there already are only looked at.

    verify: compare with the known sizes and hashes. A file that cannot be had is reported and the others are
    fetched. Raises DataError if the disk is too small, before anything is fetched, and OSError if writing fails.
    """
    known = files if verify else [replace(file, size=None, md5=None, sha256=None) for file in files]
    targets = {Path(out, file.file_name()): file for file in known}
    if len(targets) < len(files):
        raise DataError(f"{out}: two of the files have the same name; give them different ones with `name`")
    failed: dict[str, str] = {}
    todo = {target: file for target, file in targets.items() if not target.exists()}
    for target in targets.keys() - todo.keys():
        _try(failed, target.name, partial(check_file, target, targets[target]))
    already = len(targets) - len(todo) - len(failed)
    with Client(network) as client:
        sizes: dict[Path, int] = {}
        for target, file in todo.items():
            answer = _try(failed, target.name, partial(client.version, file.url))
            if answer is not None:
                sizes[target] = answer[0].size or file.size or 0
        there = {target: _size(part_of(target)) for target in sizes}
        needed = sum(max(0, size - there[target]) for target, size in sizes.items())
        room = free_space(Path(out))
        if dry_run:
            return Report(Path(out), True, len(files), already, needed, room, next_step, failed)
        require_room(Path(out), needed)
        total = sum(sizes.values())
        with bar("all", total, sum(there.values())) as every:
            first = every.n
            for target, size in sizes.items():
                with bar(target.name, size, there[target]) as one:
                    progress = _both(one, every)
                    _try(failed, target.name, partial(download_file, client, todo[target], target, progress))
            came = int(every.n - first)
    return Report(Path(out), False, len(files), already, came, room, next_step, failed)


def refuse(reason: str) -> NoReturn:
    """For a data set that no program may fetch: says why and what to do."""
    raise DataError(reason)


def side_by_side(jobs: Mapping[str, Callable[[threading.Event], object]], connections: int) -> dict[str, str]:
    """Run the jobs, so many at once; returns why which of them failed with DataError.

    Any other error stops all: it sets the event, which a long job looks at, and is raised again.
    """
    failed: dict[str, str] = {}
    stop = threading.Event()
    with ThreadPoolExecutor(connections) as pool:
        running = {pool.submit(job, stop): name for name, job in jobs.items()}
        try:
            for done in as_completed(running):
                _try(failed, running[done], done.result)
        finally:
            # Without an error nothing is left that these could stop.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return failed


def bar(name: str, total: int, initial: int = 0) -> "tqdm[NoReturn]":
    """A bar in bytes; total 0: unknown."""
    return tqdm(
        total=total or None,
        initial=initial,
        desc=name,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        leave=name == "all",
    )


def require_room(out: Path, needed: int) -> None:
    room = free_space(out)
    if needed > room:
        raise DataError(f"{out}: {gib(needed)} are needed and {gib(room)} are free")


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _try(failed: dict[str, str], name: str, action: Callable[[], T]) -> T | None:
    try:
        return action()
    except DataError as error:
        failed[name] = str(error)
        return None


def _both(*bars: "tqdm[NoReturn]") -> Callable[[int], None]:
    def update(count: int) -> None:
        for one in bars:
            one.update(count)

    return update


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
