"""Runs that train adapters, their checkpoints and final models; test_resume.py stops and kills them."""

import copy

import pytest
import torch
from diffusers import MarigoldDepthPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from marigold import train
from marigold.model.backbone import widen_conv_in
from marigold.model.lora import base_tensors, trained_tensors
from marigold.model.pipeline import MarigoldDepth
from marigold.train import run
from marigold.training.checkpoint import load_latest
from marigold.training.settings import TrainingError
from runs import LORA, files, losses


@pytest.fixture(scope="module")
def whole(undisturbed):
    return undisturbed(*LORA)


@pytest.fixture
def base_unet(random_base):
    """The U-Net that the runs start from."""
    unet = UNet2DConditionModel.from_pretrained(random_base / "unet")
    widen_conv_in(unet)
    return unet


def test_a_checkpoint_holds_what_is_trained_alone(whole, base_unet):
    checkpoint = load_latest(whole / "checkpoints")
    state = {f"training_state/{name}" for name in ("state.pt", "manifest.json", "validation.json")}
    assert set(files(checkpoint.folder)) == {"trained.safetensors", *state}
    learnt = load_file(checkpoint.folder / "trained.safetensors")
    assert {name for name in learnt if ".lora_" not in name} == {"conv_in.weight", "conv_in.bias"}
    assert sum(tensor.numel() for tensor in learnt.values()) < base_unet.num_parameters() / 4
    assert len(checkpoint.state()["optimizer"]["param_groups"][0]["params"]) == len(learnt)
    recorded = checkpoint.metadata["identity"]
    assert (recorded["model.lora.rank"], recorded["model.lora.alpha"], len(recorded["base"])) == (4, 8, 64)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")
def test_the_base_keeps_its_bits_and_performance_options_change_rounding_only(
    tmp_path, whole, configure, base_unet, monkeypatch
):
    kept = []
    original = train.train
    monkeypatch.setattr(train, "train", lambda run, checkpoint: kept.append(run) or original(run, checkpoint))
    switched = [f"performance.{option}=true" for option in ("gradient_checkpointing", "channels_last")]
    assert run(configure(tmp_path, *LORA, *switched, "train.verify_checkpoints=true", "validation=none"))
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-4)
    unet, expected = kept[0].model.backbone.unet, base_unet.state_dict()
    found = base_tensors(unet)
    assert found.keys() == expected.keys()
    changed = {name for name in found if not torch.equal(found[name], expected[name])}
    assert changed == {"conv_in.weight", "conv_in.bias"}
    assert all(tensor.any() for tensor in trained_tensors(unet).values())


def test_best_and_final_are_whole_models_with_the_adapter_beside(whole, base_unet):
    # In double precision, so that only the rounding of the merged weights is judged and not the CPU's order of sums.
    latent, prompt = torch.randn(1, 8, 8, 16).double(), torch.randn(1, 2, 32).double()
    for folder in (whole / "best", whole / "final"):
        model = MarigoldDepth.from_pretrained(folder).backbone.unet
        assert trained_tensors(model).keys() == base_unet.state_dict().keys()
        adapted = copy.deepcopy(base_unet)
        settings = {"prefix": "base_model.model", "weight_name": "adapter_model.safetensors"}
        adapted.load_lora_adapter(folder / "adapter", **settings)
        others = (MarigoldDepthPipeline.from_pretrained(folder).unet, adapted)
        with torch.no_grad():
            expected, *found = (unet.double().eval()(latent, 500, prompt).sample for unet in (model, *others))
        for one in found:
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-6)
        card = (folder / "README.md").read_text()
        assert "rank 4 and alpha 8" in card
        assert "`adapter/`" in card


@pytest.mark.parametrize("override", ["model.lora.rank=2", "model.lora={rank:null,alpha:null}"])
def test_another_rank_and_none_are_refused_by_name(whole, configure, override):
    with pytest.raises(TrainingError, match=r"model\.lora\.rank: its checkpoint 4"):
        run(configure(whole, *LORA, "train.steps=6", override))
