"""A published checkpoint on its benchmark: opt-in, as it needs weights, data and hours.

    MARIGOLD_CHECKPOINT=prs-eth/marigold-depth-v1-0 MARIGOLD_DATA=data pytest -m published

MARIGOLD_DATASET chooses another set than nyu, and MARIGOLD_EVAL further words of the command, such as
"sampler.steps=50 sampler.ensemble_size=10 sampler.ensemble_method=diffusers".
"""

import os
import shlex

import pytest

from runs import call_script


@pytest.mark.published
@pytest.mark.timeout(0)
def test_a_checkpoint_scores_what_is_published_of_it(tmp_path):
    given = os.environ.get
    words = [f"dataset={given('MARIGOLD_DATASET', 'nyu')}", f"checkpoint={os.environ['MARIGOLD_CHECKPOINT']}"]
    words += [f"output={tmp_path / 'out'}", *shlex.split(given("MARIGOLD_EVAL", ""))]
    done = call_script("eval.py", *words, stderr=None)
    assert done.returncode == 0, done.stdout[-3000:]
    published = [line for line in done.stdout.splitlines() if "*published*" in line]
    assert [line for line in published if ": reproduced" in line], done.stdout
