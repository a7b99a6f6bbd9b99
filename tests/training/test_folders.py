"""A run's folder: its name, what a refused run leaves as it was, and that one process at a time writes to it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
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
from runs import assert_same_end, files

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"


def state(folder):
    """Bytes and times of every file but the lock."""
    return {
        name: (content, (folder / name).stat().st_mtime_ns) for name, content in files(folder).items() if name != LOCK
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """One undisturbed run for the whole module, made by the first test that needs it."""
    return tmp_path_factory.mktemp("undisturbed") / "run"


@pytest.fixture
def whole(undisturbed, configure):
    if not (undisturbed / "final").exists():
        assert run(configure(undisturbed))
    return undisturbed


def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run", copy_function=shutil.copy2)


def test_a_refused_run_writes_nothing(tmp_path, whole, configure):
    folder = copied(whole, tmp_path)
    before = state(folder)
    assert {"config.yaml", "provenance.json", "metrics.jsonl"} <= set(before)
    with pytest.raises(TrainingError, match=r"train\.lr: its checkpoint 0\.0016, this run 0\.1\..* name=run_2"):
        run(configure(folder, "train.lr=0.1", "train.steps=8"))
    assert state(folder) == before


def test_a_base_is_known_by_its_weights(tmp_path, whole, configure, random_base):
    folder = copied(whole, tmp_path)
    base = shutil.copytree(random_base, tmp_path / "base")
    longer = (f"model.base={base}", "train.steps=8", "validation.held_out=false")
    assert run(configure(folder, *longer))
    weights = base / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_in.bias"] += 1
    save_file(tensors, weights)
    with pytest.raises(TrainingError, match="base: its checkpoint "):
        run(configure(folder, *longer))


def test_a_base_is_known_by_its_noise_schedule_too(tmp_path, whole, configure, random_base):
    folder = copied(whole, tmp_path)
    base = shutil.copytree(random_base, tmp_path / "base")
    schedule = json.loads((base / "scheduler/scheduler_config.json").read_text())
    (base / "scheduler/scheduler_config.json").write_text(json.dumps({**schedule, "beta_end": 0.02}))
    with pytest.raises(TrainingError, match="base: its checkpoint "):
        run(configure(folder, f"model.base={base}", "train.steps=8"))


@pytest.mark.parametrize(
    ("override", "error", "key"),
    [
        ("train.keep_checkpoints=0", TrainingError, "train.keep_checkpoints"),
        ("train.validate_every=0", TrainingError, "train.validate_every"),
        ("train.warmup_steps=900", TrainingError, "warmup_steps"),
        ("train.steps=3", TrainingError, "train.steps"),
        ("validation.steps=0", ConfigError, "validation.steps"),
        ("precision=bf16", TrainingError, "precision"),
        ("data.hypersim.transform.quantile=0.05", TrainingError, "data.hypersim.transform.quantile"),
    ],
)
def test_what_could_only_fail_later_is_refused_before_anything_is_written(
    tmp_path, whole, configure, override, error, key
):
    folder = copied(whole, tmp_path)
    before = state(folder)
    with pytest.raises(error, match=key):
        run(configure(folder, override))
    assert state(folder) == before


def test_a_protocol_that_cannot_evaluate_depth_is_refused_at_the_start(tmp_path, arguments):
    with initialize_config_dir(str(SCRIPTS.parent / "configs"), version_base="1.3"):
        config = compose("train", [*arguments, f"run_dir={tmp_path}", "protocol=disparity"])
    with pytest.raises(EvaluationError, match="affine_depth"):
        run(config)


def test_a_base_is_the_first_folder_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(None, ["one/folder", "two/folder", "some/model"], None, None, False)
    assert model.location == "some/model"
    Path("two/folder").mkdir(parents=True)
    assert model.location == "two/folder"
    Path("one/folder").mkdir(parents=True)
    assert model.location == "one/folder"


@pytest.fixture
def started(tmp_path, monkeypatch):
    """started(*words): the folders, below `runs`, of the runs that this command line starts."""

    def start(*words):
        folders = []
        monkeypatch.setattr(train, "run", lambda config: folders.append(run_folder(config)) or True)
        # Hydra's logging would stay behind in this process.
        more = [f"paths.runs={tmp_path}", "hydra/job_logging=none", "hydra/hydra_logging=none"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / "train.py"), *words, *more])
        with pytest.raises(SystemExit, match=r"^0$"):
            launch("train")
        return [folder.relative_to(tmp_path).as_posix() for folder in folders]

    return start


def test_a_run_is_named_after_its_experiments(started, tmp_path):
    both = "+exp=[quickstart,ablation_noise_gaussian]"
    assert started(both) == started(both, "train.lr=1", "train.seed=1") == ["quickstart-ablation_noise_gaussian"]
    assert started("+exp=[hypersim_vkitti,ablation_noise_gaussian]") == ["hypersim_vkitti-ablation_noise_gaussian"]
    assert started("+exp=quickstart") == ["quickstart"]
    assert started("+exp=quickstart", "name=other") == ["other"]
    assert started("+exp=quickstart", f"run_dir={tmp_path / 'a/b'}") == ["a/b"]


def test_each_job_of_several_has_a_folder(started, tmp_path):
    jobs = ("-m", "train.seed=1,2", "train.lr=0.1")
    assert started(*jobs, "+exp=quickstart") == ["quickstart-train.seed=1", "quickstart-train.seed=2"]
    assert started(*jobs, f"run_dir={tmp_path / 'a'}") == ["a/train.seed=1", "a/train.seed=2"]
    names = ["quickstart-ablation_noise_gaussian", "quickstart-ablation_noise_multi_resolution"]
    both = "+exp=[quickstart,ablation_noise_gaussian],[quickstart,ablation_noise_multi_resolution]"
    assert started("-m", both) == names
    assert started("-m", both, "name=study") == [f"study-{name}" for name in names]
    assert started("-m", "+exp=quickstart", "name=a,b") == ["a", "b"]


def test_a_stopped_job_ends_those_after_it_and_a_failed_one_does_not(tmp_path, monkeypatch, capsys):
    ends = iter([False, True])
    monkeypatch.setattr(train, "run", lambda config: next(ends))
    more = [f"paths.runs={tmp_path}", "hydra/job_logging=none", "hydra/hydra_logging=none", "+exp=quickstart"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / "train.py"), "-m", "train.seed=1,2", *more])
    with pytest.raises(SystemExit, match=r"^75$"):
        launch("train")
    assert next(ends) is True  # the second job was not started

    def fail(config):
        raise ConfigError(f"seed {config.train.seed}")

    monkeypatch.setattr(train, "run", fail)
    monkeypatch.setattr(sys, "argv", [str(SCRIPTS / "train.py"), "-m", "train.seed=1,2", *more])
    with pytest.raises(SystemExit, match=r"^1$"):
        launch("train")
    assert "2 job(s) failed" in capsys.readouterr().err


def test_a_defect_keeps_its_traceback_and_a_message_for_people_is_one_line(tmp_path, monkeypatch):
    sys_argv = [str(SCRIPTS / "train.py"), f"paths.runs={tmp_path}", "hydra/job_logging=none", "+exp=quickstart"]
    for error, expected in ((ConfigError("train.steps"), SystemExit), (FileNotFoundError("x"), SystemExit)):
        monkeypatch.setattr(train, "run", lambda config, error=error: exec("raise error", {"error": error}))
        monkeypatch.setattr(sys, "argv", list(sys_argv))
        with pytest.raises(expected):
            launch("train")
    monkeypatch.setattr(train, "run", lambda config: np.zeros(2) + np.zeros(3))
    monkeypatch.setattr(sys, "argv", list(sys_argv))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="broadcast"):
        launch("train")


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
def test_no_process_writes_into_a_cache_that_is_in_use(tmp_path, configure, arguments):
    folder = tmp_path / "cache"
    log = tmp_path / "log"
    words = (*arguments, f"cache.folder={folder}", "cache.shard_size=1", "cache.batch=1")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with lock_folder(folder / "hypersim"), log.open("wb") as file:
        command = [*torchrun, str(SCRIPTS / "cache_latents.py"), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        assert subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT).returncode != 0
    assert "is in use" in log.read_text()
    assert [path.name for path in (folder / "hypersim").iterdir()] == [LOCK]


def start(name, log, *arguments):
    """A script in a process of its own; what it says goes to `log`."""
    with log.open("wb") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, str(SCRIPTS / name), *arguments], env=environment, stdout=file, stderr=subprocess.STDOUT
        )


def stop_when_there(process, path, log):
    """Halt the process, which goes on holding its locks, as soon as the file appears."""
    deadline = time.monotonic() + 200
    while not path.exists():
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)


@pytest.mark.slow
def test_a_second_run_leaves_the_folder_of_a_first_alone(tmp_path, whole, arguments):
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    first = start("train.py", log, *arguments, f"run_dir={folder}")
    try:
        stop_when_there(first, folder / "checkpoints/step_000002", log)
        before = state(folder)
        second = start("train.py", tmp_path / "second.txt", *arguments, f"run_dir={folder}")
        assert second.wait() == 1
        said = [line for line in (tmp_path / "second.txt").read_text().splitlines() if line.startswith("error: ")]
        assert len(said) == 1
        assert f"{folder} is in use by process {first.pid}" in said[0]
        assert "Traceback" not in (tmp_path / "second.txt").read_text()
        assert state(folder) == before
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0, log.read_text()[-2000:]
    finally:
        first.kill()
        first.wait()
    assert_same_end(folder, whole)


@pytest.mark.slow
def test_a_second_cache_is_refused_until_the_first_is_killed(tmp_path, configure, arguments):
    small = ("cache.shard_size=1", "cache.batch=1")
    cache, log = tmp_path / "latents", tmp_path / "log.txt"
    config = configure(tmp_path / "run", *small, f"cache.folder={cache}", "cache.enabled=true")
    first = start("cache_latents.py", log, *arguments, *small, f"cache.folder={cache}")
    try:
        stop_when_there(first, cache / "hypersim/image/shard_00000.h5", log)
        before = state(cache)
        with pytest.raises(FolderInUse, match=f"hypersim is in use by process {first.pid}"):
            cache_latents(config)
        assert state(cache) == before
    finally:
        first.kill()
        first.wait()
    cache_latents(config)
    kept = {name: content for name, content in before.items() if name.endswith(".h5")}
    assert {name: state(cache)[name] for name in kept} == kept
    assert run(config)
