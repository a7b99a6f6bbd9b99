"""A run's folder: its name, who may write to it, and that a refused run changes nothing in it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from marigold import provenance, train
from marigold.cli import launch
from marigold.config import ConfigError
from marigold.evaluation.errors import EvaluationError
from marigold.files import LOCK, FolderInUse, lock_folder
from marigold.inputs import run_folder
from marigold.model.base import ModelConfig
from marigold.train import run
from marigold.training.settings import TrainingError
from runs import ROOT, call_script, files


@pytest.mark.parametrize(
    ("override", "error", "key"),
    [
        ("train.lr=0.1", TrainingError, r"train\.lr: its checkpoint 0\.0016, this run 0\.1\..* name="),
        ("train.validate_every=0", TrainingError, "train.validate_every"),
        ("train.warmup_steps=900", TrainingError, "warmup_steps"),
        ("train.steps=3", TrainingError, "train.steps"),
        ("train.optimizer=sgd", TrainingError, "optimizer"),
        ("train.micro_batch=3", TrainingError, r"effective_batch=4 .*micro_batch=3"),
        ("precision=half", TrainingError, "precision"),
        ("+train.learning_rate=1", ConfigError, "learning_rate"),
        ("train.lr=fast", ConfigError, "lr.*fast"),
        ("validation.steps=0", ConfigError, "validation.steps"),
        ("protocol=disparity", EvaluationError, "affine_depth"),
    ],
)
def test_what_could_only_fail_later_is_refused_before_anything_is_written(whole, configure, override, error, key):
    before = files(whole)
    with pytest.raises(error, match=key):
        run(configure(whole, override))
    assert files(whole) == before


def test_a_folder_in_use_is_left_alone(whole, configure):
    before = files(whole)
    with lock_folder(whole), pytest.raises(FolderInUse, match=f"{whole} is in use by process {os.getpid()}"):
        run(configure(whole))
    assert files(whole) == before


@pytest.mark.slow
def test_no_process_writes_into_a_cache_that_is_in_use(tmp_path, arguments):
    folder = tmp_path / "cache"
    with lock_folder(folder / "hypersim"):
        done = call_script("cache_latents.py", *arguments, f"cache.folder={folder}", processes=2)
    assert done.returncode != 0
    assert f"process {os.getpid()}" in done.stderr
    assert [path.name for path in (folder / "hypersim").iterdir()] == [LOCK]


@pytest.mark.parametrize("part", ["scheduler", "weights"])
def test_a_base_is_known_by_its_weights_and_its_settings(tmp_path, whole, configure, random_base, part):
    base = shutil.copytree(random_base, tmp_path / "base")
    if part == "scheduler":
        file = base / "scheduler/scheduler_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "beta_end": 0.02}))
    else:
        file = base / "unet/diffusion_pytorch_model.safetensors"
        tensors = load_file(file)
        save_file({**tensors, "conv_in.bias": tensors["conv_in.bias"] + 1}, file)
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


NOISES = [f"quickstart,ablation_noise_{noise}" for noise in ("gaussian", "multi_resolution")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([f"+exp=[{NOISES[0]}]", "recipe=lotus_d", "train.lr=1"], ["quickstart-ablation_noise_gaussian-lotus_d"]),
        (["-m", "train.seed=1,2", "train.lr=0.1"], ["quickstart-train.seed=1", "quickstart-train.seed=2"]),
        (["-m", "train.seed=1,2", "run_dir=RUNS/a"], ["a/train.seed=1", "a/train.seed=2"]),
        (
            ["-m", f"+exp=[{NOISES[0]}],[{NOISES[1]}]", "name=study"],
            [f"study-{experiments.replace(',', '-')}" for experiments in NOISES],
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
    def git(*words):
        identity = ("-c", "user.name=x", "-c", "user.email=x")
        return subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True)

    monkeypatch.setattr(provenance, "PACKAGE", tmp_path / "marigold")
    (tmp_path / "marigold").mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "a.txt").write_bytes("na\u00efve \n".encode("latin-1"))
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "x")):
        git(*words)
    (tmp_path / "a.txt").write_bytes("na\u00efve\n\n".encode("latin-1"))
    provenance.write(tmp_path / "run", 1)
    assert provenance.commit().endswith("-dirty")
    git("stash", "-q")
    git("apply", "run/changes.diff")
    (tmp_path / "pyproject.toml").unlink()  # as in somebody's environment within a repository
    provenance.write(tmp_path / "other", 1)
    assert provenance.commit() == "unknown"
    assert not (tmp_path / "other/changes.diff").exists()
