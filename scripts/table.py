"""Put results of scripts/eval.py into paper-style tables: Markdown, LaTeX, csv, one HTML page with the panels, bars.

python scripts/table.py results=[runs/eval] output=runs/table
"""

import hydra
from omegaconf import DictConfig

from marigold.config import errors_for_people, launch
from marigold.report import run


@hydra.main(version_base="1.3", config_path="../configs", config_name="table")
def main(config: DictConfig) -> None:
    with errors_for_people():
        run(config)


if __name__ == "__main__":
    launch(main)
