"""The loop stops for a bad loss and a bad cache, and its results do not depend on how it is run."""

import json
import sys

import diffusers
import pytest
from safetensors.torch import load

from marigold.cache_latents import run as cache_latents
from marigold.data.errors import DataError
from marigold.data.transforms import PixelExamples
from marigold.train import run
from marigold.training import guards
from marigold.training.guards import waiting_advice
from marigold.training.objective import Objective
from marigold.training.settings import TrainingError
from runs import OFTEN, assert_same_bits, call_script, losses, weights


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_accumulation(tmp_path, configure, arguments):
    """Over ten steps of both data sets, with flips and annealed noise."""
    longer = ("train.steps=10", "data.hypersim.weight=0.5", "data.vkitti.weight=0.5")
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(configure(one, *longer))
    done = call_script("train.py", *arguments, f"run_dir={two}", *longer, processes=2)
    assert done.returncode == 0, done.stderr[-9000:]
    assert json.loads((two / "provenance.json").read_text())["processes"] == 2
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
    first, second = load(weights(one)), load(weights(two))
    assert max((first[name] - second[name]).abs().max().item() for name in first) < 1e-6


def test_cache_made_from_something_else_is_refused(tmp_path, configure):
    cached = (f"cache.folder={tmp_path / 'cache'}", "cache.enabled=true")
    cache_latents(configure(tmp_path, *cached))
    for override, message in (
        ("data.hypersim.transform.quantile=0.05", r"transform\.quantile: cache 0\.02, this run 0\.05"),
        ("recipe.mapping=disparity", r"hypersim/disparity lacks 1 of 1 shards .*cache_latents\.py"),
    ):
        with pytest.raises(DataError, match=message):
            run(configure(tmp_path, *cached, override))


def test_not_finite_loss_names_the_sample_and_keeps_the_checkpoint(tmp_path, whole, configure, monkeypatch):
    original, calls = PixelExamples.batch, []

    def poison(self, *which):
        batch = original(self, *which)
        calls.append(batch.names)
        if len(calls) == 8:  # the second micro-batch of step 3
            batch.depth_norm[:] = float("nan")
        return batch

    with monkeypatch.context() as patch:
        patch.setattr(PixelExamples, "batch", poison)
        with pytest.raises(TrainingError, match="not finite at step 3") as caught:
            run(configure(tmp_path, *OFTEN))
    checkpoints = tmp_path / "checkpoints"
    assert all(said in str(caught.value) for said in (*calls[7], str(checkpoints / "step_000002")))
    assert [path.name for path in checkpoints.iterdir()] == ["step_000002"]
    assert run(configure(tmp_path, *OFTEN))
    assert_same_bits(tmp_path, whole)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda loss: loss.detach(), "detached"),
        # Attached in name only: a factor of zero leaves a graph and a loss, and no gradient.
        (lambda loss: 1 + 0 * loss, "gradient is zero"),
    ],
)
def test_loss_that_does_not_reach_the_unet_is_refused_at_step_one(tmp_path, configure, monkeypatch, spoil, message):
    original = Objective.__call__
    monkeypatch.setattr(Objective, "__call__", lambda *arguments: spoil(original(*arguments)))
    with pytest.raises(TrainingError, match=message):
        run(configure(tmp_path))
    assert not (tmp_path / "checkpoints").exists()


def test_waiting_for_data_is_worth_advice():
    assert waiting_advice(guards.WAIT_LIMIT, workers=4, cached=False) is None
    assert "train.workers=2" in waiting_advice(0.4, workers=0, cached=True)
    assert "cache_latents.py" in waiting_advice(0.4, workers=1, cached=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method")
@pytest.mark.parametrize("option", ["gradient_checkpointing", "channels_last", "compile"])  # needs a C++ compiler
def test_performance_options_change_rounding_only(tmp_path, whole, configure, option):
    assert run(configure(tmp_path, *OFTEN, f"performance.{option}=true"))
    assert losses(tmp_path) == pytest.approx(losses(whole), rel=1e-4)


def test_an_optimiser_that_is_not_installed_is_named(tmp_path, configure, monkeypatch):
    for module in ("bitsandbytes", "bitsandbytes.optim"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(TrainingError, match=r"\[adam8bit\]"):
        run(configure(tmp_path, "train.optimizer=adam8bit"))


def test_checkpoints_are_complete_models(whole):
    for folder in ("final", "best", "checkpoints/step_000004"):
        pipe = diffusers.MarigoldDepthPipeline.from_pretrained(whole / folder)
        assert pipe.unet.config.in_channels == 8
        assert (pipe.config.prediction_type, pipe.config.default_denoising_steps) == ("depth", 1)
    facts = json.loads((whole / "provenance.json").read_text())
    assert {"commit", "torch", "diffusers", "argv"} <= set(facts)
