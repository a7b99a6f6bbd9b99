"""Models of Stable Diffusion 2's classes with random weights, for tests and for the pretraining of the tiny base."""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from marigold.model.backbone import Backbone, save_folder

# The scheduler settings of the published Stable Diffusion 2.
SD2_SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "rescale_betas_zero_snr": False,
    "skip_prk_steps": True,
}
START, END = "<|startoftext|>", "<|endoftext|>"
# Channels per level of the U-Net and of the VAE.
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, int, int, int]]] = {"tiny": ((32, 32, 32), (16, 16, 16, 16))}


def build_components(
    seed: int,
    unet_channels: tuple[int, ...],
    vae_channels: tuple[int, int, int, int],
    *,
    text_width: int = 32,
    in_channels: int = 4,
) -> Backbone:
    """Build a text-to-image latent diffusion model with random weights, a function of the arguments alone.

    `unet_channels` and `vae_channels` hold the width of each level, multiples of 8 and of 4; the four levels of the
    VAE make the latent 8 times smaller than the image. `in_channels` is 4 for an image generator, 8 for a depth
    estimator. The global random state is not changed.
    """
    deeper = len(unet_channels) - 1
    tokenizer = _byte_tokenizer()
    # diffusers and transformers draw from the global generator and take none as an argument.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            in_channels=in_channels,
            out_channels=4,
            block_out_channels=unet_channels,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * deeper,
            up_block_types=("CrossAttnUpBlock2D",) * deeper + ("UpBlock2D",),
            layers_per_block=1,
            attention_head_dim=8,
            norm_num_groups=8,
            cross_attention_dim=text_width,
        )
        vae = AutoencoderKL(
            block_out_channels=vae_channels,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.18215,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=text_width,
                intermediate_size=2 * text_width,
                num_hidden_layers=1,
                num_attention_heads=4,
                max_position_embeddings=77,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    for module in (unet, vae, text_encoder):
        module.eval()  # as from_pretrained leaves them: no dropout
    return Backbone(unet, vae, text_encoder, tokenizer, dict(SD2_SCHEDULER))


def build_sd2_sized(seed: int = 0, in_channels: int = 4) -> Backbone:
    """Build the U-Net (866 M parameters) and the VAE (84 M) of Stable Diffusion 2 with random weights.

    The text encoder is a small one of the same width: only its two vectors for the empty prompt are ever used.
    """
    text_width = 1024
    # Only its tokenizer and text encoder are used; the rest is small beside 950 M parameters.
    small = build_components(seed, *SIZES["tiny"], text_width=text_width, in_channels=in_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = UNet2DConditionModel(
            in_channels=in_channels,
            attention_head_dim=[5, 10, 20, 20],
            cross_attention_dim=text_width,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    return replace(small, unet=unet.eval(), vae=vae.eval())


def save(backbone: Backbone, folder: str | Path) -> Path:
    """Write `backbone` as a complete Stable Diffusion folder and return it; weights as safetensors."""
    absent = ("safety_checker", "feature_extractor", "image_encoder")
    settings = {**{name: [None, None] for name in absent}, "requires_safety_checker": False}
    return save_folder(backbone, folder, "StableDiffusionPipeline", settings)


def _byte_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer of the 256 bytes, inside and at the end of a word, without merges."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    with TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=77)
