"""Noise for training and sampling, drawn on the CPU so that every device gets the same numbers."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# Pyramid levels at most; the smallest level usually reaches one pixel after three or four.
MAX_LEVELS = 10


def start_noise(seed: int, member: int, shape: tuple[int, int, int]) -> Float[Tensor, "1 4 h w"]:
    """Draw a member's start noise on the CPU, as a function of the arguments alone."""
    # Hashing keeps (seed 0, member 1) and (seed 1, member 0) apart; manual_seed reads 32 bits.
    number = int(np.random.SeedSequence([seed, member]).generate_state(1)[0])
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(number))


def multi_resolution_noise(
    shape: tuple[int, ...], strength: float | Float[Tensor, "B"], *, generator: torch.Generator
) -> Float[Tensor, "B 4 h w"]:
    """Draw Gaussian noise plus bilinearly upsampled coarser Gaussian noise, with unit variance over the batch.

    Level i is weighted by strength ** i; `strength` in [0, 1) is one number, or one per sample (annealed). Its
    size is the previous level's divided by r ** i, r ~ U(2, 4) drawn once per level for the whole batch, and the
    last level is the first with a side of one pixel. Raises ValueError for a strength outside [0, 1) and for a
    generator that is not on the CPU. Source: the reference implementation's training noise (CVPR 2024, section 3.3).
    """
    if generator.device.type != "cpu":
        raise ValueError(f"noise is drawn on the CPU, and the generator is on {generator.device}")
    batch, channels, height, width = shape
    weight = torch.as_tensor(strength, dtype=torch.float32).cpu().reshape(-1, 1, 1, 1)
    if not bool(((weight >= 0) & (weight < 1)).all()):
        raise ValueError(f"multi_resolution_noise: strength has to be in [0, 1), got {strength}")
    noise = torch.randn(shape, generator=generator)
    h, w = height, width  # compounded: each level divides the one before
    for level in range(MAX_LEVELS):
        ratio = (2 + 2 * torch.rand(1, generator=generator).item()) ** level
        h, w = max(1, int(h / ratio)), max(1, int(w / ratio))
        coarse = torch.randn((batch, channels, h, w), generator=generator)
        noise += weight**level * F.interpolate(coarse, (height, width), mode="bilinear")
        if h == 1 or w == 1:
            break
    return noise / noise.std()  # one number for the micro-batch, as published, not one per sample


def annealed_strength(
    timestep: Int[Tensor, "B"], strength: float, num_train_timesteps: int = 1000
) -> Float[Tensor, "B"]:
    """Scale the strength of multi-resolution noise with the timestep: full at the noisiest, 0 at the cleanest."""
    return strength * timestep.float() / num_train_timesteps
