"""From a composed configuration to the library's objects, shared by train.py and cache_latents.py."""

import hashlib
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL
from omegaconf import DictConfig, OmegaConf

from compose import make_protocol, make_samples
from marigold.config import ConfigError, build, to_dataclass
from marigold.data.base import DepthDataset
from marigold.data.errors import DataError
from marigold.data.latent_cache import LatentCache
from marigold.data.mixture import ExampleSource, Mixture, MixtureDataset
from marigold.data.pixels import PixelExamples
from marigold.data.transforms import Transform
from marigold.model.backbone import Backbone, BaseModelError, find_folder, load_base, widen_conv_in
from marigold.model.random_base import build_sd2_sized, random_unet_like
from marigold.training.validation import ValidationSet

logger = logging.getLogger(__name__)
RANDOM_SD2 = "random_sd2"  # in place of a base: Stable Diffusion 2's shapes with random weights
MODEL_SEED = 0  # of the U-Net that replaces a pretrained one in the ablation


@dataclass(frozen=True)
class ModelConfig:
    """`configs/model`: where the base is, and whether its U-Net is replaced by one with random weights."""

    base: str
    revision: str | None
    random_unet: bool


@dataclass(frozen=True)
class DiffusionConfig:
    """What differs from the base's own scheduler."""

    rescale_betas_zero_snr: bool
    timestep_spacing: str


AUTOCAST = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class CacheConfig:
    """`cache` in configs/train.yaml: `dtype` is what the files hold, `precision` what the encoder computes in."""

    enabled: bool
    folder: str
    dtype: str
    precision: str
    shard_size: int
    batch: int

    def __post_init__(self) -> None:
        if self.precision not in AUTOCAST:
            raise ConfigError(f"cache.precision: expected one of {', '.join(AUTOCAST)}, got {self.precision!r}")


@dataclass(frozen=True)
class TrainingSet:
    """One data set of the mixture, with what its cached latents depend on."""

    name: str
    samples: DepthDataset
    transform: Transform
    weight: float

    def fingerprint(self, vae_hash: str, precision: str) -> dict[str, Any]:
        reader = self.samples
        return {
            "data_set": self.name,
            "split": reader.split.sha256,
            "depth_range": [reader.min_depth, reader.max_depth],
            "crop": list(reader.crop) if reader.crop else None,
            "transform": {**asdict(self.transform), "size": list(self.transform.size or ()) or None},
            "vae": vae_hash,
            "precision": precision,
        }


def load_model(config: DictConfig) -> Backbone:
    """The base with a U-Net of 8 input channels and the scheduler settings of this experiment."""
    settings = to_dataclass(ModelConfig, config.model, "model")
    changes = to_dataclass(DiffusionConfig, config.diffusion, "diffusion")
    if settings.base == RANDOM_SD2:
        backbone = build_sd2_sized()
    else:
        folder = find_folder(settings.base, settings.revision)
        check_space(folder / "model_index.json")
        backbone = load_base(folder)
    if settings.random_unet:
        backbone = replace(backbone, unet=random_unet_like(backbone.unet, MODEL_SEED + config.train.seed))
    if backbone.unet.config["in_channels"] == 4:
        widen_conv_in(backbone.unet)
    backbone.vae.requires_grad_(False)
    return replace(backbone, scheduler_config={**backbone.scheduler_config, **asdict(changes)})


def check_space(index: Path) -> None:
    """Refuse to teach depth to a model whose model_index.json says that it predicts something else."""
    predicts = json.loads(index.read_text()).get("prediction_type") if index.is_file() else None
    if predicts not in (None, "depth"):
        raise BaseModelError(
            f"{index}: this model predicts {predicts}, and training here teaches depth; start from a depth model "
            f"or from an image generator"
        )


def training_sets(config: DictConfig) -> list[TrainingSet]:
    """The data sets whose weight is not 0; raises one error that lists everything that is missing."""
    unknown = sorted(set(config.mixture) ^ set(config.data))
    if unknown:
        raise ConfigError(f"mixture and data name different sets: {', '.join(unknown)}")
    found, missing = [], []
    for name, weight in config.mixture.items():
        node = config.data[name]
        if weight == 0:
            continue
        transform = to_dataclass(Transform, node.transform, f"data.{name}.transform")
        try:
            found.append(TrainingSet(name, build(node.reader, f"data.{name}.reader"), transform, float(weight)))
        except (DataError, OSError) as error:
            missing.append(f"{name}: {error}")
    if missing:
        raise DataError("training data is missing.\n  " + "\n  ".join(missing))
    return found


def validation_sets(config: DictConfig) -> list[ValidationSet]:
    """The sets of a training's `validation`; raises one DataError that lists everything that is missing."""
    found, missing = [], []
    for name, node in config.validation.sets.items():
        protocol = make_protocol(OmegaConf.create({"protocol": config.protocol, "dataset": node}))
        try:
            found.append(ValidationSet(name, make_samples(node, protocol, f"validation.sets.{name}"), protocol))
        except (DataError, OSError) as error:
            missing.append(f"{name}: {error}")
    if missing:
        raise DataError("validation data is missing.\n  " + "\n  ".join(missing))
    return found


def mixture_dataset(config: DictConfig, sets: list[TrainingSet], backbone: Backbone) -> MixtureDataset[Any]:
    """The stream of micro-batches, from pictures or from cached latents."""
    cache = to_dataclass(CacheConfig, config.cache, "cache")
    vae_hash = latents_identity(backbone.vae) if cache.enabled else ""
    sources: list[ExampleSource[Any]] = []
    for part in sets:
        if cache.enabled:
            folder, stamp = Path(cache.folder) / part.name, part.fingerprint(vae_hash, cache.precision)
            sources.append(LatentCache(folder, part.samples.names, stamp, cache.dtype, cache.shard_size))
        else:
            sources.append(PixelExamples(part.samples, part.samples.names, part.transform))
    mixture = Mixture(
        [len(part.samples) for part in sets],
        [part.weight for part in sets],
        config.train.micro_batch,
        float(config.flip_probability),
        config.train.seed,
    )
    return MixtureDataset(mixture, sources)


def latents_identity(vae: AutoencoderKL) -> str:
    """sha256 over what latents depend on: the VAE's scaling factor, and its parameters and buffers by name."""
    digest = hashlib.sha256(repr(float(vae.config["scaling_factor"])).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def recipe(config: DictConfig, sets: list[TrainingSet]) -> dict[str, Any]:
    """The settings that decide a run's numbers: what a checkpoint must agree with to be continued."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    decisive = {key: plain[key] for key in ("model", "noise", "mixture", "diffusion", "flip_probability")}
    train = {
        key: plain["train"][key]
        for key in ("effective_batch", "micro_batch", "lr", "warmup_steps", "decay_steps", "final_ratio", "seed")
    }
    train |= {key: plain["train"][key] for key in ("optimizer", "max_grad_norm", "ema_decay")}
    splits = {part.name: part.samples.split.sha256 for part in sets}
    return {**decisive, **train, "splits": splits}
