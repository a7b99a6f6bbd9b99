"""Encode both flips of every training sample once, so that training never runs the VAE's encoder.

python scripts/cache_latents.py +exp=quickstart
accelerate launch scripts/cache_latents.py +exp=[hypersim_vkitti,cached_latents]

Run again after an interruption: whole shards are kept. The settings are those of scripts/train.py.
"""

import hydra
from omegaconf import DictConfig

from marigold.cache_latents import run
from marigold.config import errors_for_people, launch


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    with errors_for_people():
        run(config)


if __name__ == "__main__":
    launch(main)
