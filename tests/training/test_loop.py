"""What the loop refuses, what it stops for, and that its results do not depend on how it is run."""

import json
import shutil
import sys
import time
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load, save_file

from marigold.cache_latents import run as cache_latents
from marigold.data.errors import DataError
from marigold.data.latent_cache import CacheError
from marigold.data.transforms import PixelExamples
from marigold.model.pipeline import MarigoldDepth
from marigold.train import run
from marigold.training.checkpoint import CheckpointError
from marigold.training.objective import Objective
from marigold.training.settings import TrainingError, accumulation_steps
from runs import figures, losses, weights

SCRIPT = Path(__file__).parent.parent.parent / "scripts/train.py"


def assert_two_processes(run_dir):
    assert json.loads((run_dir / "provenance.json").read_text())["processes"] == 2


def assert_same_run(one, two, tolerance):
    assert losses(two) == pytest.approx(losses(one), rel=tolerance)
    first, second = load(weights(one)), load(weights(two))
    assert max((first[name] - second[name]).abs().max().item() for name in first) < tolerance


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_accumulation(tmp_path, configure, arguments, in_two_processes):
    """Over ten steps of both data sets, with flips and annealed noise."""
    longer = ("train.steps=10", "data.hypersim.weight=0.5", "data.vkitti.weight=0.5")
    assert run(configure(tmp_path / "one", *longer))
    in_two_processes("train.py", *arguments, f"run_dir={tmp_path / 'two'}", *longer)
    assert_two_processes(tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two", 1e-6)


def test_cached_latents_give_the_losses_of_the_pictures(tmp_path, configure, rooms_data):
    assert run(configure(tmp_path / "pictures"))
    for dtype, precision, tolerance in (("float32", "no", 1e-6), ("float16", "no", 1e-3), ("float32", "bf16", 2e-2)):
        name = f"{dtype}_{precision}"
        cache = (f"cache.dtype={dtype}", f"cache.precision={precision}", f"cache.folder={tmp_path / name}")
        config = configure(tmp_path / f"run_{name}", "cache.enabled=true", *cache, "cache.batch=3")
        cache_latents(config)
        assert run(config)
        assert losses(tmp_path / f"run_{name}") == pytest.approx(losses(tmp_path / "pictures"), rel=tolerance)
    assert losses(tmp_path / "run_float32_bf16") != losses(tmp_path / "run_float32_no")


def test_cache_made_from_something_else_is_refused(tmp_path, configure, random_base):
    folder = f"cache.folder={tmp_path / 'cache'}"
    cache_latents(configure(tmp_path, folder))
    with pytest.raises(DataError, match=r"transform\.quantile: cache 0\.02, this run 0\.05"):
        run(configure(tmp_path, folder, "cache.enabled=true", "data.hypersim.transform.quantile=0.05"))
    with pytest.raises(DataError, match="precision: cache 'no', this run 'bf16'"):
        run(configure(tmp_path, folder, "cache.enabled=true", "cache.precision=bf16"))
    with pytest.raises(CacheError, match=r"cache\.precision: expected one of no, bf16, fp16, got 'half'"):
        run(configure(tmp_path, folder, "cache.enabled=true", "cache.precision=half"))
    other = shutil.copytree(random_base, tmp_path / "other")
    settings = json.loads((other / "vae/config.json").read_text())
    (other / "vae/config.json").write_text(json.dumps({**settings, "scaling_factor": 0.5}))
    with pytest.raises(DataError, match="vae: cache "):
        run(configure(tmp_path, folder, "cache.enabled=true", f"model.base={other}"))
    next((tmp_path / "cache/hypersim/depth").glob("shard_*.h5")).unlink()
    with pytest.raises(DataError, match=r"lacks 1 of 1 shards .*cache_latents\.py"):
        run(configure(tmp_path, folder, "cache.enabled=true"))


def test_not_finite_loss_names_the_sample_and_keeps_the_checkpoint(tmp_path, configure, monkeypatch):
    original = PixelExamples.batch
    poisoned = []

    def poison(self, *which):
        batch = original(self, *which)
        calls.append(batch.names)
        if len(calls) == 8:  # the second micro-batch of step 3
            poisoned.extend(batch.names)
            batch.depth_norm[:] = torch.nan
        return batch

    calls = []
    monkeypatch.setattr(PixelExamples, "batch", poison)
    with pytest.raises(TrainingError, match="not finite at step 3") as caught:
        run(configure(tmp_path))
    assert all(name in str(caught.value) for name in poisoned)
    assert str(tmp_path / "checkpoints/step_000002") in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_000002"]
    monkeypatch.undo()
    assert run(configure(tmp_path))  # and from there it goes on


def test_loss_that_does_not_reach_the_unet_is_refused_at_step_one(tmp_path, configure, monkeypatch):
    original = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", lambda *arguments: original(*arguments).detach())
    with pytest.raises(TrainingError, match="detached from the U-Net"):
        run(configure(tmp_path))
    # Attached in name only: a factor of zero leaves a graph and a loss, and no gradient.
    monkeypatch.setattr(
        Objective,
        "__call__",
        lambda self, unet, batch, g: 1 + 0 * original(self, unet, batch, g),
    )
    with pytest.raises(TrainingError, match="gradient is zero at the first step"):
        run(configure(tmp_path))
    assert not (tmp_path / "checkpoints").exists()


def test_waiting_for_data_is_said_once_with_advice(tmp_path, configure, monkeypatch, caplog):
    original = PixelExamples.batch

    def slowly(self, *which):
        time.sleep(0.5)
        return original(self, *which)

    monkeypatch.setattr(PixelExamples, "batch", slowly)
    with caplog.at_level("WARNING"):
        assert run(configure(tmp_path, "train.workers=0"))
    said = [record.message for record in caplog.records if "waits for data" in record.message]
    assert len(said) == 1
    assert "train.workers=2" in said[0]
    assert "cache_latents.py" in said[0]


def test_model_of_another_space_is_refused(tmp_path, configure, random_base):
    base = tmp_path / "base"
    shutil.copytree(random_base, base)
    index = json.loads((base / "model_index.json").read_text())
    (base / "model_index.json").write_text(json.dumps({**index, "prediction_type": "disparity"}))
    with pytest.raises(ValueError, match="predicts disparity"):
        run(configure(tmp_path / "run", f"model.base={base}"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")
@pytest.mark.parametrize(
    "option",
    [
        "gradient_checkpointing",
        "channels_last",
        pytest.param("compile", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],  # needs a C++ compiler
)
def test_performance_options_change_rounding_only(tmp_path, configure, option):
    """Same losses; and a run that is stopped and goes on with the option on still has the bits of one that was not."""
    plain = configure(tmp_path / "plain")
    assert run(plain)
    for name, limits in (("whole", [None]), ("stopped", [0.0, None])):
        for limit in limits:
            config = configure(tmp_path / name, f"performance.{option}=true")
            config.train.time_limit = limit
            run(config)
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_optimiser_that_is_not_there_is_named(tmp_path, configure, monkeypatch):
    with pytest.raises(TrainingError, match="optimizer"):
        run(configure(tmp_path, "train.optimizer=sgd"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(TrainingError, match=r"pip install -e '\.\[adam8bit\]'"):
        run(configure(tmp_path, "train.optimizer=adam8bit"))


def test_verified_checkpoint_that_differs_from_memory_is_refused(tmp_path, configure, monkeypatch):
    assert run(configure(tmp_path / "good", "train.verify_checkpoints=true", "train.ema_decay=0.5"))
    original = MarigoldDepth.save_pretrained

    def save_something_else(self, folder, card):
        original(self, folder, card)
        file = folder / "unet/diffusion_pytorch_model.safetensors"
        save_file({name: tensor + 1 for name, tensor in load(file.read_bytes()).items()}, file)

    monkeypatch.setattr(MarigoldDepth, "save_pretrained", save_something_else)
    with pytest.raises(CheckpointError, match="was not saved as it is in memory"):
        run(configure(tmp_path / "bad", "train.verify_checkpoints=true"))


def test_batches_that_do_not_fit_are_refused_before_the_first_step(tmp_path, configure):
    assert accumulation_steps(32, 2, 1) == 16
    assert accumulation_steps(32, 2, 8) == 2
    with pytest.raises(TrainingError, match=r"effective_batch=4 is not a multiple of train\.micro_batch=3 x 1"):
        run(configure(tmp_path, "train.micro_batch=3"))


def test_everything_that_is_missing_is_named_at_once(tmp_path, configure):
    with pytest.raises(ValueError, match="cannot start") as caught:
        run(configure(tmp_path, f"paths.data={tmp_path}", f"model.base={tmp_path / 'base'}"))
    for part in ("hypersim", "vkitti", "filename_list_val.txt", "To get it:\n    make data", str(tmp_path / "base")):
        assert part in str(caught.value)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [("+train.learning_rate=1", "learning_rate"), ("train.lr=fast", "lr.*fast"), ("precision=half", "precision")],
)
def test_misspelt_keys_and_wrong_types_are_refused_by_name(tmp_path, configure, override, message):
    with pytest.raises(ValueError, match=message):
        run(configure(tmp_path, override))


def test_checkpoints_are_complete_models(tmp_path, configure):
    assert run(configure(tmp_path, "train.validate_every=2"))
    for folder in ("final", "best", "checkpoints/step_000006"):
        pipe = diffusers.MarigoldDepthPipeline.from_pretrained(tmp_path / folder)
        assert pipe.unet.config.in_channels == 8
        assert (pipe.config.prediction_type, pipe.config.default_denoising_steps) == ("depth", 1)
    validated = [line for line in figures(tmp_path) if "hypersim/abs_rel" in line]
    assert [line["step"] for line in validated] == [2, 4, 6]
    facts = json.loads((tmp_path / "provenance.json").read_text())
    assert {"commit", "torch", "diffusers", "argv"} <= set(facts)
