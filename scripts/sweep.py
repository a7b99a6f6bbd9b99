"""Draw the paper's inference ablations: AbsRel over the ensemble size, or over the denoising steps.

python scripts/sweep.py curve=ensemble dataset=rooms checkpoint=DIR
python scripts/sweep.py -m curve=ensemble,steps dataset=rooms checkpoint=DIR
torchrun --nproc_per_node 2 scripts/sweep.py ... device=cpu

The training ablations are experiments: see configs/exp/ablation_*.yaml.
"""

import hydra
from omegaconf import DictConfig

from marigold.config import errors_for_people
from marigold.sweep import run
from multirun import launch_jobs, one_job


@hydra.main(version_base="1.3", config_path="../configs", config_name="sweep")
def main(config: DictConfig) -> None:
    with one_job(), errors_for_people():
        run(config)


if __name__ == "__main__":
    launch_jobs(main)
