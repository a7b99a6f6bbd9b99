"""The run that all preparations share: resume, workers, progress, broken files, lists, summary."""

import multiprocessing
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from tqdm import tqdm

from marigold.data.errors import DataError
from marigold.data.preparation.journal import Journal, Outcome
from marigold.data.splits import SplitInfo, describe_split, evenly_spaced
from marigold.files import remove_partial_files, write_atomically

_PROBES = 4  # images converted for the estimate of the disk need
_MAX_AHEAD = 8  # tasks per worker handed out before their results are fetched
_VERDICTS = {
    True: "official split",
    False: "NOT the official split",
    None: "no official split to compare with",
}


@dataclass(frozen=True)
class ListResult:
    """One split list that was written, and how many images were left out of it for which reason."""

    split: SplitInfo
    dropped: Mapping[str, int]


@runtime_checkable
class Preparation(Protocol):
    """What a data set adds to the run; it is pickled once to each worker."""

    out: Path

    def items(self) -> Sequence[str]:
        """The unique names of all that is to be converted."""
        ...

    def settings(self) -> Mapping[str, object]:
        """The settings that the converted files depend on, as JSON values."""
        ...

    def convert(self, item: str, out: Path) -> Outcome:
        """Write the item's files below `out`; raises DataError for a broken one, OSError if writing fails."""
        ...

    def finish(self, outcomes: Mapping[str, Outcome]) -> Sequence[ListResult]:
        """Write the lists, from the outcomes of the items that are not broken."""
        ...


@dataclass(frozen=True)
class RunOptions:
    """workers: processes. max_broken: the share of broken items above which the run is an error."""

    workers: int
    dry_run: bool
    max_broken: float


@dataclass(frozen=True)
class PreparationSummary:
    """What a run did, or with `dry_run` would do. Sizes in bytes; `needed` is an estimate.

    note: what a person should know of how it was made.
    """

    out: Path
    dry_run: bool
    seen: int
    already: int
    written: int
    needed: int
    free: int
    broken: Mapping[str, str] = field(default_factory=dict)
    lists: Sequence[ListResult] = ()
    note: str = ""

    def text(self) -> str:
        """The summary for people, several lines."""
        note = [f"  {self.note}"] if self.note else []
        if self.dry_run:
            broken = f" {len(self.broken):,} are missing or broken." if self.broken else ""
            first = (
                f"dry run: {self.seen:,} images, {self.already:,} of them already in {self.out}; the others "
                f"need about {_gib(self.needed)}, {_gib(self.free)} are free.{broken} Nothing was written."
            )
            return "\n".join([first, *note])
        lines = [
            f"{self.out}: {self.seen:,} images seen, {self.already:,} were already there, "
            f"{_gib(self.written)} written",
            *note,
        ]
        for result in self.lists:
            dropped = ", ".join(f"{count:,} {reason}" for reason, count in result.dropped.items()) or "none"
            lines.append(f"  {result.split.path}: {result.split.count:,} kept; dropped: {dropped}")
            lines.append(f"    sha256 {result.split.sha256}: {_VERDICTS[result.split.official]}")
        if self.broken:
            lines.append(f"  {len(self.broken):,} broken, listed with the reasons in {self.out / 'broken.txt'}")
        return "\n".join(lines)


def run(preparation: Preparation, options: RunOptions) -> PreparationSummary:
    """Convert what is not yet converted, then write the lists.

    A broken item is named in `out/broken.txt`, counted and left out. Raises DataError if more than
    `max_broken` of the items are broken or the disk is too small, OSError if writing fails; what was
    converted before stays, and the next run goes on from there.
    """
    if options.workers < 1 or not 0 <= options.max_broken <= 1:
        raise ValueError(f"expected workers >= 1 and 0 <= max_broken <= 1, got {options}")
    items = preparation.items()
    journal = Journal(preparation.out, preparation.settings())
    known = journal.load()
    done = {item: known[item] for item in items if item in known}
    todo = [item for item in items if item not in done]
    free = free_space(preparation.out)
    needed = _estimate(preparation, todo) if options.dry_run or len(todo) > 16 * _PROBES else 0
    if options.dry_run:
        return PreparationSummary(preparation.out, True, len(items), len(done), 0, needed, free)
    if needed > free:
        raise DataError(f"{preparation.out}: about {_gib(needed)} are needed and {_gib(free)} are free")

    already = len(done)
    broken: dict[str, str] = {}
    preparation.out.mkdir(parents=True, exist_ok=True)
    if todo:
        remove_partial_files(preparation.out)
    with (
        journal,
        tqdm(total=len(items), initial=already, unit="image", desc=preparation.out.name) as bar,
        closing(_convert_all(preparation, todo, options.workers)) as outcomes,
    ):
        for outcome in outcomes:
            if outcome.broken:
                broken[outcome.name] = outcome.broken
            else:
                journal.add(outcome)
                done[outcome.name] = outcome
            bar.update()
    report_broken(preparation.out, broken, len(items), options.max_broken)
    in_order = {item: done[item] for item in items if item in done}
    written = sum(done[item].written for item in todo if item in done)
    lists = preparation.finish(in_order)
    return PreparationSummary(preparation.out, False, len(items), already, written, needed, free, broken, lists)


def free_space(out: Path) -> int:
    """Bytes free on the disk that `out` is or will be on."""
    return shutil.disk_usage(_existing(out)).free


def write_list(path: Path, lines: Sequence[str], official: str | None, dropped: Mapping[str, int]) -> ListResult:
    """Write a split list whole or not at all, and compare it with the field's."""
    if not lines:
        raise DataError(f"{path}: nothing is left to list; dropped: {dict(dropped)}")
    write_atomically(path, "".join(f"{line}\n" for line in lines))
    split = describe_split(path, [tuple(line.split()) for line in lines], official, tell=False)
    return ListResult(split, dropped)


def _convert_all(preparation: Preparation, items: Sequence[str], workers: int) -> Generator[Outcome, None, None]:
    """Outcomes as they come; a worker that dies ends the run with BrokenProcessPool instead of hanging."""
    if workers == 1:
        yield from (_convert(preparation, item) for item in items)
        return
    # Spawned, not forked: a fork of a process with threads (torch, HDF5) can deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(preparation,))
    try:
        waiting: set[Future[Outcome]] = set()
        left = iter(items)
        while True:
            waiting |= {pool.submit(_work, item) for item in islice(left, workers * _MAX_AHEAD - len(waiting))}
            if not waiting:
                return
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in finished)
    finally:
        pool.shutdown(cancel_futures=True)


_own: list[Preparation] = []  # the worker's copy, unpickled once and not once per item


def _start_worker(preparation: Preparation) -> None:
    _own[:] = [preparation]


def _work(item: str) -> Outcome:
    return _convert(_own[0], item)


def _convert(preparation: Preparation, item: str) -> Outcome:
    try:
        return preparation.convert(item, preparation.out)
    except DataError as error:
        return Outcome(item, broken=str(error))


def _estimate(preparation: Preparation, todo: Sequence[str]) -> int:
    """Bytes that the items will take, from a few of them converted into a temporary folder."""
    if not todo:
        return 0
    with tempfile.TemporaryDirectory(dir=_existing(preparation.out), prefix=".estimate") as folder:
        sizes = []
        for item in evenly_spaced(todo, min(_PROBES, len(todo))):
            try:
                sizes.append(preparation.convert(item, Path(folder)).written)
            except DataError:
                continue  # the run itself will name it; an estimate needs only some whole ones
    return round(sum(sizes) / len(sizes) * len(todo)) if sizes else 0


def report_broken(out: Path, broken: Mapping[str, str], total: int, max_broken: float) -> None:
    """Write `out/broken.txt`, or remove it if all is whole; raises DataError for more than `max_broken`."""
    report = out / "broken.txt"
    if not broken:
        report.unlink(missing_ok=True)
        return
    write_atomically(report, "".join(f"{name}\t{reason}\n" for name, reason in sorted(broken.items())))
    if len(broken) > max_broken * total:
        first = "\n".join(f"  {name}: {reason}" for name, reason in sorted(broken.items())[:10])
        raise DataError(
            f"{len(broken):,} of {total:,} images are missing or broken, more than max_broken={max_broken:g} "
            f"allows; all are in {report}, the first are\n{first}\nWhat was converted is kept: run again."
        )


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
