"""Converting the items of a data set, in any number of processes: resume, progress, broken items, lists."""

import multiprocessing
import tempfile
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from marigold.data.errors import DataError
from marigold.data.preparation.journal import Converted, continued, load
from marigold.data.preparation.lists import (
    PlannedList,
    PreparationSummary,
    check_space,
    existing,
    report_broken,
    write_list,
)
from marigold.data.splits import evenly_spaced
from marigold.files import csv_text, remove_partial_files, write_atomically

T = TypeVar("T")
Convert = Callable[[str, Path], Converted]
"""convert(item, out) writes the item's files below `out`; raises DataError for a broken item. It is pickled."""

_PROBES = 4  # images converted for the estimate of the disk space


def run(
    convert: Convert,
    lists: Sequence[PlannedList],
    *,
    out: Path,
    settings: Mapping[str, str | int],
    workers: int,
    dry_run: bool,
    max_broken: float,
    why_dropped: Callable[[str, Mapping[str, int | float]], str] = lambda item, facts: "",
) -> PreparationSummary:
    """Convert what is not yet converted, in `workers` processes, then write the lists.

    settings: those that the converted files depend on. why_dropped: from an item and its facts, the reason why it is
    not listed, or "". A broken item is named in `out/broken.txt`, counted and left out. Raises DataError if more than
    the share `max_broken` of the items is broken or the disk is too small, OSError if writing fails; what was
    converted before stays, and the next run resumes there.
    """
    if workers < 1 or not 0 <= max_broken <= 1:
        raise ValueError(f"expected workers >= 1 and 0 <= max_broken <= 1, got {workers} and {max_broken}")
    items = list(dict.fromkeys(item for planned in lists for item in planned.lines))
    known = load(out, settings)
    done = {item: known[item] for item in items if item in known}
    already, todo = len(done), [item for item in items if item not in done]
    # A few images are converted sooner than estimated.
    needed = _estimate(convert, out, todo) if dry_run or len(todo) > 16 * _PROBES else 0
    summary = PreparationSummary(out, dry_run, len(items), already, needed=needed)
    if dry_run:
        return summary
    check_space(out, needed)
    broken: dict[str, str] = {}
    if todo:
        remove_partial_files(out)
    with (
        continued(out, settings, known) as add,
        tqdm(total=len(items), initial=already, unit="image", desc=out.name) as bar,
        # Closed after an error too: no worker may still write when the next run looks at the folder.
        closing(in_processes(partial(_attempt, convert, out), todo, workers)) as outcomes,
    ):
        for item, outcome in zip(todo, outcomes, strict=True):
            if isinstance(outcome, Converted):
                add(item, outcome)
                done[item] = outcome
            else:
                broken[item] = outcome
            bar.update()
    report_broken(out, broken, len(items), max_broken)
    results = []
    for planned in lists:
        made = {item: done[item].facts for item in planned.lines if item in done}
        reasons = dict.fromkeys(broken, "broken") | {item: why_dropped(item, facts) for item, facts in made.items()}
        if planned.facts:  # of dropped items too: whoever changes the filter wants to see what it drops
            rows = [(planned.lines[item], not reasons[item], *facts.values()) for item, facts in made.items()]
            head = ["line", "kept", *next(iter(made.values()), {})]
            write_atomically(out / planned.facts, csv_text([head, *rows]))
        results.append(write_list(out, planned, reasons))
    written = sum(sum(done[item].files.values()) for item in todo if item in done)
    return replace(summary, written=written, broken=broken, lists=results)


def _attempt(convert: Convert, out: Path, item: str) -> Converted | str:
    """The converted item, or why it is broken."""
    try:
        return convert(item, out)
    except DataError as error:
        return str(error)


def _estimate(convert: Convert, out: Path, todo: Sequence[str]) -> int:
    """Bytes that the items will take, from a few of them converted into a temporary folder."""
    probes = evenly_spaced(todo, min(_PROBES, len(todo))) if todo else []
    with tempfile.TemporaryDirectory(dir=existing(out), prefix=".estimate") as folder:
        made = [_attempt(convert, Path(folder), item) for item in probes]
    sizes = [sum(one.files.values()) for one in made if isinstance(one, Converted)]
    return round(sum(sizes) / len(sizes) * len(todo)) if sizes else 0


def in_processes(
    work: Callable[[Any], T], items: Iterable[Any], workers: int, chunk: int = 1
) -> Generator[T, None, None]:
    """`work` of every item, in order; a worker that dies ends it with BrokenProcessPool instead of hanging.

    chunk: the number of items that are sent to a worker with one copy of `work`.
    """
    if workers == 1:
        yield from map(work, items)
        return
    # Spawned, not forked: a fork of a process with threads (torch, HDF5) can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(work, items, chunksize=chunk)
