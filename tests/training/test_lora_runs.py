"""Runs that train adapters: their checkpoints, that a stop changes no bit, and the models that they end with."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import MarigoldDepthPipeline, UNet2DConditionModel
from safetensors.torch import load_file

from marigold import train
from marigold.model.backbone import widen_conv_in
from marigold.model.lora import base_tensors, trained_tensors
from marigold.model.pipeline import MarigoldDepth
from marigold.train import run
from marigold.training.settings import TrainingError
from runs import assert_same_bits, assert_same_end, figures, files, killed, losses, weights

LORA = ("model.lora.rank=4", "model.lora.alpha=8", "train.validate_every=2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, configure):
    """An undisturbed run for the whole module."""
    folder = tmp_path_factory.mktemp("lora") / "run"
    assert run(configure(folder, *LORA))
    return folder


@pytest.fixture
def base_unet(random_base):
    """The U-Net that the runs start from."""
    unet = UNet2DConditionModel.from_pretrained(random_base / "unet")
    widen_conv_in(unet)
    return unet


def learnt(folder):
    """The tensors of a checkpoint."""
    return load_file(folder / "trained.safetensors")


def test_a_checkpoint_holds_what_is_trained_alone(whole, base_unet):
    folder = whole / "checkpoints/step_000006"
    state = {f"training_state/{name}" for name in ("state.pt", "manifest.json", "validation.json")}
    assert set(files(folder)) == {"trained.safetensors", *state}
    names = set(learnt(folder))
    assert {name for name in names if ".lora_" not in name} == {"conv_in.weight", "conv_in.bias"}
    recorded = json.loads((folder / "training_state/manifest.json").read_text())["metadata"]["identity"]
    assert (recorded["model.lora.rank"], recorded["model.lora.alpha"], len(recorded["base"])) == (4, 8, 64)
    optimizer = torch.load(folder / "training_state/state.pt", weights_only=True)["optimizer"]
    assert len(optimizer["param_groups"][0]["params"]) == len(names)
    assert sum(tensor.numel() for tensor in learnt(folder).values()) < base_unet.num_parameters() / 4


@pytest.mark.slow
@pytest.mark.parametrize("decay", ["null", "0.5"])
def test_stopping_after_every_single_step_changes_nothing(tmp_path, whole, configure, decay):
    average = (*LORA, f"train.ema_decay={decay}")
    if decay != "null":
        assert run(configure(tmp_path / "whole", *average))
        assert losses(tmp_path / "whole") == losses(whole)  # the average follows the training and does not change it
        assert weights(tmp_path / "whole") != weights(whole)
        whole = tmp_path / "whole"
    config = configure(tmp_path / "stopped", *average, "train.time_limit=0.0")
    assert [run(config) for _ in range(6)] == [False] * 5 + [True]
    assert_same_bits(tmp_path / "stopped", whole)
    for name in ("best", "final"):  # the cards tell the time limit
        stopped, undisturbed = (files(folder / name) for folder in (tmp_path / "stopped", whole))
        assert (stopped | {"README.md": b""}) == (undisturbed | {"README.md": b""})


@pytest.mark.slow
@pytest.mark.parametrize("before", ["save_checkpoint", "write_model", "record_validation"])
def test_a_run_killed_at_its_last_step_ends_the_same(tmp_path, whole, configure, monkeypatch, before):
    original, folder = getattr(train, before), tmp_path / "run"

    def killed_late(*arguments, **more):  # after losses and validations of steps 2 and 4
        return (killed if len(figures(folder)) > 4 else original)(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(train, before, killed_late)
        with pytest.raises(KeyboardInterrupt):
            run(configure(folder, *LORA))
    assert not (folder / "final").exists() or before == "record_validation"
    assert run(configure(folder, *LORA))
    assert_same_end(folder, whole)


def test_a_full_disk_leaves_the_models_that_were_there(tmp_path, whole, configure, monkeypatch):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = files(folder / "best")

    def full(model, target):
        target.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "save_merged", full)
    with pytest.raises(OSError, match="No space"):
        run(configure(folder, *LORA, "train.steps=7"))
    assert files(folder / "best") == before
    assert not list(folder.glob(".partial-*"))


def test_the_base_stays_as_it_is(tmp_path, configure, base_unet, monkeypatch):
    """To the last bit, in memory after training; and what is trained has moved."""
    kept = []
    original = train.train
    monkeypatch.setattr(train, "train", lambda run, checkpoint: kept.append(run) or original(run, checkpoint))
    assert run(configure(tmp_path, *LORA, "train.steps=2"))
    unet, expected = kept[0].model.backbone.unet, base_unet.state_dict()
    found = base_tensors(unet)
    assert found.keys() == expected.keys()
    changed = {name for name in found if not torch.equal(found[name], expected[name])}
    assert changed == {"conv_in.weight", "conv_in.bias"}
    assert all(tensor.any() for tensor in trained_tensors(unet).values())


def test_best_and_final_are_whole_models_with_the_adapter_beside(whole, base_unet):
    latent, prompt = torch.randn(1, 8, 8, 16), torch.randn(1, 2, 32)
    for folder in (whole / "best", whole / "final"):
        model = MarigoldDepth.from_pretrained(folder).backbone.unet
        assert trained_tensors(model).keys() == base_unet.state_dict().keys()
        adapted = copy.deepcopy(base_unet)
        settings = {"prefix": "base_model.model", "weight_name": "adapter_model.safetensors"}
        adapted.load_lora_adapter(folder / "adapter", **settings)
        others = (MarigoldDepthPipeline.from_pretrained(folder).unet, adapted)
        with torch.no_grad():
            expected, *found = (unet.eval()(latent, 500, prompt).sample for unet in (model, *others))
        for one in found:
            torch.testing.assert_close(one, expected, rtol=0, atol=1e-6)
        card = (folder / "README.md").read_text()
        assert "rank 4 and alpha 8" in card
        assert "`adapter/`" in card


@pytest.mark.parametrize("override", ["model.lora.rank=2", "model.lora={rank:null,alpha:null}"])
def test_another_rank_and_none_are_refused_by_name(whole, configure, override):
    with pytest.raises(TrainingError, match=r"model\.lora\.rank: its checkpoint 4, this run "):
        run(configure(whole, *LORA, "train.steps=8", override))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")
def test_performance_options_change_rounding_only(tmp_path, whole, configure):
    switched = [f"performance.{option}=true" for option in ("gradient_checkpointing", "channels_last")]
    assert run(configure(tmp_path, *LORA, *switched, "train.verify_checkpoints=true", "validation=none"))
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-4)
