"""Adapters against the formula W + alpha / rank * B A, peft and diffusers; what trains, and what is refused."""

import copy
import sys
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from tiny_models import tiny_model

from marigold.config import ConfigError
from marigold.model.backbone import BaseModelError
from marigold.model.base import ModelConfig, base_identity, load_trainable
from marigold.model.lora import Lora, add_adapters, base_tensors, merged, save_adapter, trained_tensors
from marigold.model.recipe import Switches

LORA = Lora(rank=4, alpha=10)


@pytest.fixture(scope="module")
def widened():
    """A model whose U-Net takes 8 channels; not to be changed."""
    return tiny_model().backbone


@pytest.fixture
def plain(widened):
    return copy.deepcopy(widened.unet)


@pytest.fixture(scope="module")
def trained(widened):
    """The same U-Net with adapters and a first convolution that have learnt something; not to be changed."""
    unet = copy.deepcopy(widened.unet)
    add_adapters(unet, LORA, seed=3, whole=["conv_in"])
    generator = torch.Generator().manual_seed(5)
    for tensor in trained_tensors(unet).values():
        tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return unet


@torch.no_grad()
def predict(unet):
    """In double precision: the float32 weights are compared, and not the order in which a CPU adds."""
    generator = torch.Generator().manual_seed(7)
    latent, prompt = (torch.randn(shape, generator=generator).double() for shape in ((2, 8, 8, 16), (2, 2, 32)))
    return copy.deepcopy(unet).double()(latent, torch.tensor([5, 900]), prompt, return_dict=False)[0]


def test_new_adapters_change_nothing_and_are_a_function_of_the_seed(plain):
    before, state = predict(plain), torch.get_rng_state()
    made = [copy.deepcopy(plain) for _ in range(3)]
    for unet, seed in zip(made, (1, 1, 2), strict=True):
        add_adapters(unet, Lora(rank=16), seed)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(predict(unet), before) for unet in made)
    one, same, other = (
        torch.cat([tensor.flatten() for name, tensor in trained_tensors(unet).items() if "lora_A" in name])
        for unet in made
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.std().item() == pytest.approx(1 / 16, rel=0.05)


def test_merged_weights_are_the_formula_and_predict_the_same(plain, trained):
    alone = merged(trained)
    torch.testing.assert_close(predict(alone), predict(trained), rtol=0, atol=1e-6)
    assert (predict(alone) - predict(plain)).abs().max() > 0.01
    learnt, adapted = trained_tensors(trained), set()
    for name, weight in plain.state_dict().items():
        found, layer = alone.state_dict()[name], name.removesuffix(".weight")
        if f"{layer}.lora_A.default.weight" in learnt:
            a, b = (learnt[f"{layer}.lora_{part}.default.weight"].double() for part in "AB")
            torch.testing.assert_close(found.double(), weight.double() + 10 / 4 * b @ a, rtol=0, atol=1e-6)
            adapted.add(layer.rpartition(".attn")[2][2:])
        elif not name.startswith("conv_in"):
            assert torch.equal(found, weight)
    assert torch.equal(alone.conv_in.weight, learnt["conv_in.weight"])
    assert adapted == {"to_q", "to_k", "to_v", "to_out.0"}
    # 7 transformer blocks with two attentions of four projections, A and B each; the first convolution's two tensors
    assert len(learnt) == 2 * 56 + 2


def test_the_base_is_known_below_its_adapters(widened, plain, trained):
    assert set(base_tensors(trained)) == set(plain.state_dict())  # tests/training/test_lora_runs.py compares them
    add_adapters(plain, LORA, seed=0)
    assert base_identity(replace(widened, unet=plain)) == base_identity(widened)


def test_the_adapter_is_read_by_peft(plain, trained, tmp_path):
    for folder in (tmp_path / "one", tmp_path / "two"):
        save_adapter(trained, folder)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    loaded = PeftModel.from_pretrained(plain, tmp_path / "one")  # diffusers: tests/training/test_lora_runs.py
    torch.testing.assert_close(predict(loaded), predict(trained), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("switches", "whole"),
    [
        (Switches(noise="none", prediction="sample"), set()),
        (Switches(noise="gaussian", timesteps="terminal", reconstruct=True), {"conv_in", "class_embedding"}),
    ],
)
def test_what_the_base_did_not_have_trains_whole(random_base, checkpoint, switches, whole):
    """And no more of it: a depth model has its first convolution."""
    for base, added in ((random_base, whole), (checkpoint, whole - {"conv_in"})):
        config = ModelConfig(str(base), [], None, None, False, lora=LORA)
        backbone = load_trainable(config, switches, {}, seed=0)
        names = trained_tensors(backbone.unet)
        assert {name.partition(".")[0] for name in names if ".lora_" not in name} == added
        assert any(".lora_" in name for name in names)
        assert not trained_tensors(backbone.vae)


@pytest.mark.parametrize(
    ("given", "key"), [({"rank": 0}, "rank"), ({"rank": 4, "alpha": 0}, "alpha"), ({"alpha": 8}, "alpha")]
)
def test_impossible_ranks_are_refused_by_name(given, key):
    with pytest.raises(ConfigError, match=rf"model\.lora\.{key}"):
        Lora(**given)


def test_a_missing_peft_is_named(plain, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BaseModelError, match=r"pip install -e '\.\[lora\]'"):
        add_adapters(plain, LORA, seed=0)
