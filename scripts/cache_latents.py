"""Encode both flips of every training sample once, so that training never runs the VAE's encoder.

python scripts/cache_latents.py +exp=quickstart
accelerate launch scripts/cache_latents.py +exp=[hypersim_vkitti,cached_latents]

Run again after an interruption: whole shards are kept. The settings are those of scripts/train.py.
"""

from marigold.cli import launch

if __name__ == "__main__":
    launch("cache-latents")
