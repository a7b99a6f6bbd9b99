"""Stored predictions and user functions."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.predictors import of_files, of_function, run_name
from marigold.pictures import PictureError
from marigold.types import DepthSample, Prediction

SAMPLE = DepthSample("a/rgb_0001.png", torch.rand(3, 2, 3), torch.ones(1, 2, 3), torch.ones(1, 2, 3) > 0)


def stored(folder, space, unit=1.0):
    return of_files(folder, space, unit).at_seed(0)(SAMPLE).depth[0]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    return tmp_path


@pytest.mark.parametrize("name", ["rgb_0001.png.npy", "rgb_0001.npy", "pred_rgb_0001.npy", "pred_0001.npy"])
def test_a_prediction_is_found_by_the_samples_name(folder, name):
    values = np.arange(6, dtype=np.float64).reshape(1, 2, 3)
    np.save(folder / "a" / name, values)
    assert stored(folder, "affine_disparity").tolist() == values.tolist()


def test_a_metric_png_holds_counts_of_the_unit(folder):
    counts = np.array([[0, 1000, 65535], [1, 2, 3]], dtype=np.uint16)
    Image.fromarray(counts).save(folder / "a/rgb_0001.png")
    for space, scale in (("metric_depth", 1000), ("affine_depth", 65535)):
        np.testing.assert_allclose(stored(folder, space, 0.001)[0], counts / scale, rtol=1e-6)
    # Rows of another unit are not reused.
    assert of_files(folder, "metric_depth", 0.001).identity != of_files(folder, "metric_depth", 0.002).identity


def test_a_file_that_is_no_map_is_named(folder):
    for damage in (b"not an array", np.zeros((3, 2, 3))):
        np.save(folder / "a/rgb_0001.npy", damage, allow_pickle=False)
        with pytest.raises(PictureError, match=r"rgb_0001\.npy"):
            stored(folder, "affine_depth")
    (folder / "a/rgb_0001.npy").unlink()
    Image.new("L", (3, 2)).save(folder / "a/rgb_0001.png")  # not of 16 bits
    with pytest.raises(PictureError, match=r"rgb_0001\.png"):
        stored(folder, "affine_depth")


def test_a_function_gives_a_prediction_or_a_tensor(monkeypatch):
    module = types.ModuleType("somebody")
    module.__file__ = __file__
    module.whole = lambda image: Prediction(image.mean(1, keepdim=True), None, "affine_log_depth")
    module.bare = lambda image: image[0, 0]
    module.wrong = lambda image: "far"
    monkeypatch.setitem(sys.modules, "somebody", module)

    def made(path, space):
        return of_function(path, space, torch.device("cpu")).at_seed(0)(SAMPLE)

    assert made("somebody:whole", None).space == "affine_log_depth"
    assert torch.equal(made("somebody:bare", "metric_depth").depth[0, 0], SAMPLE.image[0])
    for path in ("somebody:wrong", "somebody:else", "nobody_at_all:f"):
        with pytest.raises(EvaluationError, match=path):
            made(path, None)


def test_checkpoints_of_several_runs_have_different_names():
    folders = ("runs/seed1/final", "runs/seed1/checkpoints/step_000400", "models/marigold-depth-v1-1")
    names = ["seed1/final", "seed1/checkpoints/step_000400", "marigold-depth-v1-1"]
    assert [run_name(Path(folder)) for folder in folders] == names
