"""Does every listed sample open, with the right size and type and a plausible depth?"""

import multiprocessing
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from marigold.data.base import DepthDataset
from marigold.data.errors import DataError
from marigold.data.files import write_atomically
from marigold.data.splits import SplitInfo

_SHOWN = 10  # offenders of each reason in the text; the report file has them all


@dataclass(frozen=True)
class CheckResult:
    """The offenders of each reason, as (sample, full message)."""

    split: SplitInfo
    checked: int
    offenders: Mapping[str, Sequence[tuple[str, str]]]
    report: Path

    @property
    def clean(self) -> bool:
        return not self.offenders

    def text(self) -> str:
        """The result for people: the first ten offenders of each reason."""
        official = {True: "official split", False: "NOT the official split", None: "no official split named"}
        lines = [f"{self.split.path}: {self.checked:,} samples checked ({official[self.split.official]})"]
        for reason, found in sorted(self.offenders.items()):
            lines.append(f"  {len(found):,} x {reason}")
            lines += [f"    {message}" for _, message in found[:_SHOWN]]
        lines.append(f"  all offenders are in {self.report}" if self.offenders else "  all is well")
        return "\n".join(lines)


def check(dataset: DepthDataset, *, workers: int, report: Path) -> CheckResult:
    """Read every sample; write the offenders to `report` (and remove an old one if there are none)."""
    offenders: dict[str, list[tuple[str, str]]] = {}
    with tqdm(total=len(dataset), unit="image", desc=f"check {dataset.name}") as bar:
        for name, found in zip(dataset.names, _all(dataset, workers), strict=True):
            if found is not None:
                offenders.setdefault(found[0], []).append((name, found[1]))
            bar.update()
    if offenders:
        rows = [f"{reason}\t{message}\n" for reason, found in sorted(offenders.items()) for _, message in found]
        write_atomically(report, "".join(rows))
    else:
        report.unlink(missing_ok=True)
    return CheckResult(dataset.split, len(dataset), offenders, report)


def offence(dataset: DepthDataset, index: int) -> tuple[str, str] | None:
    """What is wrong with one sample: (reason, message), or None."""
    try:
        sample = dataset[index]
    except DataError as error:
        return _reason(error), str(error)
    where = f"{dataset.name}, sample {sample.name!r}"
    depth = sample.depth[sample.valid]
    if depth.numel() == 0:
        return "no valid pixel", f"{where}: no valid pixel"
    nearest, farthest = depth.min().item(), depth.max().item()
    if nearest == farthest:
        return "constant depth", f"{where}: all {depth.numel():,} valid pixels are at {nearest:g} m"
    if nearest < dataset.min_depth or farthest > dataset.max_depth:
        plausible = f"{dataset.min_depth:g} to {dataset.max_depth:g} m"
        return "implausible depth", f"{where}: {nearest:g} to {farthest:g} m, expected {plausible}"
    return None


def _all(dataset: DepthDataset, workers: int) -> Iterator[tuple[str, str] | None]:
    if workers == 1:
        yield from (offence(dataset, index) for index in range(len(dataset)))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(dataset,)) as pool:
        yield from pool.map(_work, range(len(dataset)), chunksize=8)


_own: list[DepthDataset] = []


def _start_worker(dataset: DepthDataset) -> None:
    _own[:] = [dataset]


def _work(index: int) -> tuple[str, str] | None:
    return offence(_own[0], index)


def _reason(error: BaseException) -> str:
    """The innermost DataError without names and numbers, so that like meets like."""
    while isinstance(error.__cause__, DataError):
        error = error.__cause__
    text = re.sub(r"^\S*: ", "", str(error))
    return re.sub(r"\d[\d,.]*", "N", text)
