"""One micro-batch to one loss: encode, draw timesteps and noise, predict, compare."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from marigold.data.latent_cache import IMAGE, LATENTS, PIXELS, LatentBatch
from marigold.data.transforms import PixelBatch
from marigold.model.backbone import LATENT_CHANNELS, VAE_FACTOR
from marigold.model.diffusion import Diffusion
from marigold.model.latents import encode_depth, encode_image
from marigold.model.noise import annealed_strength, multi_resolution_noise

NOISE_STREAM = 3  # the data mixture uses streams 0 to 2 of the same seed


@dataclass(frozen=True)
class NoiseConfig:
    """Training noise: multi-resolution of this strength, scaled with the timestep if annealed; 0 is Gaussian.

    Timesteps are uniform, but for a share of `terminal_share` of the samples (0 in the paper) that is trained at
    the last timestep, where sampling starts: it teaches one-step sampling in fewer steps.
    """

    strength: float
    annealed: bool
    terminal_share: float


def latent_validity(valid: Bool[Tensor, "B 1 H W"]) -> Bool[Tensor, "B 1 h w"]:
    """Reduce validity to the latent grid: a cell counts only if all of its 64 pixels are valid."""
    return F.max_pool2d((~valid).float(), VAE_FACTOR) == 0


def encode_batch(
    vae: AutoencoderKL, batch: PixelBatch, parts: Collection[str] = (*IMAGE, *LATENTS, *PIXELS)
) -> LatentBatch:
    """These parts of a batch of pictures, latents by the frozen VAE, on its device and in its precision."""
    encoders: dict[str, Callable[[], Tensor]] = {
        "image_latent": lambda: encode_image(vae, batch.image_norm),
        "depth_latent": lambda: encode_depth(vae, batch.depth_norm),
        "valid_latent": lambda: latent_validity(batch.valid),
    }
    made = {part: encoders[part]() if part in encoders else getattr(batch, part) for part in parts}
    return LatentBatch(batch.names, **made)


@torch.no_grad()
def draw(
    shape: tuple[int, int, int, int], noise: NoiseConfig, diffusion: Diffusion, seed: int, g: int
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B 4 h w"]]:
    """Timesteps and noise of global micro-batch `g`: a function of (seed, g), drawn on the CPU."""
    key = np.random.SeedSequence([seed, NOISE_STREAM, g]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(key >> np.uint64(1)))
    timesteps = torch.randint(0, diffusion.num_train_timesteps, (shape[0],), generator=generator)
    if noise.terminal_share > 0:
        terminal = torch.rand(shape[0], generator=generator) < noise.terminal_share
        timesteps = torch.where(terminal, diffusion.num_train_timesteps - 1, timesteps)
    strength: float | Tensor = noise.strength
    if noise.annealed:
        strength = annealed_strength(timesteps, noise.strength, diffusion.num_train_timesteps)
    if noise.strength == 0:
        return timesteps, torch.randn(shape, generator=generator)
    return timesteps, multi_resolution_noise(shape, strength, generator=generator)


def masked_mse(
    prediction: Float[Tensor, "B 4 h w"], target: Float[Tensor, "B 4 h w"], valid: Bool[Tensor, "B 1 h w"]
) -> Float[Tensor, ""]:
    """Mean squared error over the valid latent elements of the micro-batch; 0 if there is none."""
    weight = valid.to(prediction.dtype)
    squares = (prediction - target).square() * weight
    # Multiplied and not selected: selecting would wait for the device to count.
    return squares.sum() / (weight.sum() * LATENT_CHANNELS).clamp(min=1)


@dataclass(frozen=True)
class Objective:
    """The training loss of method section 3 of the paper, as a function of the U-Net, a batch and its index.

    `prompt` is the encoded empty prompt (1, T, width). `vae` may be None when every batch comes as latents.
    """

    diffusion: Diffusion
    noise: NoiseConfig
    prompt: Float[Tensor, "1 T width"]
    vae: AutoencoderKL | None
    seed: int

    def __call__(self, unet: nn.Module, batch: PixelBatch | LatentBatch, g: int) -> Float[Tensor, ""]:
        """The loss of global micro-batch `g`; raises ValueError for pictures without a VAE."""
        if isinstance(batch, PixelBatch):
            if self.vae is None:
                raise ValueError("objective: a batch of pictures needs the VAE to encode it")
            batch = encode_batch(self.vae, batch)
        assert batch.image_latent is not None
        assert batch.depth_latent is not None
        assert batch.valid_latent is not None
        device = self.prompt.device
        shape = batch.depth_latent.shape
        timesteps, noise = draw((shape[0], shape[1], shape[2], shape[3]), self.noise, self.diffusion, self.seed, g)
        image, depth, valid, timesteps, noise = (
            part.to(device, non_blocking=True)
            for part in (
                batch.image_latent.float(),
                batch.depth_latent.float(),
                batch.valid_latent,
                timesteps,
                noise,
            )
        )
        noisy = self.diffusion.add_noise(depth, noise, timesteps)
        target = self.diffusion.target(depth, noise, timesteps)
        prompt = self.prompt.expand(shape[0], -1, -1)
        prediction = unet(torch.cat([image, noisy], dim=1), timesteps, prompt, return_dict=False)[0]
        return masked_mse(prediction.float(), target, valid)
