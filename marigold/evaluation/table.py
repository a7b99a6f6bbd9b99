"""Paper-style tables over data sets, AbsRel and delta1 with the average rank, in Markdown, LaTeX, csv and HTML.

Each protocol has its own table: rows of different protocols are never ranked together.
"""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from marigold.evaluation.published import DATASETS, PUBLISHED, Entry
from marigold.evaluation.report import MEASURED, compared, markdown, measured_entries
from marigold.evaluation.result import Result
from marigold.files import csv_text

NOT_COUNTED = "Superseded results, not in the table:"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Depth evaluation</title><link rel="icon" href="data:,"><style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td { border-bottom: 1px solid GrayText; padding: .3rem .6rem; text-align: right; white-space: nowrap; }
td:first-child { text-align: left; }
tr.ours, tr:first-child { font-weight: bold; }
img { max-width: 100%; background: #fff; }
</style></head><body><h1>Depth evaluation</h1>
<p>AbsRel and delta1 in percent. Each protocol is ranked on its own; rows with notes are not ranked.</p>
CONTENT
</body></html>
"""


@dataclass(frozen=True)
class Table:
    """The rows of one protocol, each with its average rank (None: not ranked), and the data sets as columns.

    `superseded`: folder -> why its result is not in a row.
    """

    protocol: str
    datasets: tuple[str, ...]
    rows: tuple[tuple[Entry, float | None], ...]
    superseded: Mapping[str, str]


def collect(found: Mapping[str, Result], published: bool) -> list[Table]:
    """One table per protocol that was measured, ours joined over data sets, with the published rows above.

    `found`: folder -> its result. Of several results with the same method, setting, protocol and data set, complete
    ones take precedence over partial ones, then the newest.
    """
    ours: dict[tuple[str, str, str], Entry] = {}
    # Never the better of two results for one cell: that would select by outcome.
    counted, superseded = _choose(found)
    for dataset, entry in [(one.facts.dataset, entry) for one in counted for entry in measured_entries(one)]:
        key = (entry.method, entry.setting, entry.protocol)
        before = ours.get(key, replace(entry, values={}, notes=(), official=(), beside=()))
        ours[key] = replace(
            before,
            values={**before.values, **entry.values},
            notes=before.notes + tuple(f"{dataset}: {note}" for note in entry.notes),
            official=before.official + entry.official,
            beside=before.beside + entry.beside,
        )
    tables = []
    for protocol in dict.fromkeys(entry.protocol for entry in ours.values()):
        mine = [entry for entry in ours.values() if entry.protocol == protocol]
        measured = {dataset for entry in mine for dataset in entry.values}
        others = [entry for entry in PUBLISHED if entry.protocol == protocol] if published else []
        # A published row without any of our columns would be empty.
        others = [compared(entry, mine) for entry in others if measured & set(entry.values)]
        datasets = [name for name in DATASETS if name in measured] + sorted(measured - set(DATASETS))
        rows = [*others, *mine]
        ranked = tuple(zip(rows, ranks(rows, datasets), strict=True))
        beaten = {folder: why for folder, why in superseded.items() if found[folder].protocol == protocol}
        tables.append(Table(protocol, tuple(datasets), ranked, beaten))
    return tables


def _choose(found: Mapping[str, Result]) -> tuple[list[Result], dict[str, str]]:
    """The results for the tables, in the order found, and by folder why others are superseded."""

    def place(folder: str) -> tuple[bool, datetime]:
        result = found[folder]
        # `official` is None for a data set without a published list, whose results can be complete.
        whole = result.complete and result.facts.limit is None and result.facts.split.official is not False
        return whole, datetime.fromisoformat(result.date).astimezone()

    same: dict[tuple[str, ...], list[str]] = {}
    for folder, result in found.items():
        same.setdefault((result.method, result.setting, result.facts.dataset, result.protocol), []).append(folder)
    superseded = {}
    for (method, setting, dataset, _), folders in same.items():
        best = max(folders, key=place)
        for folder in folders:
            if folder != best:
                why = "is newer" if place(folder)[0] == place(best)[0] else "has the whole set"
                superseded[folder] = f"{' '.join(filter(None, (method, setting)))} on {dataset}: {best} {why}"
    return [result for folder, result in found.items() if folder not in superseded], superseded


def ranks(rows: Sequence[Entry], datasets: Sequence[str]) -> list[float | None]:
    """Average rank of each row over all columns, 1 the best, ties sharing the mean of their places.

    Rows without a value in some column, or with notes (a part of the images, another list), are not ranked.
    """
    fit = [row for row in rows if not row.notes and all(dataset in row.values for dataset in datasets)]
    if len(fit) < 2:
        return [None] * len(rows)
    # Lower AbsRel is better, higher delta1 is; the published precision decides what is a tie.
    columns = [[round(sign * row.values[d][k], 1) for row in fit] for d in datasets for k, sign in ((0, 1), (1, -1))]
    places = np.mean([rankdata(column) for column in columns], axis=0).tolist()
    # By identity: two rows may be equal.
    average = {id(row): place for row, place in zip(fit, places, strict=True)}
    return [average.get(id(row)) for row in rows]


def _cells(table: Table) -> tuple[list[str], list[list[str]]]:
    header = ["method", "steps x ensemble", "source"]
    header += [f"{dataset} {metric}" for dataset in table.datasets for metric in ("AbsRel", "delta1")]
    lines = []
    for entry, rank in table.rows:
        cells = [entry.method, entry.setting, entry.source]
        digits = 2 if entry.source == MEASURED else 1
        for dataset in table.datasets:
            cells += [f"{value:.{digits}f}" for value in entry.values.get(dataset, ())] or ["", ""]
        lines.append([*cells, _rank(rank), entry.remarks])
    return [*header, "avg. rank", "notes"], lines


def to_markdown(tables: Sequence[Table]) -> str:
    """Markdown, a heading per protocol; percent; superseded results below."""
    parts = []
    for table in tables:
        parts += [f"### Protocol `{table.protocol}`", markdown(*_cells(table))]
        if table.superseded:
            lines = [f"- `{folder}`: {why}" for folder, why in table.superseded.items()]
            parts.append("\n".join([NOT_COUNTED, "", *lines]))
    return "\n\n".join(parts) + "\n"


def to_csv(tables: Sequence[Table]) -> str:
    """One line per row and data set, in full precision: protocol, method, setting, source, data set, AbsRel and delta1
    in percent, average rank, notes."""
    header = ["protocol", "method", "setting", "source", "dataset", *("abs_rel_percent", "delta1_percent")]
    lines = [
        [table.protocol, entry.method, entry.setting, entry.source, dataset, *values, _rank(rank), entry.remarks]
        for table in tables
        for entry, rank in table.rows
        for dataset, values in entry.values.items()
    ]
    return csv_text([[*header, "rank", "notes"], *lines])


def to_latex(tables: Sequence[Table]) -> str:
    """A booktabs `tabular` per protocol; percent."""
    parts = []
    for table in tables:
        header, lines = _cells(table)
        body = "\n".join(" & ".join(_tex(cell) for cell in line) + r" \\" for line in lines)
        # Method, setting and source, numbers, notes
        columns = "lll" + "r" * (len(header) - 4) + "l"
        parts.append(
            f"% protocol {table.protocol}\n\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
            f"{' & '.join(_tex(cell) for cell in header)} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}"
        )
    return "\n\n".join(parts) + "\n"


def to_html(tables: Sequence[Table], panels: Mapping[str, Path]) -> str:
    """One self-contained page, light or dark as the system is; `panels`: caption -> png, embedded."""
    parts = []
    for table in tables:
        header, lines = _cells(table)
        parts.append(f"<h2>Protocol {html.escape(table.protocol)}</h2><div class='scroll'><table>{_html_row(header)}")
        for (entry, _), line in zip(table.rows, lines, strict=True):
            parts.append(_html_row([cell.strip("*") for cell in line], "ours" if entry.source == MEASURED else ""))
        parts.append("</table></div>")
        if table.superseded:
            items = (f"<li>{html.escape(f'{folder}: {why}')}</li>" for folder, why in table.superseded.items())
            parts.append(f"<p>{NOT_COUNTED}</p><ul>{''.join(items)}</ul>")
    for caption, path in panels.items():
        # Embedded, so that the page can be sent as one file.
        image, name = base64.b64encode(path.read_bytes()).decode(), html.escape(caption)
        parts.append(f'<h3>{name}</h3><img alt="{name}" src="data:image/png;base64,{image}">')
    return PAGE.replace("CONTENT", "\n".join(parts))


def _html_row(cells: Sequence[str], kind: str = "") -> str:
    return f'<tr class="{kind}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _rank(rank: float | None) -> str:
    return "" if rank is None else f"{rank:.2f}"


def _tex(text: str) -> str:
    for plain, escaped in (("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("*", ""), (" x ", r" $\times$ ")):
        text = text.replace(plain, escaped)
    return text
