"""Evaluate a checkpoint, a function or stored predictions on a data set: see configs/eval.yaml for every key.

python scripts/eval.py dataset=nyu checkpoint=DIR
python scripts/eval.py -m dataset=nyu,kitti,eth3d,scannet,diode checkpoint=DIR
accelerate launch --num_processes 2 scripts/eval.py dataset=nyu checkpoint=DIR
"""

import sys

import hydra
from omegaconf import DictConfig

from marigold.config import errors_for_people
from marigold.evaluate import run
from multirun import launch_jobs, one_job


@hydra.main(version_base="1.3", config_path="../configs", config_name="eval")
def main(config: DictConfig) -> None:
    with one_job(), errors_for_people():
        finished = run(config)
        if not finished:
            sys.exit(1)


if __name__ == "__main__":
    launch_jobs(main)
