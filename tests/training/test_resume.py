"""A run that was disturbed ends with the same losses and the same bytes as one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from marigold.train import run
from marigold.training.checkpoint import load_latest
from runs import figures, losses, weights

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
