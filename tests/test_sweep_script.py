"""The curves of scripts/sweep.py are what single evaluations give."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from marigold import evaluate
from marigold.model.pipeline import MarigoldDepth
from marigold.model.recipe import Switches
from marigold.model.settings import DepthSettings
from marigold.sweep import run

CONFIGS = Path(__file__).parent.parent / "configs"


def composed(name, rooms_data, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        common = ["dataset=rooms", f"paths.data={rooms_data}", "device=cpu", "limit=2"]
        return compose(name, [*common, *overrides])


def points(folder):
    with (folder / "points.csv").open() as file:
        return list(csv.DictReader(file))


def evaluated_alone(rooms_data, folder, checkpoint, *overrides):
    """AbsRel as scripts/eval.py reports it."""
    chosen = ["panel.worst=0", "panel.median=0", *overrides]
    evaluate.run(composed("eval", rooms_data, f"checkpoint={checkpoint}", f"output={folder}", *chosen))
    return json.loads((folder / "results.json").read_text())["metrics"]["abs_rel"]["mean"]


def test_ensemble_curve_is_the_single_evaluations(tmp_path, rooms_data, checkpoint):
    out = tmp_path / "curve"
    run(
        composed(
            "sweep", rooms_data, "curve=ensemble", "ensemble_sizes=[1,3]", f"checkpoint={checkpoint}", f"output={out}"
        )
    )
    found = points(out)
    assert [(row["line"], row["ensemble_size"], row["images"]) for row in found] == [
        ("procrustes", "1", "2"),
        ("procrustes", "3", "2"),
    ]
    for row in found:
        size = row["ensemble_size"]
        alone = evaluated_alone(rooms_data, tmp_path / size, checkpoint, f"sampler.ensemble_size={size}")
        assert float(row["abs_rel_mean"]) == alone  # the same members, so the same bits
    with Image.open(out / "curve.png") as picture:
        assert picture.width > 300


def test_steps_curve_has_both_spacings(tmp_path, rooms_data, checkpoint):
    out = tmp_path / "curve"
    run(composed("sweep", rooms_data, "curve=steps", "steps=[1,3]", f"checkpoint={checkpoint}", f"output={out}"))
    found = {(row["line"], int(row["denoising_steps"])): float(row["abs_rel_mean"]) for row in points(out)}
    assert set(found) == {(spacing, steps) for spacing in ("leading", "trailing") for steps in (1, 3)}
    assert found["leading", 1] != found["trailing", 1]
    spacing = MarigoldDepth.from_pretrained(checkpoint).backbone.scheduler_config["timestep_spacing"]
    for steps in (1, 3):
        alone = evaluated_alone(rooms_data, tmp_path / str(steps), checkpoint, f"sampler.steps={steps}")
        assert found[spacing, steps] == alone


def test_the_protocol_is_that_of_the_checkpoints_space(tmp_path, rooms_data, checkpoint):
    model = MarigoldDepth.from_pretrained(checkpoint)
    other = MarigoldDepth(model.backbone, DepthSettings(Switches("disparity"))).save_pretrained(tmp_path / "other")
    chosen = ["curve=steps", "steps=[1]", "spacings=[trailing]", f"checkpoint={other}", f"output={tmp_path}/curve"]
    for words, protocol in (((), "disparity"), (("protocol.prefit=true",), "marigold+prefit")):
        run(composed("sweep", rooms_data, *chosen, *words))
        assert json.loads((tmp_path / "curve/sweep.json").read_text())["protocol"]["name"] == protocol
    with pytest.raises(ValueError, match=r"'marigold'.*'affine_disparity'"):
        run(composed("sweep", rooms_data, *chosen, "protocol=marigold"))


def test_every_curve_data_set_protocol_and_checkpoint_has_its_own_folder(tmp_path, rooms_data, checkpoint):
    other = shutil.copytree(checkpoint, tmp_path / "other")
    command = [sys.executable, str(CONFIGS.parent / "scripts/sweep.py"), "-m", f"paths.data={rooms_data}"]
    command += ["curve=steps,ensemble", "dataset=rooms", f"checkpoint={checkpoint},{other}", "limit=1", "device=cpu"]
    command += ["steps=[1]", "ensemble_sizes=[1]", "spacings=[leading]", "sampler.steps=1", f"paths.runs={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONFIGS.parent)}
    for output in ([], [f"output={tmp_path}/chosen"]):
        done = subprocess.run([*command, *output], env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr[-3000:]
    for parent in ("sweep", "chosen"):
        found = [json.loads(path.read_text())["settings"] for path in (tmp_path / parent).glob("*/sweep.json")]
        assert sorted((facts["curve"], facts["checkpoint"]) for facts in found) == sorted(
            (curve, str(path)) for curve in ("steps", "ensemble") for path in (checkpoint, other)
        )
        names = {path.parent.name.rpartition("-")[0] for path in (tmp_path / parent).glob("*/sweep.json")}
        assert names == {"rooms-marigold-steps", "rooms-marigold-ensemble"}


@pytest.mark.parametrize(
    ("override", "message"),
    [("curve=width", "ensemble, steps"), ("steps=[0]", "from 1 on"), ("spacings=[cubic]", "cubic")],
)
def test_impossible_sweeps_are_refused(tmp_path, rooms_data, checkpoint, override, message):
    overrides = ["curve=steps", f"checkpoint={checkpoint}", f"output={tmp_path}", override]
    with pytest.raises(ValueError, match=message):
        run(composed("sweep", rooms_data, *overrides))


def test_first_members_are_those_of_a_smaller_ensemble(checkpoint):
    model = MarigoldDepth.from_pretrained(checkpoint)
    image = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    large = model.members(image, steps=1, ensemble_size=4, batch_size=1)
    small = model.members(image, steps=1, ensemble_size=2, batch_size=1)
    assert torch.equal(large.first(2).depth, small.depth)
