"""Results of evaluations as paper-style tables: Markdown, LaTeX, csv, one HTML page with the panels, and bars."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from marigold.config import to_dataclass
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.result import Result
from marigold.evaluation.table import Table, collect, to_csv, to_html, to_latex, to_markdown
from marigold.files import write_atomically
from marigold.visualization import bars


@dataclass(frozen=True)
class ReportSettings:
    """The keys of configs/table.yaml."""

    results: list[str]
    published: bool
    output: str


def run(config: DictConfig) -> None:
    """Write the files; raises EvaluationError for a folder without results."""
    settings = to_dataclass(ReportSettings, OmegaConf.masked_copy(config, ["results", "published", "output"]))
    results = read_results(settings.results)
    tables = collect(results, settings.published)
    output = Path(settings.output)
    texts = {
        ".md": to_markdown(tables),
        ".tex": to_latex(tables),
        ".csv": to_csv(tables),
        ".html": to_html(tables, panels(results, tables)),
    }
    for ending, text in texts.items():
        write_atomically(output.with_name(output.name + ending), text)
    for table in tables:
        image = output.with_name(f"{output.name}-{table.protocol}.png")
        bars(image, abs_rel_by_dataset(table), f"AbsRel in %, lower is better, protocol {table.protocol}")
    print(f"{texts['.md']}\nwritten to {output}: {', '.join(texts)} and a png of AbsRel per protocol")


def read_results(folders: list[str]) -> dict[str, Result]:
    """Folder -> its result, for every results.json below `folders`."""
    found: dict[str, Result] = {}
    for folder in folders:
        below = sorted(Path(folder).rglob("results.json"))
        if not below:
            raise EvaluationError(f"results={folder}: no results.json below it; scripts/eval.py writes one")
        found.update((str(path.parent), Result.from_json(path)) for path in below)
    return found


def panels(results: dict[str, Result], tables: list[Table]) -> dict[str, Path]:
    """Caption -> panel.png of the results that count."""
    superseded = {folder for table in tables for folder in table.superseded}
    return {
        # The folder distinguishes results of one name, such as one checkpoint at several ensemble sizes.
        f"{result.method} on {result.facts.dataset}, protocol {result.protocol} ({folder})": path
        for folder, result in results.items()
        if folder not in superseded and (path := Path(folder) / "panel.png").is_file()
    }


def abs_rel_by_dataset(table: Table) -> dict[str, dict[str, float]]:
    """Data set -> row of the table -> AbsRel in percent."""
    groups: dict[str, dict[str, float]] = {dataset: {} for dataset in table.datasets}
    for entry, _ in table.rows:
        label = " ".join(filter(None, (entry.method, entry.setting, f"({entry.source.strip('*')})")))
        for dataset, (abs_rel, _) in entry.values.items():
            if dataset in groups:
                groups[dataset][label] = abs_rel
    return groups
