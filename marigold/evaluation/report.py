"""Tables: our results beside the published ones, each row saying which of the two it is and under which protocol."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marigold.evaluation.published import PUBLISHED

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


def measured_entry(content: Mapping[str, Any]) -> Entry:
    """The row of one results.json."""
    metrics, sampler = content["metrics"], content["sampler"]
    setting = f"{sampler['steps']} x {sampler['ensemble_size']}" if sampler else ""
    values = {content["dataset"]: (100 * metrics["abs_rel"]["mean"], 100 * metrics["delta1"]["mean"])}
    return Entry(content["predictor"]["name"], setting, content["protocol"]["name"], MEASURED, values, stamps(content))


def stamps(content: Mapping[str, Any]) -> tuple[str, ...]:
    """What a reader must know before comparing these numbers with others."""
    found = []
    if content["limit"] is not None:
        found.append(f"only {content['limit']} images of the set")
    if not content["complete"]:
        found.append(f"incomplete: {content['count']} of {content['expected']} images")
    if content["split"]["official"] is False:
        found.append(f"unofficial split ({content['split']['count']} lines)")
    return tuple(found)


def single_table(content: Mapping[str, Any]) -> str:
    """Markdown: this result above the published rows of its data set, those of the same protocol first."""
    dataset, protocol = content["dataset"], content["protocol"]["name"]
    others = [entry for entry in published_entries() if dataset in entry.values]
    others.sort(key=lambda entry: entry.protocol != protocol)
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
        for entry in [measured_entry(content), *others]
    ]
    return markdown(header, lines)


def metrics_table(content: Mapping[str, Any]) -> str:
    """Markdown: every metric's mean, deviation over images, and over seeds when there are several; groups too."""
    several = len(content["seeds"]) > 1
    parts = {"all": content["metrics"], **{k: part["metrics"] for k, part in content["groups"].items()}}
    header = ("metric", "images", "mean", "std over images", *(["std over seeds"] if several else []))
    counts = {"all": content["count"], **{k: part["count"] for k, part in content["groups"].items()}}
    lines = [
        (name, f"{label} ({counts[label]})", f"{value['mean']:.5f}", f"{value['std_over_images']:.5f}")
        + ((f"{value['std_over_seeds']:.5f}",) if several else ())
        for label, metrics in parts.items()
        for name, value in metrics.items()
    ]
    return markdown(header, lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    widths = [max(len(line[k]) for line in [header, *lines]) for k in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([row(header), rule, *(row(line) for line in lines)])
