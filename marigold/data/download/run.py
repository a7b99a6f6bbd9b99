"""What every download shares: room on the disk asked for first, a progress bar, a report at the end."""

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
from marigold.data.preparation.runner import free_space
from marigold.data.splits import evenly_spaced
from marigold.files import lock_folder

T = TypeVar("T")

_PROBES = 16  # files and zips looked into for the estimate of the size


@dataclass(frozen=True)
class Report:
    """What a download did, or with `dry_run` would do. Sizes in bytes; failed: what is not there, by URL, and why."""

    out: Path
    dry_run: bool
    files: int
    already: int
    size: int
    free: int
    next_step: str
    failed: Mapping[str, str]

    def text(self) -> str:
        """The report for the user, several lines."""
        there = f"{self.files:,} files, {self.already:,} of them were in {self.out} already"
        come = "to download, {} free. Nothing was written" if self.dry_run else "downloaded"
        lines = [f"{'dry run: ' * self.dry_run}{there}; {gib(self.size)} {come.format(gib(self.free))}"]
        lines += [f"  not downloaded: {reason}" for _, reason in sorted(self.failed.items())]
        if not self.failed and not self.dry_run:
            lines.append(f"next: {self.next_step}")
        return "\n".join(lines)


def download_files(
    out: str, files: list[RemoteFile], network: Network, verify: bool, dry_run: bool, next_step: str
) -> Report:
    """Fetch whole files into `out`, as `download` does; those that are there already are checked.

    verify: compare with the known sizes and hashes.
    """
    known = files if verify else [replace(file, size=None, md5=None, sha256=None) for file in files]
    if len({file.file_name() for file in files}) < len(files):
        raise DataError(f"{out}: two of the files have the same name; give them different ones with `name`")
    return download(Path(out), [WholeFile(file, Path(out)) for file in known], network, dry_run, next_step)


def download(
    out: Path, items: Sequence[WholeFile | RemoteZip], network: Network, dry_run: bool, next_step: str
) -> Report:
    """Fetch what is not there yet, several items at a time; what has come stays, whatever happens.

    An item that cannot be had is reported and the others are fetched. Raises DataError if the disk is too small for
    all, by an estimate from some of them, before anything is fetched; OSError if writing fails; and FolderInUse if
    another process writes there.
    """
    missing = {item.url: item.missing() for item in items}
    todo = [item for item in items if missing[item.url]]
    files, already = sum(len(item.names) for item in items), sum(len(i.names) - len(missing[i.url]) for i in items)
    with Client(network) as client:
        probed = evenly_spaced(todo, min(_PROBES, len(todo))) if todo else []
        jobs = {item.url: partial(item.size, client, missing[item.url]) for item in probed}
        sizes, failed = side_by_side(jobs, network.connections)
        counted = sum(len(missing[url]) for url in sizes)
        left = sum(len(names) for url, names in missing.items() if url not in failed)
        needed = sum(sizes.values()) * left // max(1, counted)
        report = Report(out, dry_run, files, already, needed, free_space(out), next_step, failed)
        if dry_run:
            return report
        if needed > report.free:
            raise DataError(f"{out}: {gib(needed)} are needed and {gib(report.free)} are free")
        stop = threading.Event()
        bar = tqdm(total=needed or None, unit="B", unit_scale=True, unit_divisor=1024)
        with lock_folder(out), bar:

            def progress(count: int) -> None:
                if stop.is_set():  # another item has met an error that stops all
                    raise CancelledError
                with bar.get_lock():
                    bar.update(count)

            fetched = [item for item in items if item.url not in failed]
            fetches = {item.url: partial(item.fetch, client, missing[item.url], progress) for item in fetched}
            _, more = side_by_side(fetches, network.connections, stop)
    return replace(report, size=int(bar.n), failed={**failed, **more})


def refuse(reason: str) -> NoReturn:
    """For a data set that no program may fetch: says why and what to do."""
    raise DataError(reason)


def side_by_side(
    jobs: Mapping[str, Callable[[], T]], connections: int, stop: threading.Event | None = None
) -> tuple[dict[str, T], dict[str, str]]:
    """Run the jobs, `connections` at a time: their results, and why which of them failed with DataError.

    Any other error is raised again after `stop` is set, at which running jobs are to end.
    """
    results: dict[str, T] = {}
    failed: dict[str, str] = {}
    with ThreadPoolExecutor(connections) as pool:
        running = {pool.submit(job): name for name, job in jobs.items()}
        try:
            for done in as_completed(running):
                try:
                    results[running[done]] = done.result()
                except DataError as error:
                    failed[running[done]] = str(error)
        finally:
            # Without an error nothing is left that these could stop.
            if stop is not None:
                stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
    return results, failed


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
