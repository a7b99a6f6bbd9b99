"""Put results of scripts/eval.py into paper-style tables: Markdown, LaTeX, csv, one HTML page with the panels, bars.

python scripts/table.py results=[runs/eval] output=runs/table
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from marigold.config import errors_for_people, launch, to_dataclass
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.results import read_results
from marigold.evaluation.table import collect, to_csv, to_html, to_latex, to_markdown
from marigold.visualization import bars


@dataclass(frozen=True)
class TableConfig:
    """The keys of configs/table.yaml."""

    results: list[str]
    published: bool
    output: str


def run(config: DictConfig) -> None:
    """Write the files; raises EvaluationError for a folder without results."""
    settings = to_dataclass(TableConfig, OmegaConf.masked_copy(config, ["results", "published", "output"]))
    contents: dict[str, dict[str, Any]] = {}
    for folder in settings.results:
        below = sorted(Path(folder).rglob("results.json"))
        if not below:
            raise EvaluationError(f"results={folder}: no results.json below it; scripts/eval.py writes one")
        contents.update((str(path.parent), read_results(path)) for path in below)
    tables = collect(contents, settings.published)
    counted = contents.keys() - {folder for table in tables for folder in table.superseded}
    panels = {
        # The folder tells apart what is of one name, such as one checkpoint with several ensemble sizes.
        f"{content['predictor']['name']} on {content['dataset']}, protocol {content['protocol']['name']}"
        f" ({folder})": panel
        for folder, content in contents.items()
        if folder in counted and (panel := Path(folder) / "panel.png").is_file()
    }
    output = Path(settings.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    texts = {
        ".md": to_markdown(tables),
        ".tex": to_latex(tables),
        ".csv": to_csv(tables),
        ".html": to_html(tables, panels),
    }
    for ending, text in texts.items():
        output.with_name(output.name + ending).write_text(text)
    for table in tables:
        groups: dict[str, dict[str, float]] = {dataset: {} for dataset in table.datasets}
        for entry, _ in table.rows:
            for dataset, (abs_rel, _) in entry.values.items():
                label = " ".join(filter(None, (entry.method, entry.setting, f"({entry.source.strip('*')})")))
                groups.get(dataset, {})[label] = abs_rel
        picture = output.with_name(f"{output.name}-{table.protocol}.png")
        bars(picture, groups, "AbsRel %, lower is better", f"protocol {table.protocol}")
    print(f"{texts['.md']}\nwritten to {output}: {', '.join(texts)} and a png of AbsRel per protocol")


@hydra.main(version_base="1.3", config_path="../configs", config_name="table")
def main(config: DictConfig) -> None:
    with errors_for_people():
        run(config)


if __name__ == "__main__":
    launch(main)
