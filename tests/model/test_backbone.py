import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub.errors import LocalEntryNotFoundError

from marigold.miniature.random_base import SIZES, build_components
from marigold.model import backbone as module
from marigold.model.backbone import (
    Backbone,
    BaseModelError,
    check_parts,
    empty_prompt_embedding,
    load_base,
    narrow_conv_in,
    widen_conv_in,
)


@torch.no_grad()
def test_widening_takes_the_latent_twice_and_narrowing_sees_zeros(base: Backbone):
    text = empty_prompt_embedding(base.text_encoder, base.tokenizer)
    assert text.shape == (1, 2, 32)  # start and end
    latent = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def predict(*parts: torch.Tensor) -> torch.Tensor:
        return base.unet(torch.cat(parts, dim=1), 500, encoder_hidden_states=text).sample

    before, old = predict(latent), base.unet.conv_in.weight.clone()
    widen_conv_in(base.unet)
    assert torch.equal(base.unet.conv_in.weight, torch.cat([old, old], dim=1) / 2)
    assert (base.unet.conv_in.weight.requires_grad, base.unet.config["in_channels"]) == (True, 8)
    torch.testing.assert_close(predict(latent, latent), before)
    with pytest.raises(ValueError, match="8 channels"):
        widen_conv_in(base.unet)
    before = predict(latent, torch.zeros_like(latent))
    narrow_conv_in(base.unet)
    torch.testing.assert_close(predict(latent), before)


def test_a_saved_base_loads_again_here_in_half_precision_and_in_diffusers(base: Backbone, random_base: Path):
    loaded, half = load_base(random_base), load_base(random_base, torch_dtype=torch.bfloat16)
    for name in ("unet", "vae", "text_encoder"):
        built, read = getattr(base, name).state_dict(), getattr(loaded, name).state_dict()
        assert built.keys() == read.keys()
        assert all(torch.equal(built[key], read[key]) for key in built), name
        assert not getattr(loaded, name).training
        assert getattr(half, name).dtype == torch.bfloat16
    assert loaded.tokenizer("a cat").input_ids == base.tokenizer("a cat").input_ids
    assert loaded.scheduler_config["prediction_type"] == "v_prediction"
    assert isinstance(DiffusionPipeline.from_pretrained(random_base), StableDiffusionPipeline)


def test_a_missing_model_is_named_and_a_hub_id_gets_its_command(monkeypatch: pytest.MonkeyPatch):
    def unreachable(*_args: object, **_kwargs: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr(module, "snapshot_download", unreachable)
    with pytest.raises(BaseModelError, match="hf download someone/some-model --revision abc123"):
        load_base("someone/some-model", revision="abc123")
    with pytest.raises(BaseModelError, match="nothing/here/at_all"):  # no hub id
        load_base("nothing/here/at_all")


def cut(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("part", "damage", "named"),
    [
        ("tokenizer", shutil.rmtree, "tokenizer"),
        ("vae/diffusion_pytorch_model.safetensors", Path.unlink, "copy"),
        ("unet/diffusion_pytorch_model.safetensors", cut, "copy"),
    ],
)
def test_a_damaged_folder_is_one_error(random_base: Path, tmp_path: Path, part: str, damage: Callable, named: str):
    folder = shutil.copytree(random_base, tmp_path / "copy")
    damage(folder / part)
    with pytest.raises(BaseModelError, match=named):
        load_base(folder)


def test_all_parts_that_do_not_fit_are_named(base: Backbone):
    other = build_components(0, *SIZES["tiny"], text_width=64, in_channels=9)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(block_out_channels=(16, 16), norm_num_groups=16, latent_channels=8, **blocks)
    with pytest.raises(BaseModelError, match=r"8 latent channels.*factor of 2.*9 channels.*64.*32"):
        check_parts(replace(base, unet=other.unet, vae=vae))
