"""The diffusion process and its deterministic reversal (DDIM, Song et al. 2021), right for every number of steps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

PREDICTION_TYPES = ("v_prediction", "epsilon", "sample")
SPACINGS = ("leading", "trailing")
BETA_SCHEDULES = ("scaled_linear", "linear")


class SamplerError(ValueError):
    """Raised for unsupported scheduler settings and for a number of steps out of range."""


class Step(NamedTuple):
    """One step of DDIM: from noise level `alpha` at `timestep` to `alpha_next` (both cumulative products)."""

    timestep: int
    alpha: Float[Tensor, ""]
    alpha_next: Float[Tensor, ""]


@dataclass(frozen=True)
class Diffusion:
    """The settings of a diffusion process, named as in diffusers' DDIM scheduler configuration, with its defaults."""

    num_train_timesteps: int = 1000
    beta_schedule: str = "linear"
    beta_start: float = 0.0001
    beta_end: float = 0.02
    prediction_type: str = "epsilon"
    timestep_spacing: str = "leading"
    steps_offset: int = 0
    set_alpha_to_one: bool = True
    rescale_betas_zero_snr: bool = False
    clip_sample: bool = True
    clip_sample_range: float = 1.0

    def __post_init__(self) -> None:
        """Raise SamplerError, naming the key, for unsupported settings."""
        for key, known in (
            ("prediction_type", PREDICTION_TYPES),
            ("timestep_spacing", SPACINGS),
            ("beta_schedule", BETA_SCHEDULES),
        ):
            if getattr(self, key) not in known:
                raise SamplerError(f"scheduler: {key} is {getattr(self, key)!r}, known: {', '.join(known)}")
        if self.prediction_type == "epsilon" and self.rescale_betas_zero_snr:
            # x_0 = (x_t - sigma eps) / signal, and the signal is 0.
            raise SamplerError(
                "scheduler: prediction_type 'epsilon' cannot start from zero signal "
                "(rescale_betas_zero_snr); use 'v_prediction' or 'sample'"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Diffusion":
        """Read a diffusers scheduler configuration; an absent key has the default that diffusers' DDIM gives it.

        Raises SamplerError for a setting that changes the process and is not supported.
        """
        unsupported = [key for key in ("trained_betas", "thresholding") if config.get(key)]
        if str(config.get("_class_name", "")).startswith("LCM"):
            unsupported.append("_class_name: LCMScheduler")
        if unsupported:
            raise SamplerError(f"scheduler: not supported: {', '.join(unsupported)}")
        return cls(**{field.name: config[field.name] for field in fields(cls) if field.name in config})

    @cached_property
    def alphas_cumprod(self) -> Float[Tensor, "T"]:
        """Fraction of the signal's variance left at each timestep; (T,), float32, on the CPU.

        Computed in float32 and in diffusers' order, whose rounding is part of the published noise levels.
        """
        power = 0.5 if self.beta_schedule == "scaled_linear" else 1.0
        betas = torch.linspace(self.beta_start**power, self.beta_end**power, self.num_train_timesteps) ** (1 / power)
        alphas_cumprod = (1 - betas).cumprod(0)  # abar_t = prod over s <= t of 1 - beta_s (Ho et al. 2020, eq. 4)
        if not self.rescale_betas_zero_snr:
            return alphas_cumprod
        # Shift the last signal amplitude to 0 and stretch so that the first stays (Lin et al. 2024, algorithm 1).
        amplitude = alphas_cumprod.sqrt()
        first, last = amplitude[0].clone(), amplitude[-1].clone()
        shifted = ((amplitude - last) * (first / (first - last))) ** 2
        betas = 1 - torch.cat([shifted[:1], shifted[1:] / shifted[:-1]])
        return (1 - betas).cumprod(0)

    def add_noise(
        self, latent: Float[Tensor, "B 4 h w"], noise: Float[Tensor, "B 4 h w"], timestep: Int[Tensor, "B"]
    ) -> Float[Tensor, "B 4 h w"]:
        """Forward process: sqrt(a) latent + sqrt(1 - a) noise, a = alphas_cumprod at each sample's timestep."""
        signal, sigma = self._amplitudes(timestep, latent)
        return signal * latent + sigma * noise  # x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps (Ho et al. 2020, eq. 4)

    def target(
        self, latent: Float[Tensor, "B 4 h w"], noise: Float[Tensor, "B 4 h w"], timestep: Int[Tensor, "B"]
    ) -> Float[Tensor, "B 4 h w"]:
        """Return what the U-Net learns to predict for these inputs of `add_noise`: v, the noise or the latent."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return latent
        signal, sigma = self._amplitudes(timestep, latent)
        return signal * noise - sigma * latent  # v = alpha eps - sigma x (Salimans & Ho 2022, section 4)

    def steps(self, count: int) -> list[Step]:
        """List the `count` DDIM steps, noisiest first.

        Every step leads to the noise level of the next scheduled one, the last to no noise at all or, without
        `set_alpha_to_one`, to timestep 0's. Raises SamplerError unless 1 <= count <= T.
        """
        total = self.num_train_timesteps
        if not 1 <= count <= total:
            raise SamplerError(f"sampler: {count} steps; the model was trained on 1 to {total}")
        if self.timestep_spacing == "trailing":
            # Begins at the last timestep, which matches the input, pure noise (Lin et al. 2024, section 3.3).
            timesteps = [round(Fraction(total * (count - i), count)) - 1 for i in range(count)]
        else:
            stride = total // count
            # With as many steps as timesteps the offset would point past the end of the table.
            offset = min(self.steps_offset, total - 1 - (count - 1) * stride)
            timesteps = [i * stride + offset for i in reversed(range(count))]
        final = torch.tensor(1.0) if self.set_alpha_to_one else self.alphas_cumprod[0]
        # Not alpha of t - T // count, which is diffusers' and misses the next step unless count divides T.
        alphas = [*self.alphas_cumprod[timesteps], final]
        return [Step(t, alphas[i], alphas[i + 1]) for i, t in enumerate(timesteps)]

    def step(
        self, prediction: Float[Tensor, "B 4 h w"], latent: Float[Tensor, "B 4 h w"], step: Step
    ) -> Float[Tensor, "B 4 h w"]:
        """Take one DDIM step from `latent`, given the model's prediction there (Song et al. 2021, eq. 12, eta 0)."""
        clean, noise = self.separate(prediction, latent, step)
        if self.clip_sample:
            clean = clean.clip(-self.clip_sample_range, self.clip_sample_range)
        return step.alpha_next**0.5 * clean + (1 - step.alpha_next) ** 0.5 * noise

    def separate(
        self, prediction: Float[Tensor, "B 4 h w"], latent: Float[Tensor, "B 4 h w"], step: Step
    ) -> tuple[Float[Tensor, "B 4 h w"], Float[Tensor, "B 4 h w"]]:
        """Split `latent` into clean latent and noise, given the model's prediction at a step."""
        return self._separate(prediction, latent, step.alpha**0.5, (1 - step.alpha) ** 0.5)

    def clean(
        self, prediction: Float[Tensor, "B 4 h w"], latent: Float[Tensor, "B 4 h w"], timestep: Int[Tensor, "B"]
    ) -> Float[Tensor, "B 4 h w"]:
        """The clean latent that a prediction for `latent` implies, at the noise level of each sample's timestep."""
        return self._separate(prediction, latent, *self._amplitudes(timestep, latent))[0]

    def one_pass(
        self, prediction: Float[Tensor, "B 4 h w"], latent: Float[Tensor, "B 4 h w"], timestep: int
    ) -> Float[Tensor, "B 4 h w"]:
        """Step from `timestep` straight to the clean latent, regardless of `set_alpha_to_one`."""
        # Stable Diffusion's `false` would leave the noise of timestep 0 in: 0.03 of the start.
        return self.step(prediction, latent, Step(timestep, self.alphas_cumprod[timestep], torch.tensor(1.0)))

    def sample(
        self,
        predict: Callable[[Tensor, int], Tensor],
        start: Float[Tensor, "B 4 h w"],
        count: int,
    ) -> Float[Tensor, "B 4 h w"]:
        """Turn the noise `start` into latents in `count` steps of `predict(latent, timestep)`.

        The latent is kept in the precision of `start`, whatever the precision of the predictions.
        """
        latent = start
        for step in self.steps(count):
            latent = self.step(predict(latent, step.timestep).to(latent.dtype), latent, step)
        return latent

    def _separate(self, prediction: Tensor, latent: Tensor, signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Solve `latent` = signal x clean + sigma x noise for clean latent and noise."""
        # The prediction is the second equation; signal^2 + sigma^2 = 1.
        if self.prediction_type == "v_prediction":
            return signal * latent - sigma * prediction, signal * prediction + sigma * latent
        if self.prediction_type == "epsilon":
            return (latent - sigma * prediction) / signal, prediction
        return prediction, (latent - signal * prediction) / sigma

    def _amplitudes(self, timestep: Int[Tensor, "B"], like: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas_cumprod.to(timestep.device, non_blocking=True)[timestep].reshape(-1, 1, 1, 1)
        return alpha.sqrt().to(like), (1 - alpha).sqrt().to(like)
