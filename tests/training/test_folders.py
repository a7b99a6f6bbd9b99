"""A run's folder: its name, what a refused run leaves as it was, and that one process at a time writes to it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from marigold import provenance, train
from marigold.cache_latents import run as cache_latents
from marigold.cli import launch
from marigold.config import ConfigError
from marigold.evaluation.errors import EvaluationError
from marigold.files import LOCK, FolderInUse, lock_folder
from marigold.inputs import run_folder
from marigold.model.base import ModelConfig
from marigold.train import run
from marigold.training.settings import TrainingError
from runs import OFTEN, ROOT, assert_same_end, call_script, files, start_script, wait_until


def state(folder):
    """Bytes and times of every file but the lock."""
    return {
        name: (content, (folder / name).stat().st_mtime_ns) for name, content in files(folder).items() if name != LOCK
    }


@pytest.mark.parametrize(
    ("override", "error", "key"),
    [
        ("train.lr=0.1", TrainingError, r"train\.lr: its checkpoint 0\.0016, this run 0\.1\..* name="),
        ("train.keep_checkpoints=0", TrainingError, "train.keep_checkpoints"),
        ("train.validate_every=0", TrainingError, "train.validate_every"),
        ("train.warmup_steps=900", TrainingError, "warmup_steps"),
        ("train.steps=3", TrainingError, "train.steps"),
        ("train.optimizer=sgd", TrainingError, "optimizer"),
        ("train.micro_batch=3", TrainingError, r"effective_batch=4 .*micro_batch=3"),
        ("precision=bf16", TrainingError, "precision"),
        ("precision=half", TrainingError, "precision"),
        ("+train.learning_rate=1", ConfigError, "learning_rate"),
        ("train.lr=fast", ConfigError, "lr.*fast"),
        ("validation.steps=0", ConfigError, "validation.steps"),
        ("protocol=disparity", EvaluationError, "affine_depth"),
    ],
)
def test_what_could_only_fail_later_is_refused_before_anything_is_written(whole, configure, override, error, key):
    before = state(whole)
    assert {"config.yaml", "provenance.json", "metrics.jsonl"} <= set(before)
    with pytest.raises(error, match=key):
        run(configure(whole, override))
    assert state(whole) == before


def test_a_base_is_known_by_its_weights_and_its_settings(tmp_path, whole, configure, random_base):
    """The space that a depth model predicts is one of them, and can be refused before anything is compared."""
    changes = {
        "scheduler/scheduler_config.json": {"beta_end": 0.02},
        "model_index.json": {"prediction_type": "disparity"},
    }
    for name, changed in changes.items():
        base = shutil.copytree(random_base, tmp_path / Path(name).stem)
        settings = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**settings, **changed}))
        with pytest.raises(ValueError, match=r"base: its checkpoint |disparity"):
            run(configure(whole, f"model.base={base}"))
    base = shutil.copytree(random_base, tmp_path / "weights")
    weights = base / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    save_file({**tensors, "conv_in.bias": tensors["conv_in.bias"] + 1}, weights)
    with pytest.raises(TrainingError, match="base: its checkpoint "):
        run(configure(whole, f"model.base={base}"))


def test_a_base_is_the_first_folder_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(None, ["one/folder", "two/folder", "some/model"], None, None, False)
    assert model.location == "some/model"
    for folder in ("two/folder", "one/folder"):
        Path(folder).mkdir(parents=True)
        assert model.location == folder


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """launched(run, *words): scripts/train.py with this command line and another function for the run; its exit."""

    def launched(run, *words):
        experiment = () if any(word.startswith("+exp=") for word in words) else ("+exp=quickstart",)
        # Hydra's logging would stay behind in this process.
        quiet = ("hydra/job_logging=none", "hydra/hydra_logging=none")
        monkeypatch.setattr(train, "run", run)
        command = [str(ROOT / "scripts/train.py"), *words, *experiment, *quiet, f"paths.runs={tmp_path}"]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            launch("train")
        return ended.value.code

    return launched


BOTH = "quickstart,ablation_noise"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([f"+exp=[{BOTH}_gaussian]", "train.lr=1", "train.seed=1"], ["quickstart-ablation_noise_gaussian"]),
        (["+exp=quickstart", "name=other"], ["other"]),
        (["run_dir=RUNS/a/b"], ["a/b"]),
        (["-m", "train.seed=1,2", "train.lr=0.1"], ["quickstart-train.seed=1", "quickstart-train.seed=2"]),
        (["-m", "train.seed=1,2", "run_dir=RUNS/a"], ["a/train.seed=1", "a/train.seed=2"]),
        (
            ["-m", f"+exp=[{BOTH}_gaussian],[{BOTH}_multi_resolution]", "name=study"],
            [f"study-quickstart-ablation_noise_{noise}" for noise in ("gaussian", "multi_resolution")],
        ),
        (["-m", "name=a,b"], ["a", "b"]),
    ],
)
def test_a_run_is_named_after_its_experiments_and_each_of_several_jobs_has_a_folder(
    launched, tmp_path, words, expected
):
    folders = []
    words = [word.replace("RUNS", str(tmp_path)) for word in words]
    assert launched(lambda config: folders.append(run_folder(config)) or True, *words) == 0
    assert [folder.relative_to(tmp_path).as_posix() for folder in folders] == expected


def test_a_stopped_job_ends_those_after_it_and_a_failed_one_does_not(launched, capsys):
    ends = iter([False, True])
    assert launched(lambda config: next(ends), "-m", "train.seed=1,2") == 75
    assert next(ends) is True  # the second job was not started

    def fail(config):
        raise ConfigError(f"seed {config.train.seed}")

    assert launched(fail, "-m", "train.seed=1,2") == 1
    assert "2 job(s) failed" in capsys.readouterr().err


def test_changes_are_recorded_as_a_patch_and_only_of_our_own_checkout(tmp_path, monkeypatch):
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

    def git(*words):
        return subprocess.run(["git", "-C", tmp_path, *words], env={**os.environ, **identity}, check=True)

    (tmp_path / "marigold").mkdir()
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "marigold")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "a.txt").write_bytes("na\u00efve \n".encode("latin-1"))
    git("init", "-q")
    git("add", "-A")
    git("commit", "-qm", "x")
    (tmp_path / "a.txt").write_bytes("na\u00efve\n\n".encode("latin-1"))
    provenance.write(tmp_path / "run", 1)
    assert provenance.commit().endswith("-dirty")
    git("stash", "-q")
    git("apply", "run/changes.diff")
    (tmp_path / "pyproject.toml").unlink()  # as in somebody's environment within a repository
    provenance.write(tmp_path / "other", 1)
    assert provenance.commit() == "unknown"
    assert not (tmp_path / "other/changes.diff").exists()


@pytest.mark.slow
def test_no_process_writes_into_a_cache_that_is_in_use(tmp_path, arguments):
    folder = tmp_path / "cache"
    with lock_folder(folder / "hypersim"):
        done = call_script("cache_latents.py", *arguments, f"cache.folder={folder}", processes=2)
    assert done.returncode != 0
    assert f"process {os.getpid()}" in done.stderr
    assert [path.name for path in (folder / "hypersim").iterdir()] == [LOCK]


@contextmanager
def halted(script, log, seen, *words):
    """The process of a script that is halted, with its locks, once `seen` is true."""
    process = start_script(script, log, *words)
    try:
        wait_until(process, log, seen)
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_second_run_leaves_the_folder_of_a_first_alone(tmp_path, whole, arguments):
    folder, log = tmp_path / "run", tmp_path / "first.txt"
    words = (*arguments, *OFTEN, f"run_dir={folder}")
    with halted("train.py", log, (folder / "checkpoints/step_000002").exists, *words) as first:
        before = state(folder)
        second = call_script("train.py", *words)
        assert second.returncode == 1
        assert f"error: {folder} is in use by process {first.pid}" in second.stderr
        assert state(folder) == before
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0, log.read_text()[-2000:]
    assert_same_end(folder, whole)


@pytest.mark.slow
def test_a_second_cache_is_refused_until_the_first_is_killed_and_keeps_its_shards(tmp_path, configure, arguments):
    cache, log = tmp_path / "latents", tmp_path / "log.txt"
    words = ("cache.shard_size=1", "cache.batch=1", f"cache.folder={cache}")
    config = configure(tmp_path / "run", *words, "cache.enabled=true")
    seen = (cache / "hypersim/image/shard_00000.h5").exists
    with halted("cache_latents.py", log, seen, *arguments, *words) as first:
        before = state(cache)
        with pytest.raises(FolderInUse, match=f"hypersim is in use by process {first.pid}"):
            cache_latents(config)
        assert state(cache) == before
    cache_latents(config)
    kept = {name: content for name, content in before.items() if name.endswith(".h5")}
    assert {name: state(cache)[name] for name in kept} == kept
    assert run(config)
