"""Virtual KITTI 2: the publisher's tars stay as they are; here they are checked, linked and listed."""

from pathlib import Path

from marigold.data.preparation.images import link_archive
from marigold.data.preparation.runner import PreparationSummary, free_space, report_broken, write_list
from marigold.data.splits import VKITTI_SPLITS, vkitti_lines
from marigold.data.training_sets import VKITTI_ARCHIVES, open_vkitti


def prepare_vkitti(
    raw: str, out: str, dry_run: bool, max_broken: float, last_frames: dict[str, int] | None
) -> PreparationSummary:
    """Write the lists of the rule, with every listed file in the tars (or folders rgb/ and depth/) of `raw`.

    last_frames: the scenes' last frames where they are not the published ones, for a set of the same layout.
    """
    lists = {split: vkitti_lines(split, last_frames) for split in VKITTI_SPLITS}
    lists = {split: lines for split, lines in lists.items() if lines}
    there = set(open_vkitti(raw, cache_index=not dry_run).names())
    listed = [line for lines in lists.values() for line in lines]
    missing = {
        line.split()[0]: f"missing: {' and '.join(absent)}"
        for line in listed
        if (absent := [name for name in line.split() if name not in there])
    }
    target = Path(out)
    if dry_run:
        return PreparationSummary(target, True, len(listed), 0, 0, 0, free_space(target), missing)
    target.mkdir(parents=True, exist_ok=True)
    report_broken(target, missing, len(listed), max_broken)
    for part, archive in VKITTI_ARCHIVES.items():
        source = Path(raw, archive) if Path(raw, archive).is_file() else Path(raw, part)
        link_archive(source, target / source.name)  # or a folder, which the reader opens as a root too
    results = []
    for split, lines in lists.items():
        kept = [line for line in lines if line.split()[0] not in missing]
        dropped = {"missing": len(lines) - len(kept)} if len(kept) < len(lines) else {}
        official = f"vkitti/{split}" if last_frames is None else None
        results.append(write_list(target / f"filename_list_{split}.txt", kept, official, dropped))
    return PreparationSummary(target, False, len(listed), 0, 0, 0, free_space(target), missing, results)
