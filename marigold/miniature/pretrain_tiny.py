"""Pretrain the tiny base: a latent diffusion model that generates images of rendered rooms.

    python scripts/pretrain_tiny.py
    torchrun --nproc_per_node 2 scripts/pretrain_tiny.py

First the VAE learns to reconstruct the images, then the U-Net learns to generate their latents from the empty
prompt, with Stable Diffusion 2's noise schedule and v-prediction. No depth map is seen. Every finished stage is kept
below `work` and not repeated by a second run; the result is written to `out` in half precision. Several processes
train the U-Net together, each on a batch of its own; the first process does the rest alone.
"""

import functools
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from omegaconf import DictConfig

from marigold.config import to_dataclass
from marigold.miniature.pretraining import (
    PretrainConfig,
    encode,
    reconstruction_metrics,
    render_images,
    train_unet,
    train_vae,
)
from marigold.miniature.random_base import build_components, save


def run(node: DictConfig) -> None:
    """Run every stage that is not finished and write the base."""
    config = to_dataclass(PretrainConfig, node)
    work = Path(config.work)
    # A day, as the others wait while the first renders and trains the VAE.
    accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    first = accelerator.is_main_process
    if first:
        render_images(config)
    accelerator.wait_for_everyone()
    rendered = render_images(config)
    backbone = build_components(config.seed, config.unet_channels, config.vae_channels)
    metrics_file = work / "figures.json"
    metrics = json.loads(metrics_file.read_text()) if metrics_file.exists() else {}

    def stage(name: str, module: torch.nn.Module, train: Callable[[], dict[str, float]], *, together: bool) -> None:
        file = work / f"{name}.pt"
        missing = not file.exists()
        accelerator.wait_for_everyone()
        if missing and (first or together):
            metrics.update(train())
        if missing and first:
            torch.save(module.state_dict(), file)
            metrics_file.write_text(json.dumps(metrics, indent=1))
        accelerator.wait_for_everyone()
        module.load_state_dict(torch.load(file, weights_only=True))
        # Later stages use and measure the half floats that are committed.
        module.half().float()

    for cycle in range(len(config.vae_steps)):
        train = functools.partial(train_vae, backbone.vae, rendered, config, cycle)
        stage(f"vae_{cycle}", backbone.vae, train, together=False)
    latents_file = work / "latents.pt"
    if first and not latents_file.exists():
        torch.save(encode(backbone.vae, rendered), latents_file)
    accelerator.wait_for_everyone()
    latents = torch.load(latents_file, weights_only=True)
    # Latents of unit variance, as the noise schedule assumes (Rombach et al. 2022, appendix G).
    scaling = round(1 / latents["rooms"].std().item(), 5)
    backbone.vae.register_to_config(scaling_factor=scaling)
    scaled = {kind: values * scaling for kind, values in latents.items()}
    for cycle in range(len(config.unet_steps)):
        train = functools.partial(train_unet, backbone, scaled, config, cycle, accelerator)
        stage(f"unet_{cycle}", backbone.unet, train, together=True)
    accelerator.end_training()
    if not first:
        return
    metrics |= reconstruction_metrics(backbone.vae, config)
    for module in (backbone.unet, backbone.vae, backbone.text_encoder):
        module.half()
    folder = save(backbone, config.out)
    (folder / "figures.json").write_text(json.dumps(metrics, indent=1))
    print(json.dumps(metrics, indent=1), f"saved {folder}", sep="\n")
