"""Fine-tune a diffusion model into a depth estimator: see configs/train.yaml and configs/exp.

python scripts/train.py +exp=quickstart
accelerate launch --num_processes 2 scripts/train.py +exp=quickstart train.micro_batch=8

The same command again resumes from the newest checkpoint. Exit code 75: stopped by a signal or the time limit, with
everything saved.
"""

import sys

import hydra
from omegaconf import DictConfig

from marigold.config import errors_for_people, launch
from marigold.train import run

STOPPED = 75  # EX_TEMPFAIL: run the same command again


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    with errors_for_people():
        finished = run(config)
    if not finished:  # several experiments of one -m go on after one that is done
        sys.exit(STOPPED)


if __name__ == "__main__":
    launch(main)
