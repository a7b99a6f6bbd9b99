"""Runs that train adapters: their checkpoints, that a stop changes no bit, and the models that they end with."""

import json
import shutil

import pytest
import torch
from diffusers import MarigoldDepthPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from marigold import train
from marigold.model.backbone import widen_conv_in
from marigold.model.lora import base_tensors, trained_tensors
from marigold.model.pipeline import MarigoldDepth
from marigold.train import run
from marigold.training.settings import TrainingError
from runs import assert_same_end, figures, files, losses

LORA = ("model.lora.rank=4", "model.lora.alpha=8", "train.validate_every=2")


@pytest.fixture(scope="module")
def module_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("lora")


@pytest.fixture
def whole(module_folder, configure):
    """An undisturbed run for the whole module."""
    folder = module_folder / "whole/run"
    if not (folder / "final").exists():
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
    assert (
        sum(tensor.numel() for tensor in learnt(folder).values()) < sum(p.numel() for p in base_unet.parameters()) / 4
    )


@pytest.mark.slow
@pytest.mark.parametrize("decay", [None, 0.5])
def test_stopping_after_every_single_step_changes_nothing(tmp_path, whole, configure, decay):
    average = () if decay is None else (f"train.ema_decay={decay}",)
    if average:
        reference = tmp_path / "whole/run"
        assert run(configure(reference, *LORA, *average))
        assert losses(reference) == losses(whole)  # the average follows the training and does not change it
        assert learnt(reference / "checkpoints/step_000006").keys() == learnt(whole / "checkpoints/step_000006").keys()
        assert files(reference / "final/unet") != files(whole / "final/unet")
        whole = reference
    config = configure(tmp_path / "stopped/run", *LORA, *average, "train.time_limit=0.0")
    assert [run(config) for _ in range(6)] == [False] * 5 + [True]
    assert figures(tmp_path / "stopped/run") == figures(whole)
    for name in ("best", "final"):  # the cards tell the time limit
        stopped, undisturbed = (files(folder / name) for folder in (tmp_path / "stopped/run", whole))
        assert stopped.pop("README.md").replace(b"time_limit | 0.0 |", b"time_limit | None |") == undisturbed.pop(
            "README.md"
        )
        assert stopped == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("before", ["save_checkpoint", "write_model", "record_validation"])
def test_a_run_killed_at_its_last_step_ends_the_same(tmp_path, whole, configure, monkeypatch, before):
    original = getattr(train, before)

    def killed(*arguments, **more):
        if len(figures(tmp_path / "run")) > 4:  # losses and validations of steps 2 and 4
            raise KeyboardInterrupt
        return original(*arguments, **more)

    monkeypatch.setattr(train, before, killed)
    with pytest.raises(KeyboardInterrupt):
        run(configure(tmp_path / "run", *LORA))
    monkeypatch.undo()
    assert not (tmp_path / "run/final").exists() or before == "record_validation"
    assert run(configure(tmp_path / "run", *LORA))
    assert_same_end(tmp_path / "run", whole)


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
    for name in ("best", "final"):
        folder = whole / name
        pipeline = MarigoldDepthPipeline.from_pretrained(folder)
        model = MarigoldDepth.from_pretrained(folder)
        assert trained_tensors(model.backbone.unet).keys() == base_unet.state_dict().keys()
        alone = UNet2DConditionModel.from_config(base_unet.config)
        alone.load_state_dict(base_unet.state_dict())
        weights = "adapter_model.safetensors"
        alone.load_lora_adapter(folder / "adapter", prefix="base_model.model", weight_name=weights)
        with torch.no_grad():
            expected, *others = (
                unet.eval()(latent, 500, prompt).sample for unet in (model.backbone.unet, pipeline.unet, alone)
            )
        for other in others:
            torch.testing.assert_close(other, expected, rtol=0, atol=1e-6)
        card = (folder / "README.md").read_text()
        assert "rank 4 and alpha 8" in card
        assert "`adapter/`" in card


def test_the_final_model_is_that_of_the_last_checkpoint(whole, base_unet):
    tensors = learnt(whole / "checkpoints/step_000006")
    found = load_file(whole / "final/unet/diffusion_pytorch_model.safetensors")
    for name, weight in base_unet.state_dict().items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.default.weight" in tensors:
            a, b = (tensors[f"{layer}.lora_{part}.default.weight"].double() for part in "AB")
            torch.testing.assert_close(found[name].double(), weight.double() + 8 / 4 * b @ a, rtol=0, atol=1e-7)
        else:
            assert torch.equal(found[name], tensors.get(name, weight))


def test_another_base_another_rank_and_none_are_refused_by_name(tmp_path, whole, configure, random_base):
    folder = shutil.copytree(whole, tmp_path / "run")
    longer = (*LORA, "train.steps=8")
    for override, message in (
        ("model.lora.rank=2", r"model\.lora\.rank: its checkpoint 4, this run 2"),
        ("model.lora={rank:null,alpha:null}", r"model\.lora\.rank: its checkpoint 4, this run None"),
    ):
        with pytest.raises(TrainingError, match=message):
            run(configure(folder, *longer, override))
    base = shutil.copytree(random_base, tmp_path / "base")
    file = base / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_out.bias"] += 1
    save_file(tensors, file)
    with pytest.raises(TrainingError, match="base: its checkpoint "):
        run(configure(folder, *longer, f"model.base={base}"))


OPTIONS = ("performance.gradient_checkpointing=true", "performance.channels_last=true")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")
@pytest.mark.parametrize(
    "options",
    [
        (*OPTIONS, "train.verify_checkpoints=true"),
        pytest.param(("performance.compile=true",), marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_performance_options_change_rounding_only(tmp_path, whole, configure, options):
    assert run(configure(tmp_path, *LORA, *options))
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-4)


def test_rank_zero_is_refused_before_anything_is_written(tmp_path, configure):
    with pytest.raises(ValueError, match=r"model\.lora\.rank=0"):
        run(configure(tmp_path / "run", "model.lora.rank=0"))
    assert not (tmp_path / "run").exists()
