"""What every preparation leaves: split lists, `broken.txt` and a summary."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from marigold.data.errors import DataError
from marigold.data.splits import SplitInfo, describe_split
from marigold.files import write_atomically

_VERDICTS = {True: "official split", False: "NOT the official split", None: "no official split to compare with"}


@dataclass(frozen=True)
class PlannedList:
    """A split list to write.

    file: its name. lines: item -> line, in order. official: the known list that it should be, if any. facts: name of
    the csv with the facts of its items, or "".
    """

    file: str
    lines: Mapping[str, str]
    official: str | None
    facts: str = ""


@dataclass(frozen=True)
class ListResult:
    """A split list that was written, and the number of images dropped from it, by reason."""

    split: SplitInfo
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class PreparationSummary:
    """What a run did, or with `dry_run` would do. Sizes in bytes; `needed` is an estimate.

    note: what users should know about how the data was made.
    """

    out: Path
    dry_run: bool
    seen: int
    already: int = 0
    written: int = 0
    needed: int = 0
    broken: Mapping[str, str] = field(default_factory=dict)
    lists: Sequence[ListResult] = ()
    note: str = ""

    def text(self) -> str:
        """The summary for the command line, several lines."""
        note = [f"  {self.note}"] if self.note else []
        if self.dry_run:
            broken = f" {len(self.broken):,} are missing or broken." if self.broken else ""
            disk = f"the others need about {gib(self.needed)}, {gib(free_space(self.out))} are free"
            seen = f"dry run: {self.seen:,} images, {self.already:,} of them already in {self.out}"
            return "\n".join([f"{seen}; {disk}.{broken} Nothing was written there.", *note])
        already = f"{self.already:,} were already there"
        lines = [f"{self.out}: {self.seen:,} images seen, {already}, {gib(self.written)} written", *note]
        for result in self.lists:
            dropped = ", ".join(f"{count:,} {reason}" for reason, count in result.dropped.items()) or "none"
            lines.append(f"  {result.split.path}: {result.split.count:,} kept; dropped: {dropped}")
            lines.append(f"    sha256 {result.split.sha256}: {_VERDICTS[result.split.official]}")
        if self.broken:
            lines.append(f"  {len(self.broken):,} broken, listed with the reasons in {self.out / 'broken.txt'}")
        return "\n".join(lines)


def write_list(out: Path, planned: PlannedList, reasons: Mapping[str, str]) -> ListResult:
    """Write a list, whole or not at all, without the items that have a reason; compare it with the official one."""
    path = out / planned.file
    kept = [line for item, line in planned.lines.items() if not reasons.get(item)]
    dropped = Counter(reason for item in planned.lines if (reason := reasons.get(item)))
    if not kept:  # readers refuse an empty list, but do not know why it is empty
        raise DataError(f"{path}: no image is left to list; dropped: {dict(dropped)}")
    write_atomically(path, "".join(f"{line}\n" for line in kept))
    split = describe_split(path, [tuple(line.split()) for line in kept], planned.official)
    return ListResult(split, dropped)


def report_broken(out: Path, broken: Mapping[str, str], total: int, max_broken: float, dry_run: bool = False) -> None:
    """Write `out/broken.txt`, or remove it if all is whole; raises DataError for more than the share `max_broken`."""
    report, lines = out / "broken.txt", [f"{name}\t{reason}\n" for name, reason in sorted(broken.items())]
    if lines and not dry_run:
        write_atomically(report, "".join(lines))
    elif not dry_run:  # an old report would still name files that have been repaired
        report.unlink(missing_ok=True)
    if len(broken) > max_broken * total:  # after the report, which tells what to repair
        raise DataError(
            f"{len(broken):,} of {total:,} images are missing or broken, more than max_broken={max_broken:g} allows; "
            f"{report} lists them all, first\n{''.join(lines[:10])}What was converted is kept; run again to resume."
        )


def check_space(out: Path, needed: int) -> None:
    """Raises DataError if fewer than `needed` bytes are free where `out` is or will be."""
    if needed > (free := free_space(out)):
        raise DataError(f"{out}: about {gib(needed)} are needed and {gib(free)} are free")


def free_space(out: Path) -> int:
    """Bytes free on the disk that `out` is or will be on."""
    return shutil.disk_usage(existing(out)).free


def existing(path: Path) -> Path:
    """The folder nearest to `path`, it or above it, that is there."""
    # A folder yet to be created will be on its parent's disk.
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
