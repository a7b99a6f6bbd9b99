"""A run that was disturbed ends with the same losses and the same bytes as one that was not."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from marigold import train
from marigold.train import run
from marigold.training.checkpoint import load_latest
from runs import assert_same_end, figures, losses, weights

SCRIPT = Path(__file__).parent.parent.parent / "scripts/train.py"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """One undisturbed run for the whole module, made by the first test that needs it."""
    return tmp_path_factory.mktemp("undisturbed")


def reference(undisturbed, configure):
    if not (undisturbed / "final").exists():
        assert run(configure(undisturbed))
    return undisturbed


def test_stopping_after_every_single_step_changes_nothing(tmp_path, undisturbed, configure):
    whole = reference(undisturbed, configure)
    config = configure(tmp_path, "train.time_limit=0.0")
    assert [run(config) for _ in range(6)] == [False] * 5 + [True]
    assert figures(tmp_path) == figures(whole)
    assert weights(tmp_path) == weights(whole)


@pytest.mark.slow
def test_killed_process_continues_bit_for_bit(tmp_path, undisturbed, configure, arguments):
    whole = reference(undisturbed, configure)
    command = [sys.executable, str(SCRIPT), *arguments, f"run_dir={tmp_path}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)
    deadline = time.monotonic() + 200
    while not (tmp_path / "checkpoints/step_000002").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "final").exists()
    assert run(configure(tmp_path))
    assert figures(tmp_path) == figures(whole)
    assert weights(tmp_path) == weights(whole)


def test_sigterm_saves_and_says_so(tmp_path, configure, undisturbed, monkeypatch):
    whole = reference(undisturbed, configure)
    config = configure(tmp_path)
    sent = []

    def terminate_once(self, step):
        if not sent and step == 3:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step)

    from marigold.data.mixture import MixtureDataset

    original = MixtureDataset.__getitem__
    monkeypatch.setattr(MixtureDataset, "__getitem__", terminate_once)
    assert run(config) is False
    assert run(config) is True
    assert weights(tmp_path) == weights(whole)


def test_another_recipe_is_not_continued(tmp_path, configure):
    assert not run(configure(tmp_path, "train.time_limit=0.0", "train.lr=0.0005"))
    with pytest.raises(ValueError, match=r"train\.lr: its checkpoint 0\.0005, this run 0\.001.* name="):
        run(configure(tmp_path, "train.lr=0.001"))


@pytest.mark.slow
def test_moving_average_is_exported_and_survives_stops(tmp_path, undisturbed, configure):
    plain = reference(undisturbed, configure)
    averaged, stopped = (configure(tmp_path / name, "train.ema_decay=0.5") for name in ("whole", "stopped"))
    assert run(averaged)
    stopped.train.time_limit = 0.0
    assert [run(stopped) for _ in range(6)] == [False] * 5 + [True]
    # The average follows the training and does not change it.
    losses = [line["loss"] for line in figures(tmp_path / "whole") if "loss" in line]
    assert losses == [line["loss"] for line in figures(plain) if "loss" in line]
    assert weights(tmp_path / "whole") != weights(plain)
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


def test_moving_average_by_hand(tmp_path, configure):
    """Three stops give the weights after 1, 2 and 3 steps, and diffusers' warm-up of the decay is known."""
    config = configure(tmp_path, "train.ema_decay=0.9", "train.time_limit=0.0", "train.checkpoint_every=1")
    plain, average = [], []
    for _ in range(3):
        assert not run(config)
        state = load_latest(tmp_path / "checkpoints").state()
        plain.append(state["weights"][0].double())
        average.append(state["average"]["shadow_params"][0].double())
    expected = plain[0]  # the first update takes the weights as they are
    for step in (1, 2):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * plain[step]
        torch.testing.assert_close(average[step], expected, rtol=0, atol=1e-7)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes.*")
def test_eight_bit_moments_train_and_survive_stops(tmp_path, undisturbed, configure):
    eight = "train.optimizer=adam8bit"
    assert run(configure(tmp_path / "whole", eight))
    assert not run(configure(tmp_path / "stopped", eight, "train.time_limit=0.0"))
    assert run(configure(tmp_path / "stopped", eight))
    assert figures(tmp_path / "stopped") == figures(tmp_path / "whole")
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")
    assert losses(tmp_path / "whole") == pytest.approx(losses(reference(undisturbed, configure)), rel=0.05)
    saved = torch.load(tmp_path / "whole/checkpoints/step_000006/training_state/state.pt", weights_only=True)
    assert "torch.uint8" in {str(tensor.dtype) for tensor in tensors(saved["optimizer"]["state"])}


def tensors(tree):
    """Every tensor of a nest of dicts: bitsandbytes' layout differs between its versions."""
    if isinstance(tree, dict):
        return [tensor for value in tree.values() for tensor in tensors(value)]
    return [tree] if isinstance(tree, torch.Tensor) else []


def test_offline_wandb_needs_no_account_and_goes_on_in_the_same_run(tmp_path, configure, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    offline = ("tracker=wandb", "tracker.mode=offline")
    assert not run(configure(tmp_path, *offline, "train.time_limit=0.0"))
    identity = (tmp_path / "wandb_id.txt").read_text()
    assert run(configure(tmp_path, *offline))
    assert (tmp_path / "wandb_id.txt").read_text() == identity
    parts = sorted(tmp_path.glob("wandb/offline-run-*"))
    assert [part.name.rsplit("-", 1)[1] for part in parts] == [identity] * 2
    assert all(next(part.glob("run-*.wandb")).stat().st_size for part in parts)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
@pytest.mark.parametrize("disturbance", ["stop", "kill"])
def test_tensorboard_curves_of_a_resumed_run_are_those_of_metrics_jsonl(tmp_path, configure, monkeypatch, disturbance):
    """A run is stopped after a step, or killed once its validation is logged and before that is recorded."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    often = ("tracker=tensorboard", "train.validate_every=2", "train.log_every=1")
    if disturbance == "stop":
        assert not run(configure(tmp_path, *often, "train.time_limit=0.0"))
    else:
        with monkeypatch.context() as patch:
            patch.setattr("marigold.train.promote", killed)
            with pytest.raises(KeyboardInterrupt):
                run(configure(tmp_path, *often))
    assert run(configure(tmp_path, *often))
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    expected = {}
    for entry in figures(tmp_path):
        for name in entry.keys() - {"step"}:
            expected.setdefault(name, []).append(entry["step"])
    found = {name: [point.step for point in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert {name: steps for name, steps in found.items() if name in expected} == expected
    losses_logged = [point.value for point in events.Scalars("loss")]
    assert losses_logged == pytest.approx([entry["loss"] for entry in figures(tmp_path) if "loss" in entry])


def killed(*arguments):
    raise KeyboardInterrupt


def validated(folder, name):
    """The metrics of the model card of best/ or final/, as it prints them."""
    lines = (folder / name / "README.md").read_text().split("## Scores")[1].split("## ")[0].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if " validation " in line]
    return {f"{data.split()[0]}/{metric}": value for data, _, metric, value in cells}


OFTEN = ("train.validate_every=2", "validation.panel=1")


@pytest.fixture
def often(tmp_path_factory, configure):
    """A run that was validated three times, undisturbed; folders of one name have the same model cards."""
    folder = tmp_path_factory.getbasetemp() / "often/run"
    if not (folder / "final").exists():
        assert run(configure(folder, *OFTEN))
    return folder


def test_model_cards_have_the_metrics_of_their_step(often):
    lines = [line for line in figures(often) if "loss" not in line]
    assert [line["step"] for line in lines] == [2, 4, 6]
    best = min(lines, key=lambda line: line["hypersim/abs_rel"])
    for name, line in (("best", best), ("final", lines[-1])):
        expected = {key: f"{value:.4f}" for key, value in line.items() if key != "step"}
        assert len(expected) == 4
        assert validated(often, name) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("before", "step"), [("evaluate_on", 6), ("copy_model", 6), ("record_validation", 2)])
def test_a_run_killed_before_a_validation_is_finished_repeats_it(
    tmp_path, often, configure, monkeypatch, before, step
):
    original = getattr(train, before)

    def killed(*arguments, **more):
        if (tmp_path / f"run/checkpoints/step_{step:06d}").exists():
            raise KeyboardInterrupt
        return original(*arguments, **more)

    monkeypatch.setattr(train, before, killed)
    with pytest.raises(KeyboardInterrupt):
        run(configure(tmp_path / "run", *OFTEN))
    assert load_latest(tmp_path / "run/checkpoints").step == step
    monkeypatch.undo()
    assert run(configure(tmp_path / "run", *OFTEN))
    assert_same_end(tmp_path / "run", often)


def test_a_run_shortened_to_a_validated_step_makes_its_final_model(tmp_path, often, configure, monkeypatch):
    """The same as one that was this short from the start, but for the settings that the card tells."""
    folder = shutil.copytree(often, tmp_path / "run")
    for name in ("final", "checkpoints/step_000006"):
        shutil.rmtree(folder / name)
    assert run(configure(folder, *OFTEN, "train.steps=4"))
    assert validated(folder, "final") == {
        key: f"{value:.4f}" for key, value in figures(folder)[-1].items() if key != "step"
    }
    assert (
        weights(folder) == (folder / "checkpoints/step_000004/unet/diffusion_pytorch_model.safetensors").read_bytes()
    )
    assert [line["step"] for line in figures(folder)] == [2, 2, 4, 4]


def test_best_is_chosen_anew_by_another_metric_or_list(tmp_path, often, configure, caplog):
    folder = shutil.copytree(often, tmp_path / "run")
    last = figures(often)[-1]
    for override, key in (
        ("train.select_by=vkitti/abs_rel", "vkitti/abs_rel"),
        ("data.hypersim.held_out.limit=1", None),
    ):
        caplog.clear()
        assert run(configure(folder, *OFTEN, override))
        assert "chosen anew" in caplog.text
        said = validated(folder, "best")
        assert weights(folder) == (folder / "best/unet/diffusion_pytorch_model.safetensors").read_bytes()
        if key:
            assert said[key] == f"{last[key]:.4f}"
    assert "| hypersim validation | 1 | abs_rel |" in (folder / "best/README.md").read_text()
