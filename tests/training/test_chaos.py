"""A run that is killed twenty times, and once finds the disk full, ends as if nothing had happened."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marigold.train import run
from marigold.training.checkpoint import check
from runs import figures, weights

SCRIPT = Path(__file__).parent.parent.parent / "scripts/train.py"
STEPS, KILLS, SEED = 60, 20, 7
LENGTH = [f"train.steps={STEPS}", f"train.validate_every={STEPS}", "train.checkpoint_every=1"]
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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_and_a_full_disk_change_nothing(tmp_path, configure, arguments):
    assert run(configure(tmp_path / "whole", *LENGTH))
    folder, log = tmp_path / "chaos", tmp_path / "log.txt"
    checkpoints = folder / "checkpoints"
    rng = random.Random(SEED)
    steps_seen, in_the_middle = set(), 0
    for kill in range(KILLS):
        process = start(arguments, folder, log)
        known = {path.name for path in checkpoints.glob("step_*")}
        wait_until(process, log, lambda known=known: {path.name for path in checkpoints.glob("step_*")} - known)
        if kill % 2:
            wait_until(process, log, lambda: any(checkpoints.glob(".partial-step_*")))
        else:
            time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        in_the_middle += any(checkpoints.glob(".partial-step_*"))
        found = sorted(checkpoints.glob("step_*"))
        assert found
        for whole in found:
            check(whole)  # nothing half-written has a final name
        steps_seen.add(found[-1].name)
    assert len(steps_seen) > KILLS // 2  # it went on in between
    assert in_the_middle >= KILLS // 4

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
    assert weights(folder) == weights(tmp_path / "whole")
    assert figures(folder) == figures(tmp_path / "whole")
