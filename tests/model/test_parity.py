"""Our pipeline and diffusers' with the same weights and start latents give the same depth to 1e-4."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, MarigoldDepthPipeline
from tiny_models import sample_image, start, with_scheduler

from marigold.model.pipeline import MarigoldDepth


def wrapped(model: MarigoldDepth) -> MarigoldDepthPipeline:
    """diffusers' pipeline around the same modules."""
    parts, settings = model.backbone, model.settings
    pipeline = MarigoldDepthPipeline(
        unet=parts.unet,
        vae=parts.vae,
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        scheduler=DDIMScheduler.from_config(parts.scheduler_config),
        prediction_type=settings.switches.mapping,
        scale_invariant=settings.scale_invariant,
        shift_invariant=settings.shift_invariant,
        default_denoising_steps=settings.default_denoising_steps,
        default_processing_resolution=settings.default_processing_resolution,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def by_diffusers(model: MarigoldDepth, image: torch.Tensor, steps: int, latents: torch.Tensor, **more: object):
    given = {"processing_resolution": 0, "output_type": "pt", **more}
    made = wrapped(model)(image, num_inference_steps=steps, latents=latents, **given)
    assert made.prediction.std() > 0.01, "a flat prediction would prove nothing"
    return made


@pytest.mark.parametrize(
    ("size", "resolution", "steps", "changes"),
    [
        ((97, 131), 0, 1, {"timestep_spacing": "leading"}),
        ((97, 131), 64, 4, {"timestep_spacing": "trailing"}),
        ((40, 56), 0, 4, {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
        ((40, 56), 0, 4, {"prediction_type": "sample"}),
        ((40, 56), 0, 4, {"prediction_type": "epsilon"}),
        pytest.param((480, 640), 0, 50, {"timestep_spacing": "leading"}, marks=pytest.mark.slow),
    ],
)
def test_depth(depth_model: MarigoldDepth, size: tuple[int, int], resolution: int, steps: int, changes: dict):
    model, image, longest = with_scheduler(depth_model, **changes), sample_image(*size), max(size)
    latents = start(1, *(side * (resolution or longest) // longest for side in size))
    ours = model(image, steps=steps, latents=latents, processing_resolution=resolution).depth
    theirs = by_diffusers(model, image, steps, latents, processing_resolution=resolution).prediction
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_depth_at_a_larger_resolution(depth_model: MarigoldDepth):
    image, latents = sample_image(32, 48), start(1, 53, 80)
    ours = depth_model(image, steps=2, latents=latents, processing_resolution=80).depth
    theirs = by_diffusers(depth_model, image, 2, latents, processing_resolution=80, match_input_resolution=False)
    # diffusers shrinks the result without an antialiasing filter; with one it has to be ours.
    expected = F.interpolate(theirs.prediction, (32, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "steps", "zero_snr", "members", "images"), [((57, 83), 4, True, 3, 1), ((40, 56), 1, False, 3, 2)]
)
def test_an_ensemble_with_the_published_alignment(depth_model: MarigoldDepth, size, steps, zero_snr, members, images):
    """That alignment turns a difference of 1e-7 into one of 0.1, so the members have to agree bit for bit.

    The latents of an image's members lie together, as in diffusers.
    """
    model = with_scheduler(depth_model, timestep_spacing="trailing", rescale_betas_zero_snr=zero_snr)
    image, latents = sample_image(*size, batch=images), start(members * images, *size)
    ours = model(image, steps=steps, ensemble_size=members, latents=latents, ensemble_method="diffusers")
    theirs = by_diffusers(model, image, steps, latents, ensemble_size=members, output_uncertainty=True)
    torch.testing.assert_close(ours.depth, theirs.prediction, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.uncertainty, theirs.uncertainty, atol=1e-4, rtol=0)


def test_a_folder_of_diffusers_loads_in_ours(depth_model: MarigoldDepth, tmp_path: Path):
    wrapped(depth_model).save_pretrained(tmp_path)
    loaded = MarigoldDepth.from_pretrained(tmp_path)
    assert loaded.settings == depth_model.settings
    image, latents = sample_image(40, 56), start(1, 40, 56)
    assert torch.equal(loaded(image, latents=latents).depth, depth_model(image, latents=latents).depth)
