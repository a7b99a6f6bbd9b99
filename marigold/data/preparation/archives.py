"""The split lists of the published evaluation archives, from the names of their members.

The archives of prs-eth/Marigold (kitti_eigen_split_test.tar, nyu_labeled_extracted.tar, ...) hold just the listed
files in the readers' layout, so they are read in place, through a link, and their names are the list.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from marigold.data.errors import DataError
from marigold.data.preparation.images import link_archive
from marigold.data.preparation.runner import PreparationSummary, free_space, write_list
from marigold.data.preparation.taken_over import PlannedList
from marigold.data.splits import KNOWN_SPLITS, canonical_sha256
from marigold.data.storage import ARCHIVE_SUFFIXES, open_storage

# Focal length in px of the left colour camera on each recording day (KITTI's calibration files).
KITTI_FOCAL = {
    "2011_09_26": "721.5377",
    "2011_09_28": "707.0493",
    "2011_09_29": "718.3351",
    "2011_09_30": "707.0912",
    "2011_10_03": "718.856",
}
KITTI_SPLITS = ("eigen_test", "eigen_val_800")  # their archives and lists look alike


def nyu_lists(names: Iterable[str]) -> list[PlannedList]:
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for name in sorted(names, key=lambda name: name.rpartition("_")[2]):  # by id, as published
        if match := re.fullmatch(r"(train|test)/[^/]+/rgb_\d{4}\.png", name):
            columns = [name, name.replace("/rgb_", "/depth_"), name.replace("/rgb_", "/filled_")]
            lines[match[1]].append(" ".join(columns))
    return [PlannedList(f"filename_list_{split}.txt", found, f"nyu/{split}") for split, found in lines.items()]


def kitti_lists(names: Iterable[str], split: str) -> list[PlannedList]:
    every = set(names)
    lines = []
    for name in sorted(every):
        match = re.fullmatch(r"(\d{4}_\d\d_\d\d)/(\1_drive_\d{4}_sync)/image_02/data/(\d{10}\.png)", name)
        if not match:
            continue
        if match[1] not in KITTI_FOCAL:
            raise DataError(f"{name}: no KITTI recording of that day")
        depth = f"{match[2]}/proj_depth/groundtruth/image_02/{match[3]}"
        lines.append(f"{name} {depth if depth in every else None} {KITTI_FOCAL[match[1]]}")
    return [kitti_list(lines, split)]


def kitti_list(lines: Sequence[str], split: str) -> PlannedList:
    """The list under the name that was stated; raises DataError if it is another known list of KITTI's."""
    if split not in KITTI_SPLITS:
        raise ValueError(f"prepare.split: expected one of {', '.join(KITTI_SPLITS)}, got {split!r}")
    sha256 = canonical_sha256(lines)
    found = next((name for name, known in KNOWN_SPLITS.items() if known.sha256 == sha256), f"kitti/{split}")
    if found != f"kitti/{split}":
        raise DataError(f"these are the {len(lines)} lines of {found}, not of kitti/{split}; state prepare.split=NAME")
    return PlannedList(f"{split}.txt", lines, f"kitti/{split}")


def eth3d_lists(names: Iterable[str]) -> list[PlannedList]:
    lines = []
    for name in sorted(names, key=lambda name: name.rpartition("/")[2]):  # over all scenes, as published
        if match := re.fullmatch(r"rgb/([^/]+)/images/dslr_images/(DSC_\d+\.JPG)", name):
            lines.append(f"{name} {eth3d_depth_name(match[1], match[2])}")
    return [PlannedList("filename_list.txt", lines, "eth3d/all")]


def eth3d_depth_name(scene: str, file: str) -> str:
    return f"depth/{scene}_dslr_depth/{scene}/ground_truth_depth/dslr_images/{file}"


def scannet_lists(names: Iterable[str]) -> list[PlannedList]:
    lines = []
    for name in sorted(names):
        if match := re.fullmatch(r"(scene\d{4}_\d\d)/color/(\d{6})\.jpg", name):
            lines.append(f"{name} {match[1]}/depth/{match[2]}.png")
    return [PlannedList("filename_list_val_800.txt", lines, "scannet/val_800")]


def diode_lists(names: Iterable[str]) -> list[PlannedList]:
    """From the names, never from the devkit's diode_meta.json, which knows only 612 of the 771 images."""
    stems = [name[:-4] for name in sorted(names) if re.fullmatch(r"(indoors|outdoor)/.*\.png", name)]
    lines = [f"{stem}.png {stem}_depth.npy {stem}_depth_mask.npy" for stem in stems]
    parts = {
        part: [line for line in lines if line.startswith(folder)]
        for part, folder in (("indoor", "indoors/"), ("outdoor", "outdoor/"))
    }
    return [
        PlannedList("filename_list_all.txt", lines, "diode/val"),
        *(PlannedList(f"filename_list_{part}.txt", found, f"diode/val_{part}") for part, found in parts.items()),
    ]


def list_archive(
    archive: str, out: str, rule: Callable[[Iterable[str]], Sequence[PlannedList]], dry_run: bool
) -> PreparationSummary:
    """Link an archive into `out` and write its lists; unpacked, as a folder, it is `out` itself.

    Raises DataError if a listed file is not in it, or if it has none of the set's files.
    """
    source, target = Path(archive), Path(out)
    names = open_storage(source, cache_index=not dry_run).names()
    if source.is_dir():
        if not (target.exists() and target.samefile(source)):
            raise DataError(f"{archive}: a folder is read where it is: give out={archive} too")
    elif source.suffix not in ARCHIVE_SUFFIXES:
        raise DataError(f"{archive}: readers look for archives named *{' or *'.join(ARCHIVE_SUFFIXES)}; rename it")
    every = set(names)
    lists = [planned for planned in rule(names) if planned.lines]
    if not lists:
        raise DataError(f"{archive}: none of its {len(every):,} members is named as in this data set")
    listed = [line for planned in lists for line in planned.lines]
    missing = sorted({column for line in listed for column in line.split() if "/" in column} - every)
    if missing:
        raise DataError(f"{archive}: {len(missing):,} listed file(s) are not in it: {', '.join(missing[:10])}")
    images = len({line.split()[0] for line in listed})
    summary = PreparationSummary(
        target, dry_run, images, 0, 0, 0, free_space(target), note=f"read in place: {archive}"
    )
    if dry_run:
        return summary
    if not source.is_dir():
        link_archive(source, target / source.name)
    results = [write_list(target / planned.file, planned.lines, planned.official, {}) for planned in lists]
    return replace(summary, lists=results)
