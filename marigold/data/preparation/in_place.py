"""Sets that are read where they are: archives are linked into the data folder and listed."""

import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from marigold.data.errors import DataError
from marigold.data.preparation.layouts import lines_of, plan_lists
from marigold.data.preparation.lists import PlannedList, PreparationSummary, report_broken, write_list
from marigold.data.splits import VKITTI_SPLITS, vkitti_lines
from marigold.data.storage import ARCHIVE_SUFFIXES, open_storage
from marigold.data.training_sets import open_vkitti, vkitti_places


def prepare_archive(dataset: str, archive: str, out: str, dry_run: bool, split: str | None) -> PreparationSummary:
    """Link a published evaluation archive into `out` and list it; unpacked, as a folder, it is `out` itself.

    Raises DataError if a listed file is not in it, or if it has none of the set's files.
    """
    source = Path(archive)
    names = open_storage(source, cache_index=not dry_run).names()  # a dry run leaves no index either
    if source.is_dir():
        if not (Path(out).exists() and Path(out).samefile(source)):
            raise DataError(f"{archive}: a folder is read where it is: give out={archive} too")
    elif source.suffix not in ARCHIVE_SUFFIXES:
        raise DataError(f"{archive}: readers look for archives named *{' or *'.join(ARCHIVE_SUFFIXES)}; rename it")
    lists = plan_lists(dataset, lines_of(dataset, set(names)), split)
    if not lists:
        raise DataError(f"{archive}: none of its {len(names):,} members is named as in {dataset}")
    return list_in_place([source], names, lists, Path(out), dry_run, max_broken=0)


def prepare_vkitti(
    raw: str, out: str, dry_run: bool, max_broken: float, last_frames: dict[str, int] | None
) -> PreparationSummary:
    """List Virtual KITTI 2 by its rule, with every listed file in the tars (or folders rgb/ and depth/) of `raw`.

    last_frames: the scenes' last frames where they are not the published ones, for a set of the same layout.
    """
    lists = []
    for split in VKITTI_SPLITS:
        lines = {line.split()[0]: line for line in vkitti_lines(split, last_frames)}
        lists += [PlannedList(f"filename_list_{split}.txt", lines, f"vkitti/{split}" if last_frames is None else None)]
    names = open_vkitti(raw, cache_index=not dry_run).names()
    lists = [planned for planned in lists if planned.lines]
    return list_in_place([*vkitti_places(raw).values()], names, lists, Path(out), dry_run, max_broken)


def list_in_place(
    places: Sequence[Path],
    names: Collection[str],
    lists: Sequence[PlannedList],
    out: Path,
    dry_run: bool,
    max_broken: float,
) -> PreparationSummary:
    """Write the lists of files that stay in `places`, archives or folders, which hold `names`; link these into `out`.

    Raises DataError, in a dry run too, if more than the share `max_broken` of the listed images is not there.
    """
    place, there = " and ".join(map(str, places)), set(names)
    lines = {item: line.split() for planned in lists for item, line in planned.lines.items()}
    # Columns without a slash are no files: None for no ground truth, and KITTI's focal length.
    absent = {item: [name for name in line if "/" in name and name not in there] for item, line in lines.items()}
    missing = {item: f"not in {place}: {' and '.join(files)}" for item, files in absent.items() if files}
    note = f"read in place: {place}"
    summary = PreparationSummary(out, dry_run, len(lines), broken=missing, note=note)
    report_broken(out, missing, len(lines), max_broken, dry_run)
    if dry_run:
        return summary
    for source in places:
        link_archive(source, out / source.name)
    results = [write_list(out, planned, dict.fromkeys(missing, "missing")) for planned in lists]
    return replace(summary, lists=results)


def link_archive(source: Path, target: Path) -> None:
    """Make `target` a symbolic link to an archive that is read in place: some have 15 GB, so never a copy.

    Raises DataError if something else is there.
    """
    if target.exists():
        if not target.samefile(source):
            raise DataError(f"{target}: exists and is not {source}; take another out=DIR")
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # a link that leads nowhere
    os.symlink(source.resolve(), target)
