"""Models and data of the benchmarks of training and inference: random weights, micro-batches in memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding
from hydra import compose, initialize_config_dir

from marigold.data.latent_cache import LatentBatch
from marigold.data.transforms import PixelBatch
from marigold.inputs import Settings
from marigold.miniature.random_base import SD2_SCHEDULER, SIZES, build_components, build_sd2_sized
from marigold.model.backbone import TASK_LENGTH, Backbone
from marigold.model.lora import add_adapters
from marigold.model.pipeline import DepthSettings, MarigoldDepth
from marigold.model.recipe import Switches
from marigold.training.objective import Objective

ROOT = Path(__file__).resolve().parents[1]
TRAINED = {False: (480, 640), True: (96, 128)}
"""Height and width in training; True is tiny."""


def read(*overrides: str) -> Settings:
    """The settings of a training run."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return Settings.read(compose("train", list(overrides)))


def make_model(switches: Switches, tiny: bool) -> MarigoldDepth:
    """A depth model of Stable Diffusion 2's size, or a tiny one; the VAE is frozen."""
    channels = switches.in_channels
    base = build_components(0, *SIZES["tiny"], in_channels=channels) if tiny else build_sd2_sized(in_channels=channels)
    base.vae.requires_grad_(False)
    if switches.reconstruct:  # `add_task_switch` moves it, which a tensor without numbers does not allow
        base.unet.class_embedding = TimestepEmbedding(TASK_LENGTH, base.unet.time_embedding.linear_2.out_features)  # type: ignore[assignment]
    config = {**SD2_SCHEDULER, "timestep_spacing": "trailing"}
    return MarigoldDepth(replace(base, scheduler_config=config), DepthSettings(switches))


def make_objective(settings: Settings, tiny: bool, device: torch.device) -> tuple[Backbone, Objective]:
    """Modules on `device`, the U-Net ready for training, and the loss; the prompt is zeros."""
    with torch.device(device):
        model = make_model(settings.recipe.switches, tiny)
        prompt = torch.zeros(1, 2, model.backbone.unet.config["cross_attention_dim"])
        widened = ["conv_in"] if settings.recipe.switches.in_channels == 8 else []  # a base's has 4 channels
        add_adapters(model.backbone.unet, settings.model.lora, seed=0, whole=widened)
    settings.performance.apply(model.backbone.unet.train())
    return model.backbone, Objective(settings.recipe, model.diffusion, prompt, model.backbone.vae, seed=0)


def make_batch(count: int, cached: bool, tiny: bool) -> PixelBatch | LatentBatch:
    """A micro-batch of random images, or of latents as a cache gives them, all valid."""
    height, width = TRAINED[tiny]
    pixels: Any = (torch.rand(count, 1, height, width), torch.rand(count, 1, height, width) >= 0, torch.ones(count))
    names = ("",) * count
    if not cached:
        return PixelBatch(names, torch.rand(count, 3, height, width), *pixels)
    shape = (count, 4, height // 8, width // 8)
    return LatentBatch(names, torch.randn(shape), torch.randn(shape), torch.rand(count, 1, *shape[2:]) >= 0, *pixels)
