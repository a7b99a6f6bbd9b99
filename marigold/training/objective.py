"""One micro-batch to one loss: encode, draw timesteps and noise, predict, compare."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from diffusers.models import AutoencoderKL
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from marigold.config import imported
from marigold.data.latent_cache import PIXELS, LatentBatch
from marigold.data.mixture import NOISE
from marigold.data.transforms import PixelBatch
from marigold.model.backbone import VAE_FACTOR, task_labels
from marigold.model.diffusion import Diffusion
from marigold.model.latents import decode_depth, encode_depth, encode_image
from marigold.model.noise import annealed_strength, multi_resolution_noise
from marigold.training.recipe import LossTerm, Recipe


def latent_validity(valid: Bool[Tensor, "B 1 H W"]) -> Bool[Tensor, "B 1 h w"]:
    """Reduce validity to the latent grid: a cell counts only if all of its 64 pixels are valid."""
    # The encoder mixes the pixels of a cell: a single hole, filled with anything, would be part of its latent.
    return F.max_pool2d((~valid).float(), VAE_FACTOR) == 0


def encode_batch(vae: AutoencoderKL, batch: PixelBatch, parts: Collection[str]) -> LatentBatch:
    """Encode these parts of a batch of images, latents by the frozen VAE, on its device and in its precision."""
    encoders: dict[str, Callable[[], Tensor]] = {
        "image_latent": lambda: encode_image(vae, batch.image_norm),
        "depth_latent": lambda: encode_depth(vae, batch.depth_norm),
        "valid_latent": lambda: latent_validity(batch.valid.to(vae.device, non_blocking=True)),
    }
    made = {part: encoders[part]() if part in encoders else getattr(batch, part) for part in parts}
    return LatentBatch(batch.names, **made)


@torch.no_grad()
def draw(
    shape: tuple[int, int, int, int], recipe: Recipe, total: int, seed: int, g: int
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B 4 h w"]]:
    """Timesteps in [0, total) and noise of global micro-batch `g`: a function of (seed, g), on the CPU."""
    key = np.random.SeedSequence([seed, NOISE, g]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(key >> np.uint64(1)))  # it takes a signed number
    timesteps = torch.randint(0, total, (shape[0],), generator=generator)
    if recipe.terminal_share > 0:
        terminal = torch.rand(shape[0], generator=generator) < recipe.terminal_share
        timesteps = torch.where(terminal, total - 1, timesteps)
    if recipe.timesteps != "uniform":
        timesteps = torch.full_like(timesteps, recipe.switches.timestep(total))
    if recipe.switches.silent:
        return timesteps, torch.zeros(shape)
    strength: float | Tensor = recipe.noise_strength
    if recipe.noise == "annealed":  # strength t / T: Ke et al., CVPR 2024, section 3.3
        strength = annealed_strength(timesteps, recipe.noise_strength, total)
    if recipe.noise == "gaussian" or recipe.noise_strength == 0:
        return timesteps, torch.randn(shape, generator=generator)
    return timesteps, multi_resolution_noise(shape, strength, generator=generator)


@dataclass(frozen=True)
class Objective:
    """The training loss of a recipe, as a function of the U-Net, a batch and its index.

    `prompt` is the encoded empty prompt (1, T, width). `vae` may be None when every batch comes as latents and no term
    of the loss compares pixels. Raises ConfigError for a term that cannot be imported, and RecipeError for a kind of
    prediction that makes no sense with the recipe.
    """

    recipe: Recipe
    diffusion: Diffusion
    prompt: Float[Tensor, "1 T width"]
    vae: AutoencoderKL | None
    seed: int

    def __post_init__(self) -> None:
        self.terms  # noqa: B018 - what cannot be imported is refused here, and not in the first step
        self.recipe.check_prediction(self.diffusion.prediction_type)
        if self.vae is not None and self.recipe.pixels:
            self.vae.enable_gradient_checkpointing()  # the decoder's activations would be most of the memory

    @cached_property
    def terms(self) -> list[tuple[LossTerm, Callable[..., Tensor]]]:
        """The terms of the loss that count, with their functions."""
        return [
            (term, imported(term.term, f"recipe.loss.{name}.term"))
            for name, term in self.recipe.loss.items()
            if term.weight > 0
        ]

    def __call__(self, unet: nn.Module, batch: PixelBatch | LatentBatch, g: int) -> Float[Tensor, ""]:
        """The loss of global micro-batch `g`."""
        if isinstance(batch, PixelBatch):
            assert self.vae is not None
            batch = encode_batch(self.vae, batch, self.recipe.parts)
        there = {name: getattr(batch, name) for name in self.recipe.parts}
        device, total = self.prompt.device, self.diffusion.num_train_timesteps
        batch_size, *shape = there["image_latent"].shape
        timesteps, noise = draw((batch_size, *shape), self.recipe, total, self.seed, g)
        if device.type == "cuda":  # a copy from memory that is not page-locked would wait for the GPU's earlier work
            timesteps, noise = timesteps.pin_memory(), noise.pin_memory()
        there = {name: part.to(device, non_blocking=True) for name, part in there.items()}
        # Latents are stored in half precision but compared in float32.
        there = {name: part.float() if part.is_floating_point() else part for name, part in there.items()}
        timesteps, noise = timesteps.to(device, non_blocking=True), noise.to(device, non_blocking=True)
        image, depth = there["image_latent"], there.get("depth_latent", noise)
        silent = self.recipe.switches.silent
        # An input without a signal is at the last noise level, whatever timestep the U-Net is told.
        level = torch.full_like(timesteps, total - 1) if silent else timesteps
        # What is predicted: depth, and with a task switch the image too (Lotus, ICLR 2025, section 4.3).
        tasks = [depth, image] if self.recipe.reconstruct > 0 else [depth]
        noisy = [noise if silent else self.diffusion.add_noise(latent, noise, timesteps) for latent in tasks]
        prediction, *again = self._predict(unet, image, noisy, timesteps)
        loss = prediction.new_zeros(())
        decoded = None
        for term, compare in self.terms:
            options = term.options or {}
            if term.domain == "latents":
                # For v-prediction sqrt(abar) noise - sqrt(1 - abar) x0: Salimans and Ho, ICLR 2022, section 4.
                target = self.diffusion.target(depth, noise, level)
                value = compare(prediction, target, there["valid_latent"], **options)
            else:
                # The clean latent that the prediction implies, decoded once for all terms on pixels.
                if decoded is None:
                    assert self.vae is not None
                    decoded = decode_depth(self.vae, self.diffusion.clean(prediction, noisy[0], level))
                value = compare(decoded, *(there[name] for name in PIXELS), **options)
            loss = loss + term.weight * value
        for one in again:
            loss = loss + self.recipe.reconstruct * F.mse_loss(one, self.diffusion.target(image, noise, level))
        return loss

    def _predict(
        self, unet: nn.Module, image: Tensor, noisy: list[Tensor], timesteps: Tensor
    ) -> tuple[Float[Tensor, "B 4 h w"], ...]:
        """The U-Net's prediction for each of the noisy latents, from one call."""
        tasks, labels, latent = len(noisy), None, noisy[0]
        if tasks > 1:
            labels = torch.cat([task_labels(len(image), image=flag, device=image.device) for flag in (False, True)])
            image, timesteps, latent = image.repeat(tasks, 1, 1, 1), timesteps.repeat(tasks), torch.cat(noisy)
        seen = image if self.recipe.noise == "none" else torch.cat([image, latent], dim=1)
        prompt = self.prompt.expand(len(image), -1, -1)
        return unet(seen, timesteps, prompt, class_labels=labels, return_dict=False)[0].float().chunk(tasks)
