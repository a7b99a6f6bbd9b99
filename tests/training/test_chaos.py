"""A run that is killed again and again, and once finds the disk full, ends as if nothing had happened."""

import random
import resource
import time
from collections import Counter
from pathlib import Path

import pytest

from marigold.train import run
from marigold.training.checkpoint import VALIDATION, check
from runs import assert_same_end, start_script, wait_until

STEPS, KILLS, SEED = 40, 15, 7
# Somewhere in a step, while a checkpoint is written, and while one that is saved is validated.
MOMENTS = ("anywhere", "saving", "validating")
LENGTH = [f"train.steps={STEPS}", "train.validate_every=1"]
FILE_LIMIT = 200_000  # bytes; the U-Net's file alone is larger


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
    undisturbed, folder, log = tmp_path / "whole/run", tmp_path / "chaos/run", tmp_path / "log.txt"
    assert run(configure(undisturbed, *LENGTH))
    checkpoints = folder / "checkpoints"
    words = ("train.py", log, *arguments, *LENGTH, f"run_dir={folder}")
    rng, steps_seen, kinds = random.Random(SEED), set(), Counter()

    def saved():
        return {path.name for path in checkpoints.glob("step_*")}

    for kill in range(KILLS):
        moment = MOMENTS[kill % len(MOMENTS)]
        process, known = start_script(*words), saved()
        wait_until(process, log, lambda known=known: saved() - known)
        if moment == "saving":
            wait_until(process, log, lambda: any(checkpoints.glob(".partial-step_*")))
        elif moment == "validating":
            wait_until(process, log, lambda: not_validated(checkpoints))
        else:
            time.sleep(rng.uniform(0, 0.3))
        process.kill()
        process.wait()
        kinds[left_at(checkpoints) if moment != "anywhere" else moment] += 1
        assert saved()
        for name in saved():
            check(checkpoints / name)  # nothing half-written has a final name
        steps_seen.add(max(saved()))
    assert len(steps_seen) > KILLS // 2  # it got further in between
    assert all(kinds[moment] >= 4 for moment in MOMENTS), kinds

    # A file that cannot grow fails as it does on a full disk: with OSError, in the middle of a write.
    before, limits = saved(), (FILE_LIMIT, FILE_LIMIT)
    process = start_script(*words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    assert process.wait() == 1, log.read_text()[-2000:]
    assert "error:" in log.read_text()
    assert saved() == before
    assert not any(checkpoints.glob(".partial-step_*"))

    assert run(configure(folder, *LENGTH))
    assert_same_end(folder, undisturbed)
