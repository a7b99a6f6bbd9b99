"""Tables: our results beside the published ones, each row saying which of the two it is and under which protocol."""

from collections.abc import Sequence
from dataclasses import dataclass

from marigold.evaluation.published import PUBLISHED
from marigold.evaluation.result import Group, Result

MEASURED, PUBLISHED_MARK = "measured here", "*published*"


@dataclass(frozen=True)
class Entry:
    """One row of a paper-style table: data set -> (AbsRel, delta1) in percent.

    `notes` says what keeps a measured row from being compared: a part of the images, failures, another list.
    """

    method: str
    setting: str
    protocol: str
    source: str
    values: dict[str, tuple[float, float]]
    notes: tuple[str, ...] = ()


def published_entries() -> list[Entry]:
    """The published rows."""
    return [Entry(row.method, row.setting, row.protocol, PUBLISHED_MARK, row.values) for row in PUBLISHED]


def measured_entry(result: Result) -> Entry:
    """The row of one result."""
    percent = (100 * result.metrics["abs_rel"].mean, 100 * result.metrics["delta1"].mean)
    values = {result.facts.dataset: percent}
    return Entry(result.method, result.setting, result.protocol, MEASURED, values, stamps(result))


def stamps(result: Result) -> tuple[str, ...]:
    """What a reader must know before comparing these numbers with others."""
    found = []
    if result.facts.limit is not None:
        found.append(f"only {result.facts.limit} images of the set")
    if not result.complete:
        found.append(f"incomplete: {result.count} of {result.expected} images")
    if result.facts.split.official is False:
        found.append(f"unofficial split ({result.facts.split.count} lines)")
    return tuple(found)


def single_table(result: Result) -> str:
    """Markdown: this result above the published rows of its data set, those of the same protocol first."""
    dataset = result.facts.dataset
    others = [entry for entry in published_entries() if dataset in entry.values]
    others.sort(key=lambda entry: entry.protocol != result.protocol)
    header = ("method", "steps x ensemble", "protocol", "source", "AbsRel %", "delta1 %", "notes")
    lines = [
        (
            entry.method,
            entry.setting,
            entry.protocol,
            entry.source,
            *(f"{value:.{2 if entry.source == MEASURED else 1}f}" for value in entry.values[dataset]),
            "; ".join(entry.notes),
        )
        for entry in [measured_entry(result), *others]
    ]
    return markdown(header, lines)


def metrics_table(result: Result) -> str:
    """Markdown: every metric's mean, deviation over images, and over seeds when there are several; groups too."""
    several = len(result.seeds) > 1
    parts = {"all": Group(result.count, result.metrics), **result.groups}
    header = ("metric", "images", "mean", "std over images", *(["std over seeds"] if several else []))
    lines = [
        (name, f"{label} ({part.count})", f"{score.mean:.5f}", f"{score.std_over_images:.5f}")
        + ((f"{score.std_over_seeds:.5f}",) if several else ())
        for label, part in parts.items()
        for name, score in part.metrics.items()
    ]
    return markdown(header, lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    widths = [max(len(line[k]) for line in [header, *lines]) for k in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([row(header), rule, *(row(line) for line in lines)])
