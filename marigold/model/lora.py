"""LoRA (Hu et al., ICLR 2022): the U-Net is frozen, and low-rank adapters of its attention are trained."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.models import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from marigold.config import ConfigError
from marigold.model.backbone import BaseModelError
from marigold.model.pipeline import MarigoldDepth

ADAPTER = "adapter"  # the folder beside a merged U-Net
TARGETS = r".*\.(to_q|to_k|to_v|to_out\.0)"  # a regular expression, because peft writes lists in random order
NAME = "default"  # peft's own, which its files leave out
PREFIX = "base_model.model."  # of names in peft's files


@dataclass(frozen=True)
class Lora:
    """`model.lora`: an attention projection W becomes W + alpha / rank * B A, of which only B and A train.

    rank: the number of rows of A; None trains the whole U-Net. alpha: None takes `rank`.
    """

    rank: int | None = None
    alpha: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError, naming the key, for impossible values."""
        for key in ("rank", "alpha"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"model.lora.{key}={value}: expected at least 1, or null")
        if self.rank is None and self.alpha is not None:
            raise ConfigError(
                f"model.lora.alpha={self.alpha} has no effect without model.lora.rank; set a rank or drop it"
            )

    @property
    def on(self) -> bool:
        """Whether adapters train, and not the whole U-Net."""
        return self.rank is not None

    def __str__(self) -> str:
        return f"rank {self.rank} and alpha {self.alpha or self.rank}"


WHOLE = Lora()  # no adapters: the whole U-Net trains


def add_adapters(unet: UNet2DConditionModel, lora: Lora, seed: int, whole: Sequence[str] = ()) -> None:
    """Freeze the U-Net and add adapters, with no effect yet, to its attention projections, in place.

    A is drawn from N(0, 1 / rank^2) with `seed`, B is zero. whole: modules that still train completely. Does nothing
    without a rank. Raises BaseModelError if peft is missing.
    """
    if lora.rank is None:
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise BaseModelError(f"model.lora.rank={lora.rank} needs peft: pip install -e '.[lora]'") from error
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha or lora.rank, target_modules=TARGETS, init_lora_weights="gaussian"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, unet, NAME)  # freezes all but the adapters
    for name in whole:
        unet.get_submodule(name).requires_grad_(True)


def trained_tensors(unet: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters by name."""
    return {name: weight.detach() for name, weight in unet.named_parameters() if weight.requires_grad}


def base_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's parameters and buffers without its adapters, under their original names."""
    return {
        name.replace(".base_layer.", "."): tensor.detach()
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name
    }


@torch.no_grad()
def merged(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Merge the adapters into a plain U-Net on the CPU: every W becomes W + alpha / rank * B A (section 4.1)."""
    tensors = base_tensors(unet)
    for name, module in unet.named_modules():
        if hasattr(module, "lora_A"):
            tensors[f"{name}.weight"] = module.base_layer.weight + module.get_delta_weight(NAME)
    with torch.device("meta"):  # no second copy of the weights
        plain = UNet2DConditionModel.from_config(unet.config)
    plain.load_state_dict({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, assign=True)
    return plain.eval()


def save_merged(model: MarigoldDepth, folder: Path) -> None:
    """Write the complete model with merged adapters, and the trained parameters alone in `adapter/`."""
    unet = model.backbone.unet
    MarigoldDepth(replace(model.backbone, unet=merged(unet)), model.settings).save_pretrained(folder)
    save_adapter(unet, folder / ADAPTER)


def save_adapter(unet: UNet2DConditionModel, folder: Path) -> None:
    """Write the trained parameters in peft's format: adapter_config.json and adapter_model.safetensors.

    `peft.PeftModel.from_pretrained(base, folder)` loads it, and so does the base's own `load_lora_adapter(folder,
    prefix="base_model.model", weight_name="adapter_model.safetensors")`. The base has the input channels of the
    recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = trained_tensors(unet)
    config = {**unet.peft_config[NAME].to_dict(), "inference_mode": True}
    config["modules_to_save"] = sorted({name.rpartition(".")[0] for name in tensors if ".lora_" not in name}) or None
    (folder / "adapter_config.json").write_text(_json(config))
    save_file(
        {f"{PREFIX}{name.replace(f'.{NAME}.', '.')}": tensor.contiguous() for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
        # diffusers reads the configuration from here. One entry only: safetensors writes several in random order.
        metadata={LORA_ADAPTER_METADATA_KEY: _json({f"{PREFIX}{key}": value for key, value in config.items()})},
    )


def _json(config: Mapping[str, object]) -> str:
    return json.dumps(config, indent=2, sort_keys=True)
