"""The curves of scripts/sweep.py are what single evaluations give."""

import csv

import pytest
from PIL import Image

from marigold import evaluate
from marigold.evaluation.result import Result
from marigold.sweep import run
from runs import composed


@pytest.fixture
def words(rooms_data, checkpoint, tmp_path):
    chosen = ["dataset=rooms", "device=cpu", "limit=2", f"checkpoint={checkpoint}"]
    return [*chosen, f"paths.data={rooms_data}", f"paths.runs={tmp_path}"]


@pytest.mark.parametrize(
    ("curve", "values", "axis", "line", "lines"),
    [
        ("ensemble", "ensemble_sizes=[1,2]", "ensemble_size", "procrustes", {"procrustes"}),
        ("steps", "steps=[1,2]", "denoising_steps", "leading", {"leading", "trailing"}),
    ],
)
def test_a_curve_is_the_single_evaluations(tmp_path, words, curve, values, axis, line, lines):
    """`leading` is the checkpoint's own spacing."""
    run(composed("sweep", *words, f"curve={curve}", values, "protocol.prefit=true"))
    (folder,) = tmp_path.glob(f"sweep/rooms-marigold+prefit-{curve}-*")
    with (folder / "points.csv").open() as file:
        found = {(row["line"], row[axis]): row for row in csv.DictReader(file)}
    assert {name for name, _ in found} == lines
    for value in "12":
        setting = f"sampler.{values.partition('=')[0].replace('sizes', 'size')}={value}"
        chosen = [setting, "protocol.prefit=true", f"output={tmp_path}/{value}", "panel.worst=0", "panel.median=0"]
        evaluate.run(composed("eval", *words, *chosen))
        alone = Result.from_json(tmp_path / value / "results.json").metrics["abs_rel"]
        row = found[line, value]
        # The same members, so the same bits.
        assert (float(row["abs_rel_mean"]), float(row["abs_rel_std"])) == (alone.mean, alone.std_over_images)
        assert row["images"] == "2"
    assert len({row["abs_rel_mean"] for row in found.values()}) == len(found) == 2 * len(lines)
    with Image.open(folder / "curve.png") as image:
        assert image.width > 300


@pytest.mark.parametrize(
    "override", ["curve=width", "steps=[0]", "spacings=[cubic]", "metrics=[delta1]", "protocol=disparity"]
)
def test_impossible_sweeps_are_refused(words, override):
    with pytest.raises(ValueError, match=override.partition("=")[2].strip("[]")):
        run(composed("sweep", *words, "curve=steps", override))
