"""Encode both flips of every training sample once, so that training never runs the VAE's encoder.

python scripts/cache_latents.py +exp=quickstart
accelerate launch scripts/cache_latents.py +exp=[hypersim_vkitti,cached_latents]

Run again after an interruption: whole shards are kept. The settings are those of scripts/train.py.
"""

import functools
from pathlib import Path

import hydra
import torch
from accelerate import PartialState
from diffusers.models import AutoencoderKL
from omegaconf import DictConfig
from tqdm import tqdm

from assemble import AUTOCAST, CacheConfig, latents_identity, load_model, training_sets
from marigold.config import errors_for_people, launch, to_dataclass
from marigold.data.latent_cache import LatentBatch, write_cache
from marigold.data.pixels import PixelExamples
from marigold.training.objective import encode_batch


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    with errors_for_people():
        run(config)


def run(config: DictConfig) -> None:
    cache = to_dataclass(CacheConfig, config.cache, "cache")
    state = PartialState(cpu=config.device == "cpu")
    sets, backbone = training_sets(config), load_model(config)
    vae_hash = latents_identity(backbone.vae)
    vae = backbone.vae.to(state.device)
    for part in sets:
        source = PixelExamples(part.samples, part.samples.names, part.transform)
        folder = Path(cache.folder) / part.name
        written = write_cache(
            folder,
            functools.partial(encode, vae, source, AUTOCAST[cache.precision]),
            count=len(part.samples),
            fingerprint=part.fingerprint(vae_hash, cache.precision),
            dtype=cache.dtype,
            shard_size=cache.shard_size,
            batch=cache.batch,
            rank=state.process_index,
            world=state.num_processes,
        )
        total = len(part.samples) // state.num_processes
        with tqdm(total=total, desc=f"encode {part.name}", disable=not state.is_main_process, mininterval=2) as bar:
            for done in written:
                bar.update(done)
        state.wait_for_everyone()
        if state.is_main_process:
            size = sum(file.stat().st_size for file in folder.glob("shard_*.h5"))
            print(f"{folder}: {len(part.samples)} samples x 2 flips, {size / 1e6:.1f} MB")


def encode(
    vae: AutoencoderKL, source: PixelExamples, autocast: torch.dtype | None, indices: list[int], flips: list[bool]
) -> LatentBatch:
    """Latents of the chosen samples, the encoder computing in `autocast` (None: in its own precision)."""
    batch = source.batch(indices, flips)
    with torch.autocast(vae.device.type, autocast, enabled=autocast is not None):
        return encode_batch(vae, batch)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    launch(main)
