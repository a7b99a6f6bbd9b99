"""The base that training starts from: its location, identity and licence."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.schedulers import DDIMScheduler
from huggingface_hub.repocard import metadata_load

from marigold.config import imported
from marigold.model.backbone import (
    Backbone,
    BaseModelError,
    add_task_switch,
    find_folder,
    load_base,
    narrow_conv_in,
    widen_conv_in,
)
from marigold.model.lora import WHOLE, Lora, add_adapters, base_tensors
from marigold.model.recipe import KEY, Switches, read_index, stored_switches


@dataclass(frozen=True)
class ModelConfig:
    """`configs/model`: the base's location, whether its U-Net gets random weights, and whether adapters train.

    `base` is a folder or a hub id; None takes the first of `search` whose folder is there, else the last of them.
    `maker` is a function, as package.module.name, that makes the base instead of loading one. `licence`
    covers the models in `search`, or what `maker` makes.
    """

    base: str | None
    search: list[str]
    licence: str | None
    revision: str | None
    random_unet: bool
    maker: str | None = None
    lora: Lora = WHOLE

    @property
    def location(self) -> str:
        """Return the folder or hub id in use; raises BaseModelError if none is given."""
        if self.base is not None or self.maker is not None:
            return self.base or self.maker or ""
        if not self.search:
            raise BaseModelError("model.base=null and model.search=[]: give model.base=DIR or a hub id")
        return next((place for place in self.search if Path(place).is_dir()), self.search[-1])


def load_trainable(model: ModelConfig, switches: Switches, scheduler: Mapping[str, Any], seed: int) -> Backbone:
    """The base with the U-Net that `switches` ask for, and a changed scheduler configuration; the VAE is frozen.

    With `model.lora` the U-Net is frozen too, except for its adapters and the layers that the base lacked: a widened
    `conv_in` and a task switch. seed: of all random weights. Raises BaseModelError for a base that is missing or does
    not fit, and for adapters without peft.
    """
    if model.maker is not None:
        backbone = imported(model.maker, "model.maker")()
    else:
        folder = find_folder(model.location, model.revision)
        check_space(folder, switches)
        backbone = load_base(folder)
    if model.random_unet:
        backbone = replace(backbone, unet=random_unet_like(backbone.unet, seed))
    new = []  # layers that the base lacked, so that adapters cannot adapt them
    if switches.in_channels > backbone.unet.config["in_channels"]:
        widen_conv_in(backbone.unet)
        new.append("conv_in")
    elif switches.in_channels < backbone.unet.config["in_channels"]:
        narrow_conv_in(backbone.unet)
    if switches.reconstruct and backbone.unet.class_embedding is None:
        add_task_switch(backbone.unet, seed)
        new.append("class_embedding")
    add_adapters(backbone.unet, model.lora, seed, whole=new)
    # Latents are cached, and tuning the decoder too gains nothing (E2E-FT, A-2).
    backbone.vae.requires_grad_(False)
    if switches.prediction != "base":
        scheduler = {**scheduler, "prediction_type": switches.prediction}
    return replace(backbone, scheduler_config={**backbone.scheduler_config, **scheduler})


def check_space(folder: Path, switches: Switches) -> None:
    """Raise BaseModelError for a base that already predicts another mapping than the recipe's."""
    index = read_index(folder)
    if "prediction_type" not in index and KEY not in index:
        return  # an image generator
    predicts = stored_switches(index, folder / "model_index.json").mapping
    if predicts != switches.mapping:
        raise BaseModelError(
            f"{folder}: this model predicts {predicts}, and the recipe teaches {switches.mapping}; start from a model "
            f"of the same mapping or from an image generator"
        )


def licence(model: ModelConfig) -> str | None:
    """The base's licence under the hub's identifier, from its README.md or for the models in `search`; or None."""
    if model.maker is not None:
        return model.licence
    card = find_folder(model.location, model.revision) / "README.md"
    stated = (metadata_load(card) or {}).get("license") if card.is_file() else None
    return stated or (model.licence if model.location in model.search else None)


def base_identity(backbone: Backbone) -> str:
    """sha256 over weights and configuration of U-Net, VAE and text encoder, the noise schedule, the prompt's tokens.

    It depends neither on the folder they were loaded from nor on adapters.
    """
    config = DDIMScheduler.from_config(backbone.scheduler_config).config  # with the defaults that saving writes out
    schedule = {key: value for key, value in config.items() if not key.startswith("_")}
    tokens = list(backbone.tokenizer("", padding="do_not_pad").input_ids)
    digest = hashlib.sha256(json.dumps([schedule, tokens], sort_keys=True, default=str).encode())
    for module in (backbone.unet, backbone.vae, backbone.text_encoder):
        config = module.config if isinstance(module.config, Mapping) else module.config.to_dict()
        # Private keys record library and path.
        public = {key: value for key, value in config.items() if not key.startswith("_")}
        versions = ("transformers_version", "architectures", "dtype", "torch_dtype")  # added by saving
        shape = {key: value for key, value in public.items() if key not in versions}
        digest.update(json.dumps(shape, sort_keys=True, default=str).encode())
        _update(digest, module)
    return digest.hexdigest()


def latents_identity(vae: AutoencoderKL) -> str:
    """sha256 over everything that latents depend on: the VAE's scaling factor, parameters and buffers."""
    digest = hashlib.sha256(repr(float(vae.config["scaling_factor"])).encode())
    _update(digest, vae)
    return digest.hexdigest()


def _update(digest: Any, module: torch.nn.Module) -> None:
    for name, tensor in sorted(base_tensors(module).items()):
        digest.update(name.encode())
        # As float32, which numpy has where it lacks bfloat16, and without a copy of the bytes
        digest.update(tensor.cpu().float().contiguous().numpy().data)


def random_unet_like(unet: UNet2DConditionModel, seed: int) -> UNet2DConditionModel:
    """Build a U-Net of the same architecture with freshly initialised weights (the no-pretraining ablation)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet2DConditionModel.from_config(unet.config).eval()
