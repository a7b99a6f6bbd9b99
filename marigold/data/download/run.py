"""Downloading several files: disk space is checked first, a progress bar is shown, and a report is made at the end."""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from tqdm import tqdm

from marigold.data.download.http import Client, Network
from marigold.data.download.members import RemoteZip
from marigold.data.download.whole import RemoteFile, WholeFile
from marigold.data.errors import DataError
from marigold.data.preparation.lists import check_space, free_space, gib
from marigold.data.splits import evenly_spaced
from marigold.files import lock_folder

T = TypeVar("T")

_PROBES = 16  # files and zips that the estimate of the size is made from


@dataclass(frozen=True)
class Settings:
    """The settings of every source. verify: compare with the known hashes; dry_run: fetch nothing."""

    out: str
    verify: bool
    dry_run: bool
    network: Network


@dataclass(frozen=True)
class Report:
    """The result of a download, with `dry_run` of one that would be made. Sizes in bytes; failed: URL -> reason."""

    settings: Settings
    next_step: str
    files: int
    already: int
    size: int
    free: int
    failed: Mapping[str, str]

    def text(self) -> str:
        """The report for the user, several lines."""
        out, size, whole = self.settings.out, gib(self.size), self.files - len(self.failed)
        if self.settings.dry_run:
            there = f"dry run: {self.files:,} files, {self.already:,} of them already in {out}"
            lines = [f"{there}; the others take about {size}, {gib(self.free)} are free. Nothing was written."]
        else:
            lines = [f"{out}: {whole:,} of {self.files:,} files are there and checked, {size} downloaded"]
        lines += [f"  not downloaded: {reason}" for _, reason in sorted(self.failed.items())]
        if not self.failed and not self.settings.dry_run:
            lines.append(f"next: {self.next_step}")
        return "\n".join(lines)


def download_files(settings: Settings, files: list[RemoteFile], next_step: str) -> Report:
    """Fetch whole files as `download` does; those that are there already are checked."""
    if not settings.verify:
        files = [replace(file, hash=None) for file in files]
    if len({file.file_name() for file in files}) < len(files):
        raise DataError(f"{settings.out}: two of the files have the same name")
    return download(settings, [WholeFile(file, Path(settings.out)) for file in files], next_step)


def download(settings: Settings, items: Sequence[WholeFile | RemoteZip], next_step: str) -> Report:
    """Fetch what is missing, several items at a time; whatever has arrived stays.

    An item that fails is reported, and the others are fetched. Raises DataError, before anything is fetched, if the
    disk is too small by an estimate from some of the items; OSError if writing fails; and FolderInUse if another
    process writes there.
    """
    out, connections, stop = Path(settings.out), settings.network.connections, threading.Event()
    missing = {item.url: item.missing() for item in items}  # once: each looks for its files on the disk
    todo = [item for item in items if missing[item.url]]
    files, left = sum(len(item.names) for item in items), sum(map(len, missing.values()))
    with Client(settings.network) as client:
        probed = evenly_spaced(todo, min(_PROBES, len(todo))) if todo else []
        probes = {item.url: partial(item.size, client, missing[item.url]) for item in probed}
        sizes, failed = side_by_side(probes, connections, stop)
        # Failed items are not counted; a file of an item that was not probed has the others' mean size.
        counted, lost = (sum(len(missing[url]) for url in urls) for urls in (sizes, failed))
        needed = sum(sizes.values()) * (left - lost) // max(1, counted)
        report = Report(settings, next_step, files, files - left, needed, free_space(out), failed)
        if settings.dry_run:
            return report
        check_space(out, needed)
        bar = tqdm(total=needed or None, unit="B", unit_scale=True, unit_divisor=1024)
        with lock_folder(out), bar:  # two runs would mix their bytes

            def progress(count: int) -> None:
                if stop.is_set():  # an error of another item stops all
                    raise CancelledError
                with bar.get_lock():
                    bar.update(count)

            had = [item for item in items if item.url not in failed]
            fetches = {item.url: partial(item.fetch, client, missing[item.url], progress) for item in had}
            _, more = side_by_side(fetches, connections, stop)
    return replace(report, size=int(bar.n), failed={**failed, **more})


def refuse(reason: str) -> NoReturn:
    """For a data set that no program may fetch: raises DataError with the reason and what to do instead."""
    raise DataError(reason)


def side_by_side(
    jobs: Mapping[str, Callable[[], T]], connections: int, stop: threading.Event
) -> tuple[dict[str, T], dict[str, str]]:
    """Run the jobs, `connections` at a time; returns their results, and the messages of those that raised DataError.

    Any other error is raised at once, after setting `stop`, at which running jobs must end.
    """
    results: dict[str, T] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(connections) as pool:  # threads do: each waits for the server
        running = {pool.submit(job): name for name, job in jobs.items()}
        try:
            for done in as_completed(running):
                try:
                    results[running[done]] = done.result()
                except DataError as error:
                    failed[running[done]] = str(error)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results, failed
