"""The run of every preparation that writes images: resume, workers, progress, broken files, lists."""

import csv
import io
import multiprocessing
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from marigold.data.errors import DataError
from marigold.data.preparation.journal import Outcome, continued, load
from marigold.data.preparation.lists import (
    ListResult,
    PlannedList,
    PreparationSummary,
    existing,
    free_space,
    gib,
    report_broken,
    write_list,
)
from marigold.data.splits import evenly_spaced
from marigold.files import remove_partial_files, write_atomically

T = TypeVar("T")

_PROBES = 4  # images converted for the estimate of the disk need


class Preparation(ABC):
    """What a data set adds to the run; it is pickled once to each worker.

    settings: those that the converted files depend on, as JSON values.
    """

    out: Path
    lists: Sequence[PlannedList]
    settings: Mapping[str, object]

    @abstractmethod
    def convert(self, item: str, out: Path) -> Outcome:
        """Write the item's files below `out`; raises DataError for a broken one, OSError if writing fails."""

    def attempt(self, item: str) -> Outcome:
        """`convert` into place; a broken item is an outcome too."""
        try:
            return self.convert(item, self.out)
        except DataError as error:
            return Outcome(item, broken=str(error))

    def why_dropped(self, item: str, facts: Mapping[str, int | float]) -> str:
        """Why a converted item is not listed, or "" if it is."""
        return ""


def run(preparation: Preparation, workers: int, dry_run: bool, max_broken: float) -> PreparationSummary:
    """Convert what is not yet converted, in `workers` processes, then write the lists.

    A broken item is named in `out/broken.txt`, counted and left out. Raises DataError if more than the share
    `max_broken` of the items is broken or the disk is too small, OSError if writing fails; what was converted before
    stays, and the next run resumes there.
    """
    if workers < 1 or not 0 <= max_broken <= 1:
        raise ValueError(f"expected workers >= 1 and 0 <= max_broken <= 1, got {workers} and {max_broken}")
    out, settings = preparation.out, preparation.settings
    items = list(dict.fromkeys(item for planned in preparation.lists for item in planned.lines))
    known = load(out, settings)
    done = {item: known[item] for item in items if item in known}
    already, todo = len(done), [item for item in items if item not in done]
    # A few images are converted sooner than estimated.
    needed = _estimate(preparation, todo) if dry_run or len(todo) > 16 * _PROBES else 0
    if dry_run:
        return PreparationSummary(out, True, len(items), already, 0, needed)
    if needed > (free := free_space(out)):
        raise DataError(f"{out}: about {gib(needed)} are needed and {gib(free)} are free")

    broken: dict[str, str] = {}
    if todo:
        remove_partial_files(out)
    with (
        continued(out, settings, known) as add,
        tqdm(total=len(items), initial=already, unit="image", desc=out.name) as bar,
        # Closed after an error too: no worker may still write when the next run looks at the folder.
        closing(in_processes(preparation.attempt, todo, workers)) as outcomes,
    ):
        for outcome in outcomes:
            if outcome.broken:
                broken[outcome.name] = outcome.broken
            else:
                add(outcome)
                done[outcome.name] = outcome
            bar.update()
    report_broken(out, broken, len(items), max_broken)
    lists = [_write(preparation, planned, done) for planned in preparation.lists]
    written = sum(done[item].written for item in todo if item in done)
    return PreparationSummary(out, False, len(items), already, written, needed, broken, lists)


def in_processes(work: Callable[[Any], T], items: Iterable[Any], workers: int) -> Generator[T, None, None]:
    """`work` of every item, in order; a worker that dies ends it with BrokenProcessPool instead of hanging."""
    if workers == 1:
        yield from map(work, items)
        return
    # Spawned, not forked: a fork of a process with threads (torch, HDF5) can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(work,)) as pool:
        yield from pool.map(_work, items)


_own: list[Callable[[Any], Any]] = []  # a worker's copy, unpickled once and not once per item


def _start(work: Callable[[Any], Any]) -> None:
    _own[:] = [work]


def _work(item: Any) -> Any:
    return _own[0](item)


def _estimate(preparation: Preparation, todo: Sequence[str]) -> int:
    """Bytes that the items will take, from a few of them converted into a temporary folder."""
    if not todo:
        return 0
    with tempfile.TemporaryDirectory(dir=existing(preparation.out), prefix=".estimate") as folder:
        sizes = []
        for item in evenly_spaced(todo, min(_PROBES, len(todo))):
            try:
                sizes.append(preparation.convert(item, Path(folder)).written)
            except DataError:
                continue  # the run itself will name it; an estimate needs only some whole ones
    return round(sum(sizes) / len(sizes) * len(todo)) if sizes else 0


def _write(preparation: Preparation, planned: PlannedList, done: Mapping[str, Outcome]) -> ListResult:
    """Write a list, and the csv of its facts if it has one."""
    reasons = {
        item: preparation.why_dropped(item, done[item].facts) if item in done else "broken" for item in planned.lines
    }
    if planned.facts:  # of the dropped ones too: who changes the filter wants to see what it drops
        rows = [(line, not reasons[i], *done[i].facts.values()) for i, line in planned.lines.items() if i in done]
        head = next((["kept", *done[item].facts] for item in planned.lines if item in done), [])
        with io.StringIO() as file:
            csv.writer(file, lineterminator="\n").writerows([["line", *head], *rows])
            write_atomically(preparation.out / planned.facts, file.getvalue())
    return write_list(preparation.out, planned, reasons)
