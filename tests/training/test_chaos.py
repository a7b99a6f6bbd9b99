"""A run that is killed again and again, and once finds the disk full, ends as if nothing had happened."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from marigold.train import run
from marigold.training.checkpoint import VALIDATION, check
from runs import assert_same_end

SCRIPT = Path(__file__).parent.parent.parent / "scripts/train.py"
STEPS, KILLS, SEED = 40, 15, 7
# Somewhere in a step, while a checkpoint is written, and while one that is saved is validated.
MOMENTS = ("anywhere", "saving", "validating")
LENGTH = [f"train.steps={STEPS}", "train.validate_every=1"]
FILE_LIMIT = 200_000  # bytes; the U-Net's file alone is larger


def start(arguments: list[str], folder: Path, log: Path, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), *arguments, *LENGTH, f"run_dir={folder}"]
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=file, stderr=subprocess.STDOUT, **options
        )


def wait_until(process: subprocess.Popen[bytes], log: Path, seen) -> None:
    deadline = time.monotonic() + 300
    while not seen():
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def not_validated(checkpoints: Path) -> list[Path]:
    """Checkpoints whose validation is not finished; one that is deleted meanwhile is none."""
    found = [path for path in checkpoints.glob("step_*") if not (path / VALIDATION).exists()]
    return [path for path in found if path.exists()]


def left_at(checkpoints: Path) -> str:
    """In the middle of what the run was killed."""
    if any(checkpoints.glob(".partial-step_*")):
        return "saving"
    return "validating" if not_validated(checkpoints) else "anywhere"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_and_a_full_disk_change_nothing(tmp_path, configure, arguments):
    whole, folder, log = tmp_path / "whole/run", tmp_path / "chaos/run", tmp_path / "log.txt"
    assert run(configure(whole, *LENGTH))
    checkpoints = folder / "checkpoints"
    rng = random.Random(SEED)
    steps_seen, kinds = set(), Counter()
    for kill in range(KILLS):
        moment = MOMENTS[kill % len(MOMENTS)]
        process = start(arguments, folder, log)
        known = {path.name for path in checkpoints.glob("step_*")}
        wait_until(process, log, lambda known=known: {path.name for path in checkpoints.glob("step_*")} - known)
        if moment == "saving":
            wait_until(process, log, lambda: any(checkpoints.glob(".partial-step_*")))
        elif moment == "validating":
            wait_until(process, log, lambda: not_validated(checkpoints))
        else:
            time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        kinds[left_at(checkpoints) if moment != "anywhere" else moment] += 1
        found = sorted(checkpoints.glob("step_*"))
        assert found
        for path in found:
            check(path)  # nothing half-written has a final name
        steps_seen.add(found[-1].name)
    assert len(steps_seen) > KILLS // 2  # it went on in between
    assert all(kinds[moment] >= 4 for moment in MOMENTS), kinds

    # A file that cannot grow fails as it does on a full disk: with OSError, in the middle of a write.
    before = sorted(path.name for path in checkpoints.glob("step_*"))
    process = start(
        arguments, folder, log, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, FILE_LIMIT))
    )
    assert process.wait() == 1, log.read_text()[-2000:]
    assert "error:" in log.read_text()
    assert sorted(path.name for path in checkpoints.glob("step_*")) == before
    assert not any(checkpoints.glob(".partial-step_*"))

    assert run(configure(folder, *LENGTH))
    assert_same_end(folder, whole)
