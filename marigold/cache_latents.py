"""Encode every training sample once, in every flip and variant, so that training never runs the VAE's encoder."""

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers.models import AutoencoderKL
from omegaconf import DictConfig
from tqdm import tqdm

from marigold.data.latent_cache import FLIPS, CacheError, LatentBatch, Store, write_cache
from marigold.data.training_sets import TrainingSet
from marigold.data.transforms import PixelExamples
from marigold.files import lock_folder, remove_partial_files
from marigold.inputs import Settings, cannot_start, load_inputs
from marigold.model.base import latents_identity
from marigold.precision import AUTOCAST
from marigold.training.objective import encode_batch


@torch.no_grad()
def run(config: DictConfig) -> None:
    """Write the cache of every training set of nonzero weight, this process its share of the shards.

    Whole shards of an earlier run are kept. Raises ValueError or OSError with a message for the user.
    """
    settings = Settings.read(config)
    state = PartialState(cpu=config.device == "cpu")
    if settings.cache.precision == "fp16" and state.device.type == "cpu":
        raise CacheError("cache.precision=fp16: a CPU has no float16 convolutions worth using; take bf16 or no")
    problems: list[str] = []
    sets, backbone = load_inputs(config, settings, problems, files=True)
    if problems or backbone is None:
        raise cannot_start(problems)
    vae_hash = latents_identity(backbone.vae)
    # Channels last is 1.4 times as fast on a CPU; results differ in their last bits.
    vae = backbone.vae.to(state.device, memory_format=torch.channels_last)
    for part in sets:
        folder = Path(settings.cache.folder) / part.name
        # Set by set: another run may train from one that is finished.
        with lock_folder(folder) if state.is_main_process else nullcontext():
            if state.is_main_process:
                remove_partial_files(folder)
            state.wait_for_everyone()  # no process writes into a folder that is in use
            stores = write(part, settings, vae, vae_hash, state)
            state.wait_for_everyone()
        if state.is_main_process:
            for store in stores:
                size = sum(file.stat().st_size for file in store.folder.glob("shard_*.h5"))
                versions = f"{FLIPS} flips" + (f" x {store.variants} variants" if store.variants else "")
                print(f"{store.folder}: {store.count} samples x {versions}, {size / 1e6:.1f} MB")


def write(
    part: TrainingSet, settings: Settings, vae: AutoencoderKL, vae_hash: str, state: PartialState
) -> list[Store]:
    """This process's shards of what the recipe needs of one training set."""
    cache, recipe = settings.cache, settings.recipe
    target = recipe.target(settings.train.seed)
    stores = part.stores(cache, target, vae_hash, latents=recipe.latents, pixels=recipe.pixels)
    source = PixelExamples(part.samples, part.samples.names, part.transform, target)
    # The flips and variants of a batch follow each other, and decoding is half of a sample's time.
    source.read = functools.lru_cache(cache.batch)(source.read)
    written = write_cache(
        stores,
        functools.partial(encode, vae, source, AUTOCAST[cache.precision]),
        batch=cache.batch,
        rank=state.process_index,
        world=state.num_processes,
    )
    # Of this process; shards are shared out whole, so the number is approximate.
    total = len(part.samples) // state.num_processes
    with tqdm(total=total, desc=f"encode {part.name}", disable=not state.is_main_process, mininterval=2) as bar:
        for done in written:
            bar.update(done)
    return stores


def encode(
    vae: AutoencoderKL,
    source: PixelExamples,
    autocast: torch.dtype | None,
    indices: Sequence[int],
    flips: Sequence[bool],
    variants: Sequence[int],
    parts: Sequence[str],
) -> LatentBatch:
    """These parts of the chosen samples, the encoder computing in `autocast` (None: in its own precision)."""
    batch = source.batch(indices, flips, variants)
    with torch.autocast(vae.device.type, autocast, enabled=autocast is not None):
        return encode_batch(vae, batch, parts)
