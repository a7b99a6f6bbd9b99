"""Lists of files that are not converted: archives are read where they are, linked into the data folder."""

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from marigold.data.errors import DataError
from marigold.data.preparation.layouts import lines_of, plan_lists
from marigold.data.preparation.lists import PlannedList, PreparationSummary, report_broken, write_list
from marigold.data.splits import VKITTI_SPLITS, vkitti_lines
from marigold.data.storage import ARCHIVE_SUFFIXES, open_storage
from marigold.data.training_sets import open_vkitti, vkitti_places


def prepare_archive(dataset: str, archive: str, out: str, dry_run: bool, split: str | None) -> PreparationSummary:
    """Link a published evaluation archive into `out` and list it.

    Raises DataError if a listed file is not in the archive, or if it has none of the set's files.
    """
    source = Path(archive)
    names = open_storage(source).names()
    if source.is_dir() or source.suffix not in ARCHIVE_SUFFIXES:
        suffixes = " or *".join(ARCHIVE_SUFFIXES)
        raise DataError(f"{archive}: expected an archive named *{suffixes}; an unpacked one is given as raw=DIR")
    lists = plan_lists(dataset, lines_of(dataset, set(names)), split)
    if not lists:
        raise DataError(f"{archive}: none of its {len(names):,} members is named as in {dataset}")
    return list_files(lists, names, partial(link, [source], out), archive, Path(out), dry_run, max_broken=0)


def prepare_vkitti(raw: str, out: str, dry_run: bool, max_broken: float) -> PreparationSummary:
    """List Virtual KITTI 2 by its rule, with every listed file in the tars (or folders rgb/ and depth/) of `raw`."""
    lines = {split: {line.split()[0]: line for line in vkitti_lines(split)} for split in VKITTI_SPLITS}
    lists = [PlannedList(f"filename_list_{split}.txt", lines[split], f"vkitti/{split}") for split in lines]
    names, places = open_vkitti(raw).names(), vkitti_places(raw).values()
    return list_files(lists, names, partial(link, places, out), raw, Path(out), dry_run, max_broken)


def list_files(
    lists: Sequence[PlannedList],
    names: Collection[str],
    provide: Callable[[], int],
    source: str,
    out: Path,
    dry_run: bool,
    max_broken: float,
) -> PreparationSummary:
    """Write the lists of files that need no conversion: `source` holds `names`, and `provide` links them into `out`.

    provide: returns the bytes that it wrote. Raises DataError, in a dry run too, if more than the share `max_broken`
    of the listed images is not there.
    """
    there = set(names)
    lines = {item: line for planned in lists for item, line in planned.lines.items()}
    absent = {item: [name for name in files_of(line) if name not in there] for item, line in lines.items()}
    missing = {item: f"not in {source}: {' and '.join(files)}" for item, files in absent.items() if files}
    summary = PreparationSummary(out, dry_run, len(lines), broken=missing, note=f"read in place: {source}")
    report_broken(out, missing, len(lines), max_broken, dry_run)
    if dry_run:
        return summary
    written = provide()
    results = [write_list(out, planned, dict.fromkeys(missing, "missing")) for planned in lists]
    return replace(summary, written=written, lists=results)


def files_of(line: str) -> list[str]:
    """The columns of a list's line that name files."""
    # Columns without a slash do not: None for no ground truth, and KITTI's focal length.
    return [column for column in line.split() if "/" in column]


def link(sources: Iterable[Path], out: str) -> int:
    """Make symbolic links in `out` to what is read in place: some archives have 15 GB, so they are never copied.

    Raises DataError if something else is there. Returns 0, the bytes written.
    """
    for source in sources:
        target = Path(out, source.name)
        if target.exists():
            if not target.samefile(source):
                raise DataError(f"{target}: exists and is not {source}; choose another out=DIR")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a link that leads nowhere
        os.symlink(source.resolve(), target)
    return 0
