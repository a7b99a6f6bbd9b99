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
from marigold.model.latents import pad_to_latent, processing_size, resize
from marigold.model.noise import start_noise
from marigold.model.pipeline import MarigoldDepth


def photos(batch: int, height: int = 32, width: int = 40) -> torch.Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_the_package_exports_it_and_imports_lightly():
    assert marigold.MarigoldDepth is MarigoldDepth
    code = "import sys, marigold; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="NoSuchThing"):
        marigold.NoSuchThing  # noqa: B018


def test_the_result_of_a_member_does_not_depend_on_its_company(depth_model: MarigoldDepth):
    image = photos(2)
    together = depth_model(image, ensemble_size=3, seed=5).depth
    for batch_size in (1, 4):
        again = depth_model(image, ensemble_size=3, seed=5, batch_size=batch_size).depth
        torch.testing.assert_close(again, together, atol=1e-5, rtol=0)
    alone = depth_model(image[1:], ensemble_size=3, seed=5).depth
    torch.testing.assert_close(alone[0], together[1], atol=1e-5, rtol=0)


def test_the_seed_decides_the_start_and_explicit_latents_are_one(depth_model: MarigoldDepth):
    image, draws = photos(1), [start_noise(seed, member, (4, 4, 5)) for seed in range(3) for member in range(3)]
    assert len({draw.numpy().tobytes() for draw in draws}) == 9
    first, other = (depth_model(image, seed=seed, ensemble_size=3) for seed in (1, 2))
    assert not torch.equal(first.depth, other.depth)
    torch.manual_seed(77)
    given = depth_model(image, latents=torch.cat(draws[3:6]), ensemble_size=3)
    assert torch.equal(given.depth, first.depth)
    assert torch.equal(given.uncertainty, first.uncertainty)


def test_an_image_is_encoded_once_and_every_step_of_every_member_announced(depth_model, monkeypatch):
    vae, encoded, taken = depth_model.backbone.vae, [], []
    encode = vae.encode
    monkeypatch.setattr(vae, "encode", lambda image: (encoded.append(len(image)), encode(image))[1])
    told = depth_model(photos(1), steps=2, ensemble_size=3, batch_size=2, on_step=taken.append)
    assert (encoded, taken) == ([1], [2, 2, 1, 1])
    assert torch.equal(told.depth, depth_model(photos(1), steps=2, ensemble_size=3, batch_size=2).depth)


def test_any_kind_of_image_is_taken(depth_model: MarigoldDepth):
    values = (photos(1)[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    expected = depth_model(torch.from_numpy(values).permute(2, 0, 1)[None] / 255)
    assert expected.uncertainty is None
    for image in (Image.fromarray(values), values, torch.from_numpy(values).permute(2, 0, 1)):
        torch.testing.assert_close(depth_model(image).depth, expected.depth)


@pytest.mark.parametrize(
    ("size", "resolution"), [((1, 1), 0), ((8, 200), 16), ((200, 3), 16), ((200, 3), 0), ((33, 41), 0)]
)
def test_small_long_and_odd_images(depth_model: MarigoldDepth, size: tuple[int, int], resolution: int):
    made = depth_model(photos(1, *size), processing_resolution=resolution, steps=1, ensemble_size=2)
    assert made.depth.shape == made.uncertainty.shape == (1, 1, *size)
    assert 0 <= made.depth.min() <= made.depth.max() <= 1
    assert made.uncertainty.min() >= 0


@pytest.mark.slow
def test_twenty_megapixels(depth_model: MarigoldDepth):
    assert depth_model(photos(1, 3840, 5120), processing_resolution=64).depth.shape == (1, 1, 3840, 5120)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((480, 640, 0), (480, 640)),
        ((375, 1242, 768), (231, 768)),
        ((640, 480, 100), (100, 75)),
        ((1, 5000, 768), (1, 768)),
    ],
)
def test_processing_size(given: tuple[int, int, int], expected: tuple[int, int]):
    assert processing_size(*given) == expected


def test_padding_repeats_the_last_row_and_column_and_shrinking_is_antialiased():
    image = torch.arange(3.0 * 9 * 10).reshape(1, 3, 9, 10)
    padded = pad_to_latent(image)
    np.testing.assert_array_equal(padded.numpy(), np.pad(image.numpy(), ((0, 0), (0, 0), (0, 7), (0, 6)), "edge"))
    assert torch.equal(pad_to_latent(padded), padded)
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    assert (resize(stripes, (8, 8)) - 0.5).abs().max() < 0.1


def test_defaults_come_from_the_checkpoint_or_are_asked_for(depth_model: MarigoldDepth):
    image = photos(1)
    settings = replace(depth_model.settings, default_denoising_steps=3, default_processing_resolution=16)
    model = MarigoldDepth(depth_model.backbone, settings)
    assert model.default_steps == 3
    assert torch.equal(model(image).depth, model(image, steps=3, processing_resolution=16).depth)
    with pytest.raises(ValueError, match="steps"):
        MarigoldDepth(depth_model.backbone, replace(settings, default_denoising_steps=None))(image)


def spoilt(value: float) -> torch.Tensor:
    image = photos(1)
    image[0, 1, 2, 3] = value
    return image


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "1 to 1000"),
        ({"ensemble_size": 0}, "ensemble_size"),
        ({"processing_resolution": -1}, "processing_resolution"),
        ({"batch_size": 0}, "batch_size"),
        ({"latents": torch.zeros(1, 4, 9, 9)}, "latents"),
        ({"ensemble_size": 2, "ensemble_method": "magic"}, "ensemble_method"),
        ({"ensemble_size": 2, "reduction": "mode"}, "reduction"),
        ({"image": photos(1)[:, :2]}, "image"),
        ({"image": spoilt(-0.1)}, "image"),
        ({"image": spoilt(1.1)}, "image"),
        ({"image": spoilt(float("nan"))}, "image"),
    ],
)
def test_arguments_without_meaning_are_named(depth_model: MarigoldDepth, arguments: dict, key: str):
    with pytest.raises(ValueError, match=key):
        depth_model(**{"image": photos(1), **arguments})


def test_overflow_in_half_precision_is_done_again_in_float32(caplog: pytest.LogCaptureFixture):
    """A weight of 60000 is in float16's range, and its products are not."""
    exact, half = tiny_model(), tiny_model()
    with torch.no_grad():
        exact.backbone.vae.decoder.conv_norm_out.weight.mul_(0).add_(3000)
        exact.backbone.vae.decoder.conv_out.weight.mul_(1e-3).clamp_(-60, 60)
        exact.backbone.vae.decoder.conv_in.weight.mul_(1e6)
    for name in ("unet", "vae", "text_encoder"):
        module = getattr(half.backbone, name)
        module.load_state_dict(getattr(exact.backbone, name).state_dict())
        module.to(torch.float16)
    with torch.no_grad():
        for parameter in half.backbone.vae.parameters():
            parameter.clamp_(-60000, 60000)
    with caplog.at_level(logging.WARNING):
        prediction = half(photos(1), steps=1)
    assert prediction.depth.isfinite().all()
    assert "float32" in caplog.text


def test_broken_weights_are_an_error():
    model = tiny_model()
    with torch.no_grad():
        model.backbone.unet.conv_out.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        model(photos(1))


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
    assert torch.equal(uploaded[0](photos(1)).depth, depth_model(photos(1)).depth)
