"""What the tests of this folder share: tiny models with random weights, an image, start noise, diffusers' pipeline."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import MarigoldDepthPipeline

from marigold.miniature.random_base import SIZES, build_components
from marigold.model.backbone import add_task_switch
from marigold.model.pipeline import DepthSettings, MarigoldDepth
from marigold.model.recipe import Switches


def tiny_model(
    switches: Switches | None = None, *, steps: int = 2, recipe: dict[str, Any] | None = None, **scheduler: object
) -> MarigoldDepth:
    """A model of a recipe; all of its weights are random, those of a task switch and of the noise's channels too."""
    switches = switches or Switches()
    backbone = build_components(0, *SIZES["tiny"], in_channels=switches.in_channels)
    if switches.reconstruct:
        add_task_switch(backbone.unet, seed=1)
    config = {**backbone.scheduler_config, **scheduler}
    settings = DepthSettings(switches, True, True, steps, 0, recipe)
    return MarigoldDepth(replace(backbone, scheduler_config=config), settings)


def with_scheduler(model: MarigoldDepth, **changes: object) -> MarigoldDepth:
    """The same modules under another configuration of the scheduler."""
    config = {**model.backbone.scheduler_config, **changes}
    return MarigoldDepth(replace(model.backbone, scheduler_config=config), model.settings)


def sample_image(height: int, width: int, batch: int = 1) -> torch.Tensor:
    """An image with smooth shading, an edge and some texture."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    shading = torch.stack([x * y, (x - y).abs(), (x > 0.4).float()])
    noise = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(9))
    return (0.8 * shading + 0.2 * noise).clip(0, 1)


def start(count: int, height: int, width: int) -> torch.Tensor:
    """Start noise for images of that size."""
    shape = (count, 4, -(-height // 8), -(-width // 8))
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def in_diffusers(folder: Path, load: type = MarigoldDepthPipeline) -> MarigoldDepthPipeline:
    """diffusers' own pipeline of a saved model."""
    pipeline = load.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
