"""Rows of tables: measured results beside published ones, marked as such, with their protocol."""

from collections.abc import Sequence
from dataclasses import replace

from marigold.evaluation.known_points import METHODS
from marigold.evaluation.published import PUBLISHED, Entry
from marigold.evaluation.result import Result
from marigold.evaluation.rows import Group

MEASURED = "measured here"
# Percentage points within which a metric is reproduced: it is published rounded to 0.1, and another GPU or precision
# moves the last digit.
TOLERANCE = {"AbsRel": 0.1, "delta1": 0.2}


def measured_entries(result: Result) -> list[Entry]:
    """The row of one result; with known points one row per method, with its error in metres."""
    dataset, notes, entries = result.facts.dataset, stamps(result), []
    for method, prefix in methods(result).items():

        def mean(metric: str, prefix: str = prefix) -> float:
            return result.metrics[prefix + metric].mean

        name = f"{result.method}: {method}" if method else result.method
        values = {dataset: (100 * mean("abs_rel"), 100 * mean("delta1"))}
        metres = [f"{metric.upper()} {mean(metric):.4f} m" for metric in ("mae", "rmse") if metric in result.metrics]
        beside = (f"{dataset}: {', '.join(metres)}",) if method and metres else ()
        official = (dataset,) if result.facts.split.official and not notes else ()
        entries.append(Entry(name, result.setting, result.protocol, MEASURED, values, notes, official, beside))
    return entries


def methods(result: Result) -> dict[str, str]:
    """Method for metric depth from known points -> prefix of its metrics; "" -> "" without points."""
    if "points" not in result.facts.protocol:
        return {"": ""}
    return {METHODS[0]: "", **{method: f"{method}." for method in METHODS[1:]}}


def stamps(result: Result) -> tuple[str, ...]:
    """Reasons why these numbers are not comparable with others."""
    found = []
    if result.facts.limit is not None:
        found.append(f"only {result.facts.limit} images of the set")
    if not result.complete:
        found.append(f"incomplete: {result.count} of {result.expected} images")
    if result.facts.split.official is False:  # None: the data set has no published list
        found.append(f"unofficial split ({result.facts.split.count} lines)")
    return tuple(found)


def compared(published: Entry, measured: Sequence[Entry]) -> Entry:
    """The published row with its comparison to each measured one: `reproduced`, or the differences.

    Only rows of the same protocol, steps and ensemble size are compared, on data sets whose complete official list was
    measured. Differences are measured minus published, in percentage points; within `TOLERANCE` is reproduced.
    """
    beside = []
    for ours in measured:
        datasets = [dataset for dataset in published.values if dataset in ours.official]
        # Another number of steps or another protocol changes the numbers more than any error would.
        if not datasets or (ours.protocol, ours.setting) != (published.protocol, published.setting):
            continue
        off = [
            f"{dataset} {here - there:+.2f} {metric}"
            for dataset in datasets
            for metric, here, there in zip(TOLERANCE, ours.values[dataset], published.values[dataset], strict=True)
            # Rounded: 96.4 - 96.2 exceeds 0.2 in binary.
            if round(abs(here - there), 6) > TOLERANCE[metric]
        ]
        beside.append(f"{ours.method}: {', '.join(off) or 'reproduced'}")
    return replace(published, beside=tuple(beside))


def single_table(result: Result) -> str:
    """Markdown: this result above the published rows of its data set, rows of the same protocol first."""
    dataset, ours = result.facts.dataset, measured_entries(result)
    others = [compared(entry, ours) for entry in PUBLISHED if dataset in entry.values]
    others.sort(key=lambda entry: entry.protocol != result.protocol)  # stable, so that a paper's rows stay together
    header = ("method", "steps x ensemble", "protocol", "source", "AbsRel %", "delta1 %", "notes")
    lines = [
        (
            entry.method,
            entry.setting,
            entry.protocol,
            entry.source,
            *(f"{value:.{2 if entry.source == MEASURED else 1}f}" for value in entry.values[dataset]),
            entry.remarks,
        )
        for entry in [*ours, *others]
    ]
    return markdown(header, lines)


def metrics_table(result: Result) -> str:
    """Markdown: every metric's mean, deviation over images, and over seeds when there are several; groups too.

    With known points a mean for each method, and the first one's deviations.
    """
    several = len(result.seeds) > 1
    parts = {"all": Group(result.count, result.metrics), **result.groups}
    columns = methods(result)
    means = [f"mean {method}".strip() for method in columns]
    header = ("metric", "images", *means, "std over images", *(["std over seeds"] if several else []))
    lines = [
        (
            name,
            f"{label} ({part.count})",
            *(f"{part.metrics[prefix + name].mean:.5f}" for prefix in columns.values()),
            f"{score.std_over_images:.5f}",
            *([f"{score.std_over_seeds:.5f}"] if several else []),
        )
        for label, part in parts.items()
        for name, score in part.metrics.items()
        if not name.startswith(tuple(filter(None, columns.values())))
    ]
    return markdown(header, lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    widths = [max(len(line[k]) for line in [header, *lines]) for k in range(len(header))]

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([row(header), rule, *(row(line) for line in lines)])
