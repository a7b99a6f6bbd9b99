import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from marigold.miniature.random_base import SD2_SCHEDULER
from marigold.model.diffusion import Diffusion, SamplerError


def theirs(cls: type, settings: dict):
    return cls.from_config({key: value for key, value in settings.items() if key != "skip_prk_steps"})


def random_latent(seed: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 4, 3, 5, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
def test_noise_levels_are_those_of_diffusers(beta_schedule: str, zero_snr: bool):
    settings = {**SD2_SCHEDULER, "beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr}
    found, expected = Diffusion.from_config(settings).alphas_cumprod, theirs(DDIMScheduler, settings).alphas_cumprod
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert (found[-1].item() == 0) == zero_snr


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_training_pair_is_that_of_diffusers(prediction_type: str):
    settings = {**SD2_SCHEDULER, "prediction_type": prediction_type}
    diffusion, scheduler = Diffusion.from_config(settings), theirs(DDPMScheduler, settings)
    latent, noise, timestep = random_latent(0, 3), random_latent(1, 3), torch.tensor([0, 421, 999])
    found, expected = (one.add_noise(latent, noise, timestep) for one in (diffusion, scheduler))
    torch.testing.assert_close(found, expected)
    velocity = scheduler.get_velocity(latent, noise, timestep)
    expected = {"v_prediction": velocity, "epsilon": noise, "sample": latent}[prediction_type]
    torch.testing.assert_close(diffusion.target(latent, noise, timestep), expected)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "v_prediction", "set_alpha_to_one": True},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        {"prediction_type": "epsilon"},
        {"prediction_type": "sample", "rescale_betas_zero_snr": True, "set_alpha_to_one": True},
        {"clip_sample": True, "clip_sample_range": 0.5},
    ],
)
# The numbers of steps for which diffusers' previous step, t - 1000 // N, is the next one that is scheduled.
@pytest.mark.parametrize("count", [1, 2, 4, 5, 8, 10, 20, 25, 40, 50])
def test_sampling_is_that_of_diffusers(spacing: str, changes: dict, count: int):
    settings = {**SD2_SCHEDULER, "timestep_spacing": spacing, **changes}

    def model(latent: torch.Tensor, timestep: int) -> torch.Tensor:
        return torch.tanh(latent.roll(1, -1) * 0.7 + timestep / 1000)

    start = expected = random_latent(0, 2)
    scheduler = theirs(DDIMScheduler, settings)
    scheduler.set_timesteps(count)
    for timestep in scheduler.timesteps:
        expected = scheduler.step(model(expected, int(timestep)), timestep, expected).prev_sample
    # Dividing by a small signal amplifies float32's rounding when the noise is predicted.
    tolerance = 1e-3 if settings["prediction_type"] == "epsilon" else 1e-4
    found = Diffusion.from_config(settings).sample(model, start, count)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=tolerance)


@pytest.mark.parametrize(
    ("spacing", "literature"),
    [("leading", {1: [1], 4: [751, 501, 251, 1]}), ("trailing", {1: [999], 4: [999, 749, 499, 249]})],
)
def test_every_number_of_steps_is_a_falling_schedule_that_meets_end_to_end(spacing: str, literature: dict):
    diffusion = Diffusion.from_config({**SD2_SCHEDULER, "timestep_spacing": spacing})
    table = diffusion.alphas_cumprod
    for count in (*range(1, 52), 333, 600, 999, 1000):
        steps = diffusion.steps(count)
        timesteps = [step.timestep for step in steps]
        assert len(steps) == count
        assert timesteps == literature.get(count, sorted(set(timesteps), reverse=True))
        assert torch.equal(torch.stack([step.alpha for step in steps]), table[timesteps])
        assert torch.equal(torch.stack([step.alpha_next for step in steps])[:-1], table[timesteps[1:]])
        assert 0 <= timesteps[-1] <= timesteps[0] <= 999
        assert spacing == "leading" or timesteps[0] == 999
    for count in (0, 1001):
        with pytest.raises(SamplerError, match="1 to 1000"):
            diffusion.steps(count)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_gaussian_data_shrinks_as_the_closed_form_says(spacing: str, prediction_type: str):
    """For data N(0, s^2) the exact prediction is linear, and a DDIM step multiplies the latent by a known factor.

    The factor of one step from a to b (noise levels) is the covariance of the two marginals over the variance of the
    first: (sqrt(ab) s^2 + sqrt((1-a)(1-b))) / (a s^2 + 1 - a). The counts include some that diffusers gets wrong.
    """
    settings = {**SD2_SCHEDULER, "timestep_spacing": spacing, "prediction_type": prediction_type}
    settings["set_alpha_to_one"] = True
    alphas = theirs(DDIMScheduler, settings).alphas_cumprod.double()
    spread, start = 0.5, random_latent(6).double()

    def exact(latent: torch.Tensor, timestep: int) -> torch.Tensor:
        a = alphas[timestep]
        clean = latent * a.sqrt() * spread**2 / (a * spread**2 + 1 - a)
        epsilon = (latent - a.sqrt() * clean) / (1 - a).sqrt()
        velocity = a.sqrt() * epsilon - (1 - a).sqrt() * clean
        return {"epsilon": epsilon, "sample": clean, "v_prediction": velocity}[prediction_type]

    for count in (1, 3, 7, 30, 333):
        trailing = [round(1000 - i * 1000 / count) - 1 for i in range(count)]
        leading = [i * (1000 // count) + 1 for i in reversed(range(count))]
        levels = [*(alphas[t].item() for t in (trailing if spacing == "trailing" else leading)), 1.0]
        factor = 1.0
        for a, b in itertools.pairwise(levels):
            variance = a * spread**2 + 1 - a
            factor *= (math.sqrt(a * b) * spread**2 + math.sqrt((1 - a) * (1 - b))) / variance
        result = Diffusion.from_config(settings).sample(exact, start, count)
        torch.testing.assert_close(result, start * factor, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"prediction_type": "flow"}, "prediction_type"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"_class_name": "LCMScheduler"}, "LCMScheduler"),
        ({"prediction_type": "epsilon", "rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
    ],
)
def test_unsupported_settings_are_refused_by_name(changes: dict, key: str):
    with pytest.raises(SamplerError, match=key):
        Diffusion.from_config({**SD2_SCHEDULER, **changes})


def test_absent_settings_have_the_defaults_of_diffusers():
    defaults, ours = DDIMScheduler().config, Diffusion.from_config({})
    assert vars(ours) == {key: defaults[key] for key in ours.__dataclass_fields__}
