"""A run that is killed again and again, and once finds the disk full, ends as if nothing had happened."""

import random
import resource
import subprocess
import time
from collections import Counter

import pytest

from marigold.train import run
from marigold.training.checkpoint import VALIDATION, check
from runs import assert_same_bits, command, environment, wait_until

STEPS, KILLS, SEED = 40, 15, 7
LENGTH = [f"train.steps={STEPS}", "train.validate_every=1"]
FILE_LIMIT = 200_000  # bytes; the U-Net's file alone is larger


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_and_a_full_disk_change_nothing(tmp_path, configure, arguments):
    undisturbed, folder, log = tmp_path / "whole/run", tmp_path / "chaos/run", tmp_path / "log.txt"
    assert run(configure(undisturbed, *LENGTH))
    checkpoints = folder / "checkpoints"
    rng, steps_seen, killed_while = random.Random(SEED), set(), Counter()

    def start(**options):
        words = command("train.py", *arguments, *LENGTH, f"run_dir={folder}")
        with log.open("wb") as file:
            return subprocess.Popen(words, env=environment(), stdout=file, stderr=subprocess.STDOUT, **options)

    def saved():
        return {path.name for path in checkpoints.glob("step_*")}

    def saving():
        return any(checkpoints.glob(".partial-step_*"))

    def validating():
        """Of checkpoints whose validation is not finished; one that is deleted meanwhile is none."""
        found = [path for path in checkpoints.glob("step_*") if not (path / VALIDATION).exists()]
        return any(path.exists() for path in found)

    for kill in range(KILLS):
        moment = (None, saving, validating)[kill % 3]
        process, known = start(), saved()
        wait_until(process, log, lambda known=known: saved() - known)
        if moment is None:  # anywhere in a step
            time.sleep(rng.uniform(0, 0.3))
        else:
            wait_until(process, log, moment)
        process.kill()
        process.wait()
        killed_while["saving" if saving() else "validating" if validating() else "anywhere"] += 1
        assert saved()
        for name in saved():
            check(checkpoints / name)  # nothing half-written has a final name
        steps_seen.add(max(saved()))
    assert len(steps_seen) > KILLS // 2  # it got further in between
    assert min(killed_while["saving"], killed_while["validating"]) >= 4, killed_while

    # A file that cannot grow fails as it does on a full disk: with OSError, in the middle of a write.
    before, limits = saved(), (FILE_LIMIT, FILE_LIMIT)
    process = start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    assert process.wait() == 1, log.read_text()[-2000:]
    assert saved() == before
    assert not saving()

    assert run(configure(folder, *LENGTH))
    assert_same_bits(folder, undisturbed, cards=True)
