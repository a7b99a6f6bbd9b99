"""Our pipeline and diffusers' with the same weights and start latents give the same depth to 1e-4."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, MarigoldDepthPipeline

from marigold.model.pipeline import DepthSettings, MarigoldDepth
from marigold.model.recipe import Switches


def with_scheduler(model: MarigoldDepth, settings: DepthSettings | None = None, **changes: object) -> MarigoldDepth:
    config = {**model.backbone.scheduler_config, **changes}
    return MarigoldDepth(replace(model.backbone, scheduler_config=config), settings or model.settings)


def in_diffusers(model: MarigoldDepth) -> MarigoldDepthPipeline:
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


def picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    """A photo-like test image: smooth shading with an edge and some texture."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    shading = torch.stack([x * y, (x - y).abs(), (x > 0.4).float()])
    noise = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(9))
    return (0.8 * shading + 0.2 * noise).clip(0, 1)


def start(count: int, height: int, width: int) -> torch.Tensor:
    shape = (count, 4, -(-height // 8), -(-width // 8))
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def by_diffusers(model: MarigoldDepth, image: torch.Tensor, steps: int, latents: torch.Tensor, **more: object):
    given = {"processing_resolution": 0, "output_type": "pt", **more}
    return in_diffusers(model)(image, num_inference_steps=steps, latents=latents, **given)


def compare(model: MarigoldDepth, size: tuple[int, int], steps: int, resolution: int = 0) -> None:
    image, longest = picture(*size), max(size)
    latents = start(1, *(side * (resolution or longest) // longest for side in size))
    ours = model(image, steps=steps, latents=latents, processing_resolution=resolution).depth
    theirs = by_diffusers(model, image, steps, latents, processing_resolution=resolution).prediction
    assert theirs.std() > 0.01, "a flat prediction would prove nothing"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [1, 4, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("size", [(97, 131), pytest.param((480, 640), marks=pytest.mark.slow)])
def test_depth(depth_model: MarigoldDepth, size: tuple[int, int], spacing: str, steps: int):
    compare(with_scheduler(depth_model, timestep_spacing=spacing), size, steps)


@pytest.mark.parametrize(
    "changes",
    [
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
        {"prediction_type": "sample"},
        {"prediction_type": "epsilon"},
    ],
)
def test_depth_with_other_processes(depth_model: MarigoldDepth, changes: dict):
    compare(with_scheduler(depth_model, **changes), (40, 56), 4)


def test_depth_at_another_resolution(depth_model: MarigoldDepth):
    """Shrunk and grown before the model; the way back up is the same in both, the way down is not (see below)."""
    compare(depth_model, (97, 131), 2, resolution=64)
    image, latents = picture(64, 96), start(1, 106, 160)
    ours = depth_model(image, steps=2, latents=latents, processing_resolution=160).depth
    theirs = by_diffusers(depth_model, image, 2, latents, processing_resolution=160, match_input_resolution=False)
    # diffusers shrinks the result without an antialiasing filter; with one it has to be ours.
    expected = F.interpolate(theirs.prediction, (64, 96), mode="bilinear", antialias=True)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "steps", "zero_snr", "members", "images"),
    [((40, 56), 1, False, 5, 1), ((57, 83), 4, True, 5, 1), ((40, 56), 1, False, 3, 2)],
)
def test_an_ensemble_with_the_published_alignment(depth_model: MarigoldDepth, size, steps, zero_snr, members, images):
    """That alignment turns a difference of 1e-7 into one of 0.1, so the members have to agree bit for bit.

    The latents of an image's members lie together, as in diffusers.
    """
    model = with_scheduler(depth_model, timestep_spacing="trailing", rescale_betas_zero_snr=zero_snr)
    image, latents = picture(*size, batch=images), start(members * images, *size)
    ours = model(image, steps=steps, ensemble_size=members, latents=latents, ensemble_method="diffusers")
    theirs = by_diffusers(model, image, steps, latents, ensemble_size=members, output_uncertainty=True)
    torch.testing.assert_close(ours.depth, theirs.prediction, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.uncertainty, theirs.uncertainty, atol=1e-4, rtol=0)


@pytest.mark.parametrize("prediction_type", ["depth", "disparity"])
def test_our_folder_loads_in_diffusers(depth_model: MarigoldDepth, tmp_path: Path, prediction_type: str):
    settings = DepthSettings(Switches(mapping=prediction_type), True, True, 2, 40)
    with_scheduler(depth_model, settings, timestep_spacing="trailing").save_pretrained(tmp_path)
    theirs = MarigoldDepthPipeline.from_pretrained(tmp_path)
    theirs.set_progress_bar_config(disable=True)
    assert theirs.config.prediction_type == prediction_type
    assert (theirs.default_denoising_steps, theirs.default_processing_resolution) == (2, 40)
    assert theirs.scheduler.config.timestep_spacing == "trailing"
    image, latents = picture(48, 80), start(1, 24, 40)
    ours = MarigoldDepth.from_pretrained(tmp_path)(image, latents=latents)
    torch.testing.assert_close(
        ours.depth, theirs(image, latents=latents, output_type="pt").prediction, atol=1e-4, rtol=0
    )
    assert ours.space == f"affine_{prediction_type}"


def test_a_folder_of_diffusers_loads_in_ours(depth_model: MarigoldDepth, tmp_path: Path):
    in_diffusers(depth_model).save_pretrained(tmp_path)
    loaded = MarigoldDepth.from_pretrained(tmp_path)
    assert loaded.settings == depth_model.settings
    image, latents = picture(40, 56), start(1, 40, 56)
    assert torch.equal(loaded(image, latents=latents).depth, depth_model(image, latents=latents).depth)
