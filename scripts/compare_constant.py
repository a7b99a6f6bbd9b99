"""Compare an evaluation's AbsRel with that of constant predictions on the same images.

python scripts/compare_constant.py dataset=rooms results=runs/quickstart/eval
"""

import hydra
from omegaconf import DictConfig

from marigold.compare_constant import run
from marigold.config import errors_for_people, launch


@hydra.main(version_base="1.3", config_path="../configs", config_name="compare_constant")
def main(config: DictConfig) -> None:
    with errors_for_people():
        run(config)


if __name__ == "__main__":
    launch(main)
