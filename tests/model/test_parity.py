"""Our pipeline and diffusers' with the same weights and start latents give the same depth to 1e-4."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
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
    """A photo-like test picture: smooth shading with an edge and some texture."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    shading = torch.stack([x * y, (x - y).abs(), (x > 0.4).float()])
    noise = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(9))
    return (0.8 * shading + 0.2 * noise).clip(0, 1)


def start(count: int, height: int, width: int) -> torch.Tensor:
    shape = (count, 4, -(-height // 8), -(-width // 8))
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def compare(model: MarigoldDepth, size: tuple[int, int], steps: int, resolution: int = 0) -> None:
    image = picture(*size)
    longest = max(size)
    inner = size if resolution == 0 else tuple(side * resolution // longest for side in size)
    latents = start(1, *inner)
    ours = model(image, steps=steps, latents=latents, processing_resolution=resolution).depth
    theirs = in_diffusers(model)(
        image, num_inference_steps=steps, latents=latents, processing_resolution=resolution, output_type="pt"
    ).prediction
    assert theirs.std() > 0.01, "a flat prediction would prove nothing"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("steps", [1, 4, 10, 50])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("size", [(96, 128), (97, 131)])
def test_depth(depth_model: MarigoldDepth, size: tuple[int, int], spacing: str, steps: int):
    compare(with_scheduler(depth_model, timestep_spacing=spacing), size, steps)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4, 10, 50])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_depth_of_a_large_picture(depth_model: MarigoldDepth, spacing: str, steps: int):
    compare(with_scheduler(depth_model, timestep_spacing=spacing), (480, 640), steps)


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


@pytest.mark.parametrize("resolution", [64, 160])
def test_depth_at_another_resolution(depth_model: MarigoldDepth, resolution: int):
    """Shrunk and grown before the model; the way back up is the same in both, the way down is not (see below)."""
    if resolution == 64:
        compare(depth_model, (97, 131), 2, resolution)
        return
    size = (64, 96)
    image, latents = picture(*size), start(1, 106, 160)
    ours = depth_model(image, steps=2, latents=latents, processing_resolution=160).depth
    theirs = in_diffusers(depth_model)(
        image,
        num_inference_steps=2,
        latents=latents,
        processing_resolution=160,
        match_input_resolution=False,
        output_type="pt",
    ).prediction
    # diffusers shrinks the result without an antialiasing filter; with one it has to be ours.
    expected = torch.nn.functional.interpolate(theirs, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(96, 128), (97, 131)])
@pytest.mark.parametrize(("steps", "zero_snr"), [(1, False), (4, False), (4, True)])
def test_an_ensemble_with_the_published_alignment(
    depth_model: MarigoldDepth, size: tuple[int, int], steps: int, zero_snr: bool
):
    """That alignment turns a difference of 1e-7 into one of 0.1, so the members have to agree bit for bit."""
    model = with_scheduler(depth_model, timestep_spacing="trailing", rescale_betas_zero_snr=zero_snr)
    image, latents = picture(*size), start(5, *size)
    ours = model(image, steps=steps, ensemble_size=5, latents=latents, ensemble_method="diffusers")
    theirs = in_diffusers(model)(
        image,
        num_inference_steps=steps,
        ensemble_size=5,
        latents=latents,
        processing_resolution=0,
        output_type="pt",
        output_uncertainty=True,
    )
    torch.testing.assert_close(ours.depth, theirs.prediction, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.uncertainty, theirs.uncertainty, atol=1e-4, rtol=0)


def test_two_pictures_with_three_members_each(depth_model: MarigoldDepth):
    """The latents of a picture's members lie together, as in diffusers."""
    image, latents = picture(40, 56, batch=2), start(6, 40, 56)
    ours = depth_model(image, steps=1, ensemble_size=3, latents=latents, ensemble_method="diffusers")
    theirs = in_diffusers(depth_model)(
        image, num_inference_steps=1, ensemble_size=3, latents=latents, processing_resolution=0, output_type="pt"
    )
    torch.testing.assert_close(ours.depth, theirs.prediction, atol=1e-4, rtol=0)


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
