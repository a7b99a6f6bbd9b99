"""Our pipeline and diffusers' with the same weights and start latents give the same depth to 1e-4."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_models import in_diffusers, sample_image, start, with_scheduler

from marigold.model.pipeline import MarigoldDepth


def by_diffusers(folder: Path, model: MarigoldDepth, image: torch.Tensor, **given: object):
    """What diffusers' own pipeline makes of the saved model."""
    made = in_diffusers(model.save_pretrained(folder))(
        image, output_type="pt", **{"processing_resolution": 0, **given}
    )
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
def test_depth(depth_model: MarigoldDepth, tmp_path: Path, size, resolution: int, steps: int, changes: dict):
    model, image, longest = with_scheduler(depth_model, **changes), sample_image(*size), max(size)
    latents = start(1, *(side * (resolution or longest) // longest for side in size))
    given = {"latents": latents, "processing_resolution": resolution}
    ours = model(image, steps=steps, **given).depth
    theirs = by_diffusers(tmp_path, model, image, num_inference_steps=steps, **given).prediction
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_depth_at_a_larger_resolution(depth_model: MarigoldDepth, tmp_path: Path):
    image, given = sample_image(32, 48), {"latents": start(1, 53, 80), "processing_resolution": 80}
    ours = depth_model(image, **given).depth
    theirs = by_diffusers(tmp_path, depth_model, image, match_input_resolution=False, **given)
    # diffusers shrinks the result without an antialiasing filter; with one it has to be ours.
    expected = F.interpolate(theirs.prediction, (32, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("size", "zero_snr", "images"), [((57, 83), True, 1), ((40, 56), False, 2)])
def test_an_ensemble_with_the_published_alignment(depth_model: MarigoldDepth, tmp_path: Path, size, zero_snr, images):
    """That alignment turns a difference of 1e-7 into one of 0.1, so the members have to agree bit for bit.

    The latents of an image's members lie together, as in diffusers.
    """
    model = with_scheduler(depth_model, timestep_spacing="trailing", rescale_betas_zero_snr=zero_snr)
    image, given = sample_image(*size, batch=images), {"ensemble_size": 3, "latents": start(3 * images, *size)}
    ours = model(image, ensemble_method="diffusers", **given)
    theirs = by_diffusers(tmp_path, model, image, output_uncertainty=True, **given)
    torch.testing.assert_close(ours.depth, theirs.prediction, atol=1e-4, rtol=0)
    torch.testing.assert_close(ours.uncertainty, theirs.uncertainty, atol=1e-4, rtol=0)


def test_a_folder_of_diffusers_loads_in_ours(depth_model: MarigoldDepth, tmp_path: Path):
    in_diffusers(depth_model.save_pretrained(tmp_path / "ours")).save_pretrained(tmp_path / "theirs")
    loaded = MarigoldDepth.from_pretrained(tmp_path / "theirs")
    assert replace(loaded.settings, recipe=None) == depth_model.settings
    image = sample_image(40, 56)
    assert torch.equal(loaded(image).depth, depth_model(image).depth)
