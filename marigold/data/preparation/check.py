"""Does every listed sample open, with the right size and type and a plausible depth?"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from marigold.data.base import DepthDataset
from marigold.data.errors import DataError
from marigold.data.preparation.runner import in_processes
from marigold.data.splits import SplitInfo
from marigold.files import write_atomically

_SHOWN = 10  # failures of each reason in the text; the report has them all


@dataclass(frozen=True)
class CheckResult:
    """The failures by reason, as full messages."""

    split: SplitInfo
    checked: int
    failures: Mapping[str, Sequence[str]]

    def text(self) -> str:
        """A readable summary: the first ten failures for each reason."""
        lines = [f"{self.split.path}: {self.checked:,} samples checked"]
        for reason, found in sorted(self.failures.items()):
            lines.append(f"  {len(found):,} x {reason}")
            lines += [f"    {message}" for message in found[:_SHOWN]]
        return "\n".join(lines if self.failures else [*lines, "  all is well"])


def check(dataset: DepthDataset, *, workers: int) -> CheckResult:
    """Read every sample of a list."""
    failures: dict[str, list[str]] = {}
    with tqdm(total=len(dataset), unit="image", desc=f"check {dataset.split.name}") as bar:
        for found in in_processes(partial(offence, dataset), range(len(dataset)), workers):
            if found is not None:
                failures.setdefault(found[0], []).append(found[1])
            bar.update()
    return CheckResult(dataset.split, len(dataset), failures)


def write_report(results: Sequence[CheckResult], report: Path) -> bool:
    """Write every offender to `report`, or remove an old one if there are none; returns whether there are any."""
    found = [item for result in results for item in result.failures.items()]
    lines = sorted(f"{reason}\t{message}\n" for reason, messages in found for message in messages)
    if lines:
        write_atomically(report, "".join(lines))
    else:
        report.unlink(missing_ok=True)
    return bool(lines)


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
    if nearest == farthest:  # no range to normalise, and no sensor gives one
        return "constant depth", f"{where}: all {depth.numel():,} valid pixels are at {nearest:g} m"
    # Of DIODE alone, whose mask file decides what is valid; elsewhere the range itself is the mask.
    if nearest < dataset.min_depth or farthest > dataset.max_depth:
        plausible = f"{dataset.min_depth:g} to {dataset.max_depth:g} m"
        return "implausible depth", f"{where}: {nearest:g} to {farthest:g} m, expected {plausible}"
    return None


def _reason(error: BaseException) -> str:
    """The innermost DataError without names and numbers, so that like meets like."""
    while isinstance(error.__cause__, DataError):
        error = error.__cause__
    text = re.sub(r"^\S*: ", "", str(error))
    return re.sub(r"\d[\d,.]*", "N", text)
