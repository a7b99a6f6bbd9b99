"""Convert a checkpoint of any recipe to one that diffusers' own Marigold pipeline samples as this package does.

That pipeline feeds the U-Net the image latent and noise, passes no task and starts at the last timestep. Where a
recipe differs, it differs by a constant: a term of the time embedding, or a factor. Both are folded into weights, so
results change by rounding only.
"""

import copy
from dataclasses import asdict, replace
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel

from marigold.model.backbone import LATENT_CHANNELS, replace_conv_in, task_labels
from marigold.model.diffusion import Diffusion
from marigold.model.pipeline import MarigoldDepth
from marigold.model.recipe import EXPORTED_FROM, VERSION


class ExportError(ValueError):
    """Raised for a checkpoint that cannot be exported, or need not be; the message tells why."""


def for_diffusers(model: MarigoldDepth) -> MarigoldDepth:
    """A copy of the model that diffusers' `MarigoldDepthPipeline` samples as this package does.

    A model of one pass starts there at the last timestep, whatever the U-Net was told in training. Where no noise
    enters, the copy gives the same prediction from any. Raises ExportError for a model that diffusers samples as it
    is, and for one that it cannot sample.
    """
    switches, diffusion = model.switches, model.diffusion
    last = diffusion.num_train_timesteps - 1
    told = switches.timestep(last + 1)
    if model.settings.stock:
        raise ExportError("diffusers reads this folder as it is; there is nothing to export")
    if switches.prompt_tokens != 2:
        raise ExportError(
            f"recipe.prompt_tokens={switches.prompt_tokens}: diffusers' pipeline shows the U-Net 2 tokens of the "
            "empty prompt, and attention over others cannot be folded into weights; train with recipe.prompt_tokens=2"
        )
    if not switches.silent and told != last and diffusion.prediction_type != "sample":
        raise ExportError(
            f"recipe.timesteps={switches.timesteps} with noise and prediction={diffusion.prediction_type}: diffusers' "
            f"pipeline separates the noise at timestep {last} only; train with recipe.timesteps=terminal or "
            "recipe.prediction=sample"
        )
    unet = copy.deepcopy(model.backbone.unet)
    # diffusers reads the prediction type from the scheduler's configuration alone.
    changes: dict[str, Any] = {"prediction_type": diffusion.prediction_type}
    if switches.reconstruct:
        fold_task(unet)
    if switches.one_pass:
        fold_timestep(unet, told, last)
        changes |= {"timestep_spacing": "trailing", "set_alpha_to_one": True}  # from the last timestep to no noise
    if switches.silent:
        fold_prediction(unet, diffusion)
        mute_noise(unet)
        changes["prediction_type"] = "sample"
    switches = replace(
        switches,
        noise="zeros" if switches.silent else switches.noise,
        timesteps="terminal" if switches.one_pass else switches.timesteps,
        prediction=changes["prediction_type"],
        reconstruct=False,
    )
    name = (model.settings.recipe or {}).get("name")
    settings = replace(
        model.settings,
        switches=switches,
        default_denoising_steps=1 if switches.one_pass else model.settings.default_denoising_steps,
        recipe={"version": VERSION, **asdict(switches), EXPORTED_FROM: name},
    )
    config = {**model.backbone.scheduler_config, **changes}
    return MarigoldDepth(replace(model.backbone, unet=unet, scheduler_config=config), settings)


@torch.no_grad()
def fold_task(unet: UNet2DConditionModel) -> None:
    """Let a U-Net with a task switch predict depth without a task label, in place.

    The task's embedding is added to the time embedding, so it is folded into that one's last bias.
    """
    task = task_labels(1, image=False, device=unet.device).to(unet.dtype)
    unet.time_embedding.linear_2.bias.add_(unet.class_embedding(task)[0])
    unet.class_embedding = None  # type: ignore[assignment]
    unet.register_to_config(class_embed_type=None, projection_class_embeddings_input_dim=None)


@torch.no_grad()
def fold_timestep(unet: UNet2DConditionModel, told: int, asked: int) -> None:
    """Let the U-Net see timestep `told` when it is given `asked`, in place; other timesteps become wrong."""
    features = unet.time_proj(torch.tensor([told, asked], device=unet.device)).to(unet.dtype)
    embedding = unet.time_embedding(features)
    # emb(asked) + (emb(told) - emb(asked)) = emb(told)
    unet.time_embedding.linear_2.bias.add_(embedding[0] - embedding[1])


@torch.no_grad()
def fold_prediction(unet: UNet2DConditionModel, diffusion: Diffusion) -> None:
    """Let a U-Net without noise return the clean latent instead of `diffusion.prediction_type`, in place.

    From a latent of zeros it is the output times a constant: -sigma of v, -sigma / signal of the noise, 1 of itself.
    """
    one = torch.ones(1, LATENT_CHANNELS, 1, 1)
    last = torch.tensor([diffusion.num_train_timesteps - 1])
    factor = float(diffusion.clean(one, torch.zeros_like(one), last)[0, 0])  # -0.998 for v and Stable Diffusion 2
    for part in unet.conv_out.parameters():  # weight and bias
        part.mul_(factor)


@torch.no_grad()
def mute_noise(unet: UNet2DConditionModel) -> None:
    """Give the U-Net 8 input channels, in place; the 4 for noise have no effect."""
    image = unet.conv_in.weight[:, :LATENT_CHANNELS]
    replace_conv_in(unet, torch.cat([image, torch.zeros_like(image)], dim=1))
