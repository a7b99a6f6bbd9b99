"""A published checkpoint on its benchmark: opt-in, as it needs weights, data and hours.

    MARIGOLD_CHECKPOINT=prs-eth/marigold-depth-v1-0 MARIGOLD_DATA=data pytest -m published

MARIGOLD_DATASET chooses another set than nyu, and MARIGOLD_EVAL further words of the command, such as
"sampler.steps=50 sampler.ensemble_size=10 sampler.ensemble_method=diffusers".
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from marigold import evaluate
from marigold.data import splits
from marigold.evaluation import report
from marigold.evaluation.published import Published
from marigold.evaluation.result import Result

ROOT = Path(__file__).parent.parent


def command_from(environment: Mapping[str, str], output: Path) -> list[str]:
    """The evaluation that the variables name, as a user types it."""
    missing = [name for name in ("MARIGOLD_CHECKPOINT", "MARIGOLD_DATA") if not environment.get(name)]
    if missing:
        pytest.fail(f"{' and '.join(missing)} not set. {__doc__}")
    words = [
        f"dataset={environment.get('MARIGOLD_DATASET', 'nyu')}",
        f"checkpoint={environment['MARIGOLD_CHECKPOINT']}",
    ]
    return [*words, f"output={output}", *shlex.split(environment.get("MARIGOLD_EVAL", ""))]


def reproduced(printed: str) -> list[str]:
    """The published rows of a printed table that it calls reproduced."""
    return [line for line in printed.splitlines() if "*published*" in line and ": reproduced" in line]


@pytest.mark.published
@pytest.mark.timeout(0)
def test_a_checkpoint_scores_what_is_published_of_it(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/eval.py"), *command_from(os.environ, tmp_path / "out")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert reproduced(done.stdout), f"no published row of the same setting is reproduced:\n{done.stdout}"


@pytest.mark.parametrize("given", [{}, {"MARIGOLD_DATA": "data"}, {"MARIGOLD_DATA": "", "MARIGOLD_CHECKPOINT": "DIR"}])
def test_without_its_variables_it_fails_and_says_how_to_run_it(given, tmp_path):
    with pytest.raises(pytest.fail.Exception, match=r"MARIGOLD_CHECKPOINT=.* MARIGOLD_DATA=.* pytest -m published"):
        command_from(given, tmp_path)


@pytest.mark.parametrize(("off", "expected"), [(0.0, 1), (0.3, 0)])
def test_rooms_with_a_published_row_made_up_for_them(
    off, expected, rooms_data, checkpoint, tmp_path, monkeypatch, capsys
):
    given = {"MARIGOLD_CHECKPOINT": str(checkpoint), "MARIGOLD_DATA": str(rooms_data), "MARIGOLD_DATASET": "rooms"}
    given["MARIGOLD_EVAL"] = "sampler.steps=1 device=cpu panel.worst=0 panel.median=0"
    words = [*command_from(given, tmp_path / "out"), f"paths.data={rooms_data}", "dataset.reader.official_split=rooms"]
    lines = (rooms_data / "rooms/nyu/test.txt").read_text().splitlines()
    official = splits.KnownSplit(len(lines), splits.canonical_sha256(lines))
    monkeypatch.setitem(splits.KNOWN_SPLITS, "rooms", official)

    def evaluated() -> str:
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            evaluate.run(compose("eval", words))
        return capsys.readouterr().out

    assert not reproduced(evaluated())
    metrics = Result.from_json(tmp_path / "out/results.json").metrics
    values = (round(100 * metrics["abs_rel"].mean + off, 1), round(100 * metrics["delta1"].mean, 1))
    monkeypatch.setattr(report, "PUBLISHED", (Published("made up", "1 x 1", "marigold", {"rooms": values}),))
    assert len(reproduced(evaluated())) == expected  # the rows are there already
