"""The curves of scripts/sweep.py are what single evaluations give."""

import csv
import json
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


def composed(name, rooms_data, checkpoint, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        common = ["dataset=rooms", f"paths.data={rooms_data}", "device=cpu", "limit=2", f"checkpoint={checkpoint}"]
        return compose(name, [*common, *overrides])


@pytest.mark.parametrize(
    ("curve", "values", "axis", "setting", "lines"),
    [
        ("ensemble", "ensemble_sizes=[1,3]", "ensemble_size", "ensemble_size", ["procrustes"]),
        ("steps", "steps=[1,3]", "denoising_steps", "steps", ["leading", "trailing"]),
    ],
)
def test_a_curve_is_the_single_evaluations(tmp_path, rooms_data, checkpoint, curve, values, axis, setting, lines):
    run(composed("sweep", rooms_data, checkpoint, f"curve={curve}", values, f"output={tmp_path}"))
    with (tmp_path / "points.csv").open() as file:
        found = {(row["line"], row[axis]): row for row in csv.DictReader(file)}
    assert list(found) == [(line, value) for line in lines for value in "13"]
    spacing = MarigoldDepth.from_pretrained(checkpoint).backbone.scheduler_config["timestep_spacing"]
    for value in "13":
        chosen = [f"sampler.{setting}={value}", f"output={tmp_path}/{value}", "panel.worst=0", "panel.median=0"]
        evaluate.run(composed("eval", rooms_data, checkpoint, *chosen))
        alone = json.loads((tmp_path / value / "results.json").read_text())["metrics"]["abs_rel"]
        row = found[spacing if curve == "steps" else lines[0], value]
        # The same members, so the same bits.
        assert (float(row["abs_rel_mean"]), float(row["abs_rel_std"])) == (alone["mean"], alone["std_over_images"])
        assert row["images"] == "2"
    assert len({row["abs_rel_mean"] for row in found.values()}) == len(found)
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width > 300


def test_every_curve_and_protocol_has_its_own_folder(tmp_path, rooms_data, checkpoint):
    model = MarigoldDepth.from_pretrained(checkpoint)
    other = MarigoldDepth(model.backbone, DepthSettings(Switches("disparity"))).save_pretrained(tmp_path / "other")
    chosen = ["steps=[1]", "ensemble_sizes=[1]", "spacings=[trailing]", "sampler.steps=1", f"paths.runs={tmp_path}"]
    for words in (["curve=steps"], ["curve=ensemble"], ["curve=steps", "protocol.prefit=true"]):
        run(composed("sweep", rooms_data, other, *chosen, *words))
    folders = {path.parent.name.rpartition("-")[0] for path in tmp_path.glob("sweep/*/sweep.json")}
    # The protocol is that of the checkpoint's space.
    assert folders == {f"rooms-{end}" for end in ("disparity-steps", "disparity-ensemble", "marigold+prefit-steps")}
    with pytest.raises(ValueError, match=r"'marigold'.*'affine_disparity'"):
        run(composed("sweep", rooms_data, other, *chosen, "curve=steps", "protocol=marigold"))


@pytest.mark.parametrize("override", ["curve=width", "steps=[0]", "spacings=[cubic]", "metrics=[delta1]"])
def test_impossible_sweeps_are_refused(tmp_path, rooms_data, checkpoint, override):
    with pytest.raises(ValueError, match=override.partition("=")[2].strip("[]")):
        run(composed("sweep", rooms_data, checkpoint, "curve=steps", f"output={tmp_path}", override))


def test_first_members_are_those_of_a_smaller_ensemble(checkpoint):
    model = MarigoldDepth.from_pretrained(checkpoint)
    image = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    large, small = (model.members(image, steps=1, ensemble_size=size, batch_size=1) for size in (4, 2))
    assert torch.equal(large.first(2).depth, small.depth)
