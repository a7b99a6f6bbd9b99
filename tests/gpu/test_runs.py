"""Whole runs: every recipe, resuming, loss scaling, the switches of `performance`, and running out of memory."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from marigold import train
from marigold.train import run
from marigold.training.checkpoint import load_latest
from marigold.training.objective import Objective
from marigold.training.settings import TrainingError, make_accelerator
from runs import CONFIGS, assert_same_bits, call_script, figures, losses, weights

RECIPES = sorted(file.stem for file in (CONFIGS / "recipe").glob("*.yaml"))
START = 2.0**22  # a loss scale at which the first steps overflow
EXACT = ("precision=no", "performance.tf32=false")


@pytest.fixture
def on_device(configure, device):
    """on_device(run_dir, *overrides): a configuration for the device, without a validation."""
    return lambda run_dir, *overrides: configure(run_dir, f"device={device.type}", "validation=none", *overrides)


ON_CPU = [pytest.param("cpu", recipe, marks=[] if recipe == "e2e_ft" else [pytest.mark.slow]) for recipe in RECIPES]


@pytest.mark.parametrize(
    ("device", "recipe"),
    [*ON_CPU, *(pytest.param("cuda", recipe, marks=pytest.mark.gpu) for recipe in RECIPES)],
    indirect=["device"],
)
def test_two_steps_of_every_recipe(tmp_path, configure, device, recipe):
    """`sharpen` starts from another recipe's checkpoint."""
    short = (f"device={device.type}", "train.steps=2", "train.validate_every=2")
    if recipe == "sharpen":
        assert run(configure(tmp_path / "first", *short, "recipe=one_step"))
        short = (*short, f"model.base={tmp_path / 'first/final'}")
    assert run(configure(tmp_path / recipe, *short, f"recipe={recipe}"))
    assert all(torch.tensor(losses(tmp_path / recipe)).isfinite())
    assert figures(tmp_path / recipe)[-1]["hypersim/abs_rel"] > 0


@pytest.mark.slow
def test_resume_has_the_bits_of_an_undisturbed_run(tmp_path, on_device, deterministic):
    assert run(on_device(tmp_path / "whole", "train.steps=4"))
    stopped = on_device(tmp_path / "stopped", "train.steps=4", "train.time_limit=0.0")
    assert [run(stopped) for _ in range(4)] == [False] * 3 + [True]
    assert_same_bits(tmp_path / "stopped", tmp_path / "whole")


def in_half(device, scale):
    """A make_accelerator for fp16 that starts from this loss scale; accelerate itself offers none on a CPU."""

    def accelerator(precision, name):
        made = make_accelerator("no" if name == "cpu" else "fp16", name)
        if name == "cpu":
            made.state._mixed_precision, made.native_amp = "fp16", True
        made.scaler = torch.amp.GradScaler(device.type, init_scale=scale)
        return made

    return accelerator


@pytest.mark.slow
def test_steps_that_overflow_are_skipped_and_the_loss_scale_survives_a_stop(
    tmp_path, on_device, device, deterministic, monkeypatch
):
    """The scale is far too large: the first steps overflow and halve it, the last ones are taken."""
    monkeypatch.setattr(train, "make_accelerator", in_half(device, START))
    every_step = ("train.steps=8", "train.checkpoint_every=1", "train.keep_checkpoints=8", "train.log_every=1")
    length = ("precision=fp16", *every_step)
    assert run(on_device(tmp_path / "whole", *length))
    folders = sorted((tmp_path / "whole/checkpoints").iterdir())
    saved = [torch.load(path / "training_state/state.pt") for path in folders]
    unets = [load(weights(path)) for path in folders]
    scales = [state["scaler"]["scale"] for state in saved]
    skipped = [after < before for before, after in zip([START, *scales], scales, strict=False)]
    assert (skipped[0], skipped[-1]) == (True, False)
    for (before, after), skip in zip(pairwise(unets), skipped[1:], strict=True):
        assert all(torch.equal(before[name], after[name]) for name in before) == skip
    steps = [float(state["optimizer"]["state"][0]["step"]) for state in saved]
    assert steps == [sum(not one for one in skipped[: k + 1]) for k in range(8)]
    assert [line["loss_scale"] for line in figures(tmp_path / "whole") if "loss_scale" in line] == scales
    assert ["grad_norm" in line for line in figures(tmp_path / "whole")] == [not one for one in skipped]
    for limit in ("0.0", "0.0", "null"):
        run(on_device(tmp_path / "stopped", *length, f"train.time_limit={limit}"))
    assert_same_bits(tmp_path / "stopped", tmp_path / "whole")


def test_a_gradient_that_overflows_at_every_loss_scale_ends_the_run(tmp_path, on_device, device, monkeypatch):
    original = Objective.__call__
    monkeypatch.setattr(train, "make_accelerator", in_half(device, 2.0))
    # The square root of 0 is finite, its gradient is not.
    monkeypatch.setattr(Objective, "__call__", lambda *given: original(*given) + (0 * original(*given)).sqrt())
    with pytest.raises(TrainingError, match="gradient"):
        run(on_device(tmp_path))


@pytest.mark.gpu  # on a CPU: tests/training/test_loop.py
@pytest.mark.timeout(900)
@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("option", ["channels_last", "gradient_checkpointing", "compile"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method", "ignore:.*TensorFloat32")
def test_switches_of_performance_change_rounding_only(tmp_path, on_device, option):
    assert run(on_device(tmp_path / "plain", *EXACT))
    assert run(on_device(tmp_path / "switched", *EXACT, f"performance.{option}=true"))
    assert losses(tmp_path / "switched") == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)


@pytest.mark.slow
def test_running_out_of_memory_gives_advice_and_loses_nothing(tmp_path, on_device, device, monkeypatch):
    original = Objective.__call__

    def hungry(self, unet, batch, g):
        if g >= 6:  # the first micro-batch of step 3
            if device.type == "cuda":
                torch.empty(2**50, dtype=torch.uint8, device=device)
            raise torch.OutOfMemoryError("out of memory")  # as a GPU raises it
        return original(self, unet, batch, g)

    assert run(on_device(tmp_path / "whole", *EXACT))
    monkeypatch.setattr(Objective, "__call__", hungry)
    with pytest.raises(TrainingError, match=r"step 3 .*train\.micro_batch=2") as caught:
        run(on_device(tmp_path / "short", *EXACT))
    assert "performance.gradient_checkpointing=true" in str(caught.value)
    assert load_latest(tmp_path / "short/checkpoints").step == 2
    monkeypatch.undo()
    assert run(on_device(tmp_path / "short", *EXACT, "performance.gradient_checkpointing=true"))
    assert losses(tmp_path / "short") == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)


@pytest.mark.slow
def test_two_processes_share_one_gpu(tmp_path, on_device, arguments, device):
    short = (f"device={device.type}", "validation=none", *EXACT, "train.steps=2")
    assert run(on_device(tmp_path / "one", *short))
    script, words = Path(__file__).parent / "two_on_one.py", (*arguments, *short, f"run_dir={tmp_path / 'two'}")
    done = call_script(script, *words, processes=2)
    assert done.returncode == 0, done.stderr[-9000:]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
