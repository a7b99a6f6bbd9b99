"""The curves of scripts/sweep.py are what single evaluations give."""

import csv

import pytest
from PIL import Image

from marigold import evaluate
from marigold.evaluation.result import Result
from marigold.model.pipeline import MarigoldDepth
from marigold.model.recipe import Switches
from marigold.model.settings import DepthSettings
from marigold.sweep import run
from runs import composed


@pytest.fixture
def words(rooms_data, checkpoint):
    return ["dataset=rooms", f"paths.data={rooms_data}", "device=cpu", "limit=2", f"checkpoint={checkpoint}"]


@pytest.fixture(scope="module")
def model(checkpoint):
    return MarigoldDepth.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    ("curve", "values", "axis", "setting", "lines"),
    [
        ("ensemble", "ensemble_sizes=[1,2]", "ensemble_size", "ensemble_size", ["procrustes"]),
        ("steps", "steps=[1,2]", "denoising_steps", "steps", ["leading", "trailing"]),
    ],
)
def test_a_curve_is_the_single_evaluations(tmp_path, words, model, curve, values, axis, setting, lines):
    run(composed("sweep", *words, f"curve={curve}", values, f"output={tmp_path}"))
    with (tmp_path / "points.csv").open() as file:
        found = {(row["line"], row[axis]): row for row in csv.DictReader(file)}
    assert list(found) == [(line, value) for line in lines for value in "12"]
    spacing = model.backbone.scheduler_config["timestep_spacing"]
    for value in "12":
        chosen = [f"sampler.{setting}={value}", f"output={tmp_path}/{value}", "panel.worst=0", "panel.median=0"]
        evaluate.run(composed("eval", *words, *chosen))
        alone = Result.from_json(tmp_path / value / "results.json").metrics["abs_rel"]
        row = found[spacing if curve == "steps" else lines[0], value]
        # The same members, so the same bits.
        assert (float(row["abs_rel_mean"]), float(row["abs_rel_std"])) == (alone.mean, alone.std_over_images)
        assert row["images"] == "2"
    assert len({row["abs_rel_mean"] for row in found.values()}) == len(found)
    with Image.open(tmp_path / "curve.png") as image:
        assert image.width > 300


def test_every_curve_and_protocol_has_its_own_folder(tmp_path, words, model):
    other = MarigoldDepth(model.backbone, DepthSettings(Switches("disparity"))).save_pretrained(tmp_path / "other")
    words = [*words, f"checkpoint={other}", "limit=1", f"paths.runs={tmp_path}"]
    words += ["steps=[1]", "ensemble_sizes=[1]", "spacings=[trailing]", "sampler.steps=1"]
    for chosen in (["curve=steps"], ["curve=ensemble", "protocol.prefit=true"]):
        run(composed("sweep", *words, *chosen))
    folders = {path.parent.name.rpartition("-")[0] for path in tmp_path.glob("sweep/*/sweep.json")}
    # The protocol is that of the checkpoint's space.
    assert folders == {"rooms-disparity-steps", "rooms-marigold+prefit-ensemble"}
    with pytest.raises(ValueError, match=r"'marigold'.*'affine_disparity'"):
        run(composed("sweep", *words, "curve=steps", "protocol=marigold"))


@pytest.mark.parametrize("override", ["curve=width", "steps=[0]", "spacings=[cubic]", "metrics=[delta1]"])
def test_impossible_sweeps_are_refused(tmp_path, words, override):
    with pytest.raises(ValueError, match=override.partition("=")[2].strip("[]")):
        run(composed("sweep", *words, "curve=steps", f"output={tmp_path}", override))
