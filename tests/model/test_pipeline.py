import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import tiny_model

import marigold
from marigold.model.noise import start_noise
from marigold.model.pipeline import MarigoldDepth


def images(batch: int, height: int = 32, width: int = 40) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_the_package_exports_it_and_imports_lightly():
    assert marigold.MarigoldDepth is MarigoldDepth
    code = "import sys, marigold; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="NoSuchThing"):
        marigold.NoSuchThing  # noqa: B018


def test_the_result_of_a_member_does_not_depend_on_its_company(depth_model: MarigoldDepth):
    image = images(2)
    together = depth_model(image, ensemble_size=3, seed=5).depth
    for batch_size in (1, 4):
        again = depth_model(image, ensemble_size=3, seed=5, batch_size=batch_size).depth
        torch.testing.assert_close(again, together, atol=1e-5, rtol=0)
    alone = depth_model(image[1:], ensemble_size=3, seed=5).depth
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=0)


def test_the_seed_decides_the_start_and_explicit_latents_are_one(depth_model: MarigoldDepth):
    image, draws = images(1), [start_noise(seed, member, (4, 4, 5)) for seed in range(3) for member in range(3)]
    assert len({draw.numpy().tobytes() for draw in draws}) == 9
    first, other = (depth_model(image, seed=seed, ensemble_size=3) for seed in (1, 2))
    assert not torch.equal(first.depth, other.depth)
    given = depth_model(image, latents=torch.cat(draws[3:6]), ensemble_size=3)
    assert torch.equal(given.depth, first.depth)
    assert torch.equal(given.uncertainty, first.uncertainty)


def test_an_image_is_encoded_once_and_every_step_of_every_member_announced(depth_model, monkeypatch):
    vae, encoded, taken = depth_model.backbone.vae, [], []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda image: (encoded.append(len(image)), encode(image))[1])
    depth_model(images(1), steps=2, ensemble_size=3, batch_size=2, on_step=taken.append)
    assert (encoded, taken) == ([1], [2, 2, 1, 1])


def test_any_kind_of_image_is_taken(depth_model: MarigoldDepth):
    values = (images(1)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    expected = depth_model(torch.from_numpy(values).permute(2, 0, 1)[None] / 255)
    assert expected.uncertainty is None
    for image in (Image.fromarray(values), values, torch.from_numpy(values).permute(2, 0, 1)):
        torch.testing.assert_close(depth_model(image).depth, expected.depth)


@pytest.mark.parametrize(
    ("size", "resolution"), [((1, 1), 0), ((8, 200), 16), ((200, 3), 16), ((200, 3), 0), ((3840, 5120), 64)]
)
def test_small_long_and_huge_images(depth_model: MarigoldDepth, size: tuple[int, int], resolution: int):
    made = depth_model(images(1, *size), processing_resolution=resolution, steps=1, ensemble_size=2)
    assert made.depth.shape == made.uncertainty.shape == (1, 1, *size)
    assert 0 <= made.depth.min() <= made.depth.max() <= 1
    assert made.uncertainty.min() >= 0


def test_defaults_come_from_the_checkpoint_or_are_asked_for(depth_model: MarigoldDepth):
    image = images(1)
    settings = replace(depth_model.settings, default_denoising_steps=3, default_processing_resolution=16)
    model = MarigoldDepth(depth_model.backbone, settings)
    assert torch.equal(model(image).depth, model(image, steps=3, processing_resolution=16).depth)
    with pytest.raises(ValueError, match="steps"):
        MarigoldDepth(depth_model.backbone, replace(settings, default_denoising_steps=None))(image)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"steps": 0}, "steps"),
        ({"ensemble_size": 0}, "ensemble_size"),
        ({"processing_resolution": -1}, "processing_resolution"),
        ({"batch_size": 0}, "batch_size"),
        ({"latents": torch.zeros(1, 4, 9, 9)}, "latents"),
        ({"ensemble_size": 2, "ensemble_method": "magic"}, "ensemble_method"),
        ({"image": images(1)[:, :2]}, "image"),
        ({"image": images(1) + 0.1}, "image"),
        ({"image": images(1) * float("nan")}, "image"),
    ],
)
def test_arguments_without_meaning_are_named(depth_model: MarigoldDepth, arguments: dict, key: str):
    with pytest.raises(ValueError, match=key):
        depth_model(**{"image": images(1), **arguments})


def test_overflow_in_half_precision_is_computed_again_in_float32(caplog: pytest.LogCaptureFixture):
    """Weights of 60000 are in float16's range, and their products are not."""
    half = tiny_model()
    decoder = half.backbone.vae.decoder
    for weight, value in ((decoder.conv_norm_out.weight, 60000.0), (decoder.conv_out.weight, 60.0)):
        torch.nn.init.constant_(weight, value)
    for module in (half.backbone.unet, half.backbone.vae, half.backbone.text_encoder):
        module.to(torch.float16)
    with caplog.at_level(logging.WARNING):
        prediction = half(images(1), steps=1)
    assert prediction.depth.isfinite().all()
    assert "float32" in caplog.text


def test_broken_weights_are_an_error():
    model = tiny_model()
    torch.nn.init.constant_(model.backbone.unet.conv_out.weight, torch.nan)
    with pytest.raises(ValueError, match="not finite"):
        model(images(1))


def test_a_model_is_pushed_as_it_is_saved(depth_model: MarigoldDepth, monkeypatch: pytest.MonkeyPatch):
    uploaded: list[MarigoldDepth] = []

    def upload(*, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        uploaded.append(MarigoldDepth.from_pretrained(folder_path))
        assert (folder_path / "README.md").read_text() == "# Depth"
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    hub = MagicMock(return_value=MagicMock(upload_folder=upload))
    monkeypatch.setattr("marigold.model.pipeline.HfApi", hub)
    address = depth_model.push_to_hub("me/depth", card="# Depth", private=True, token="secret")
    assert address == "https://hub/me/depth/commit/1"
    hub.assert_called_once_with(token="secret")
    hub.return_value.create_repo.assert_called_once_with("me/depth", private=True, exist_ok=True)
    assert torch.equal(uploaded[0](images(1)).depth, depth_model(images(1)).depth)
