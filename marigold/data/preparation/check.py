"""Does every listed sample open, with the right size and type and a plausible depth?"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from marigold.data.base import DepthDataset
from marigold.data.errors import DataError
from marigold.data.preparation.runner import in_processes
from marigold.data.splits import SplitInfo
from marigold.files import write_atomically

_SHOWN = 10  # failures in the text; the report has them all


@dataclass(frozen=True)
class CheckResult:
    """How many samples of a list were checked, and a message for each that failed."""

    split: SplitInfo
    checked: int
    failures: Sequence[str]

    def text(self) -> str:
        """A readable summary: the number of failures and the first ten."""
        found = [f"{len(self.failures):,} failed:", *self.failures[:_SHOWN]] if self.failures else ["all is well"]
        return "\n  ".join([f"{self.split.path}: {self.checked:,} samples checked", *found])


def check(dataset: DepthDataset, *, workers: int) -> CheckResult:
    """Read every sample of a list."""
    # In chunks: a data set is several megabytes of lines.
    found = in_processes(partial(failure, dataset), range(len(dataset)), workers, chunk=64)
    with tqdm(found, total=len(dataset), unit="image", desc=f"check {dataset.split.name}") as bar:
        return CheckResult(dataset.split, len(dataset), [message for message in bar if message])


def write_report(results: Sequence[CheckResult], report: Path) -> bool:
    """Write every failure to `report`, or remove an old report if there are none; returns whether there are any."""
    lines = [f"{message}\n" for result in results for message in result.failures]
    if lines:
        write_atomically(report, "".join(lines))
    else:
        report.unlink(missing_ok=True)
    return bool(lines)


def failure(dataset: DepthDataset, index: int) -> str:
    """What is wrong with one sample, or ""."""
    try:
        sample = dataset[index]
    except DataError as error:
        return str(error)
    where = f"{dataset.name}, sample {sample.name!r}"
    depth = sample.depth[sample.valid]
    if depth.numel() == 0:
        return f"{where}: no valid pixel"
    nearest, farthest = depth.min().item(), depth.max().item()
    if nearest == farthest:  # no range to normalise, and no sensor gives one
        return f"{where}: all {depth.numel():,} valid pixels are at {nearest:g} m"
    # Only DIODE's mask file can call such a depth valid; elsewhere the range itself is the mask.
    if nearest < dataset.min_depth or farthest > dataset.max_depth:
        plausible = f"{dataset.min_depth:g} to {dataset.max_depth:g} m"
        return f"{where}: {nearest:g} to {farthest:g} m, expected {plausible}"
    return ""
