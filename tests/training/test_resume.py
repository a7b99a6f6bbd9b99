"""A run that was disturbed ends with the same losses and the same bytes as one that was not."""

import os
import re
import shutil
import signal

import pytest
import torch

from marigold import train
from marigold.data.mixture import MixtureDataset
from marigold.train import run
from marigold.training.average import MovingAverage
from marigold.training.checkpoint import load_latest
from runs import LORA, OFTEN, assert_same_bits, figures, killed, losses, weights

AVERAGE = ("train.ema_decay=0.5",)
EIGHT_BIT = ("train.optimizer=adam8bit",)
KINDS = {
    "plain": (),
    "average": AVERAGE,
    "adapters": LORA,
    "average of adapters": (*LORA, *AVERAGE),
    "eight bits": EIGHT_BIT,
}
each_kind = [pytest.param(kind, id=name, marks=[pytest.mark.slow] if kind else []) for name, kind in KINDS.items()]
quiet_bitsandbytes = pytest.mark.filterwarnings("ignore::DeprecationWarning:bitsandbytes.*")


@quiet_bitsandbytes
@pytest.mark.parametrize("kind", each_kind)
def test_stopping_after_every_single_step_changes_nothing(tmp_path, undisturbed, configure, kind):
    config = configure(tmp_path, *OFTEN, *kind, "train.time_limit=0.0")
    assert [run(config) for _ in range(4)] == [False] * 3 + [True]
    assert_same_bits(tmp_path, undisturbed(*kind))


def test_sigterm_saves_and_says_so(tmp_path, configure, whole, monkeypatch):
    original, sent = MixtureDataset.__getitem__, []

    def terminate_once(self, step):
        if not sent and step == 3:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step)

    monkeypatch.setattr(MixtureDataset, "__getitem__", terminate_once)
    assert [run(configure(tmp_path, *OFTEN)) for _ in range(2)] == [False, True]
    assert_same_bits(tmp_path, whole)


@pytest.mark.slow
def test_a_moving_average_follows_the_training_and_does_not_change_it(undisturbed, whole):
    assert losses(undisturbed(*AVERAGE)) == losses(whole)
    assert weights(undisturbed(*AVERAGE)) != weights(whole)


def test_moving_average_by_hand():
    """diffusers' warm-up of the decay is known; a stop after every step changes nothing."""
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    average = MovingAverage([parameter], 0.9)
    weights = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = weights[0]  # the first update takes the weights as they are
    for step, value in enumerate(weights):
        parameter.data.copy_(value)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value if step else expected
        with average.in_place():
            torch.testing.assert_close(parameter.data, expected, rtol=0, atol=1e-12)
            state = average.state()
        assert torch.equal(parameter.data, value)
        parameter = torch.nn.Parameter(torch.zeros_like(parameter))
        average = MovingAverage([parameter], 0.9)
        average.load(state)
        assert torch.equal(parameter.data, value)


@pytest.mark.slow
@quiet_bitsandbytes
def test_eight_bit_moments_train_almost_the_same_and_take_less_room(undisturbed, whole):
    folder, state = undisturbed(*EIGHT_BIT), "checkpoints/step_000004/training_state/state.pt"
    assert losses(folder) == pytest.approx(losses(whole), rel=0.05)
    assert (folder / state).stat().st_size < 0.5 * (whole / state).stat().st_size


@pytest.mark.slow
def test_offline_wandb_needs_no_account_and_resumes_in_the_same_run(tmp_path, configure, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    offline = ("tracker=wandb", "tracker.mode=offline", "validation=none", "train.steps=2")
    assert not run(configure(tmp_path, *offline, "train.time_limit=0.0"))
    identity = (tmp_path / "wandb_id.txt").read_text()
    assert run(configure(tmp_path, *offline))
    assert (tmp_path / "wandb_id.txt").read_text() == identity
    parts = [path.name for path in tmp_path.glob("wandb/offline-run-*")]
    assert [part.rsplit("-", 1)[1] for part in parts] == [identity] * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard.*")
def test_tensorboard_curves_of_a_killed_run_are_those_of_metrics_jsonl(tmp_path, configure, monkeypatch):
    """Killed once its validation is logged, and before that is recorded."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    often = ("tracker=tensorboard", "train.validate_every=1", "train.log_every=1", "train.steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(train, "promote", killed)
        with pytest.raises(KeyboardInterrupt):
            run(configure(tmp_path, *often))
    assert run(configure(tmp_path, *often))
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    for name in ("loss", "hypersim/abs_rel"):
        expected = [(line["step"], line[name]) for line in figures(tmp_path) if name in line]
        found = [(point.step, pytest.approx(point.value)) for point in events.Scalars(name)]
        assert len(expected) == 2
        assert found == expected


def validated(folder, name):
    """The metrics of the model card of best/ or final/, as it prints them."""
    rows = re.findall(r"\| (\w+) validation \| \d+ \| (\w+) \| (\S+) \|", (folder / name / "README.md").read_text())
    return {f"{data}/{metric}": value for data, metric, value in rows}


def printed(line):
    """Logged metrics as a model card prints them."""
    return {key: f"{value:.4f}" for key, value in line.items() if key != "step"}


def test_model_cards_have_the_metrics_of_their_step(whole):
    lines = [line for line in figures(whole) if "loss" not in line]
    assert [line["step"] for line in lines] == [2, 4]
    assert validated(whole, "best") == printed(min(lines, key=lambda line: line["hypersim/abs_rel"]))
    assert validated(whole, "final") == printed(lines[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "before", "step"),
    [
        ((), "record_validation", 2),
        (LORA, "write_model", 4),
        (LORA, "record_validation", 4),
    ],
)
def test_a_run_killed_before_a_step_is_finished_repeats_it(
    tmp_path, undisturbed, configure, monkeypatch, kind, before, step
):
    original, folder = getattr(train, before), tmp_path / "run"

    def killed_late(*arguments, **more):
        return (killed if (folder / f"checkpoints/step_{step:06d}").exists() else original)(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(train, before, killed_late)
        with pytest.raises(KeyboardInterrupt):
            run(configure(folder, *OFTEN, *kind))
    assert load_latest(folder / "checkpoints").step == step
    assert run(configure(folder, *OFTEN, *kind))
    assert_same_bits(folder, undisturbed(*kind), cards=True)


def test_a_run_shortened_to_a_validated_step_makes_its_final_model(tmp_path, whole, configure):
    folder = shutil.copytree(whole, tmp_path / "run")
    for name in ("final", "checkpoints/step_000004"):
        shutil.rmtree(folder / name)
    assert run(configure(folder, *OFTEN, "train.steps=2"))
    assert validated(folder, "final") == printed(figures(folder)[-1])
    assert weights(folder) == weights(folder / "checkpoints/step_000002")
    assert [line["step"] for line in figures(folder)] == [2, 2]


def test_best_is_chosen_anew_by_another_metric_or_list(tmp_path, whole, configure):
    folder, last = shutil.copytree(whole, tmp_path / "run"), figures(whole)[-1]
    assert run(configure(folder, *OFTEN, "train.select_by=vkitti/abs_rel"))
    assert validated(folder, "best") == printed(last)
    assert run(configure(folder, *OFTEN, "data.hypersim.held_out.limit=1"))
    assert weights(folder) == weights(folder / "best")
    assert "| hypersim validation | 1 | abs_rel |" in (folder / "best/README.md").read_text()
