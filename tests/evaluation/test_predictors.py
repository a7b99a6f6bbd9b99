"""Stored predictions and somebody else's functions."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.predictors import of_files, of_function
from marigold.pictures import PictureError
from marigold.types import DepthSample, Prediction

SAMPLE = DepthSample("a/rgb_0001.png", torch.rand(3, 2, 3), torch.ones(1, 2, 3), torch.ones(1, 2, 3) > 0)


def stored(folder, space, unit=1.0):
    return of_files(folder, space, unit).at_seed(0)(SAMPLE)


@pytest.mark.parametrize("name", ["a/rgb_0001.png.npy", "a/rgb_0001.npy", "a/pred_rgb_0001.npy", "a/pred_0001.npy"])
def test_a_prediction_is_found_by_the_samples_name(tmp_path, name):
    (tmp_path / "a").mkdir()
    values = np.arange(6, dtype=np.float64).reshape(1, 2, 3)
    np.save(tmp_path / name, values)
    prediction = stored(tmp_path, "affine_disparity")
    assert prediction.space == "affine_disparity"
    assert prediction.depth[0].tolist() == values.tolist()


def test_a_metric_png_holds_counts_of_the_unit(tmp_path):
    (tmp_path / "a").mkdir()
    counts = np.array([[0, 1000, 65535], [1, 2, 3]], dtype=np.uint16)
    Image.fromarray(counts).save(tmp_path / "a/rgb_0001.png")
    for space, unit, scale in (("metric_depth", 0.001, 1000), ("affine_depth", 0.001, 65535)):
        np.testing.assert_allclose(stored(tmp_path, space, unit).depth[0, 0], counts / scale, rtol=1e-6)
    # Rows of another unit are not kept.
    assert of_files(tmp_path, "metric_depth", 0.001).identity != of_files(tmp_path, "metric_depth", 0.002).identity


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rgb_0001.npy", b"not an array"),
        ("rgb_0001.npy", np.zeros((3, 2, 3))),
        ("rgb_0001.png", Image.new("L", (3, 2))),
        ("rgb_0001.png", Image.new("RGB", (3, 2))),
    ],
)
def test_a_file_that_is_no_map_is_named(tmp_path, name, content):
    path = tmp_path / "a" / name
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    else:
        content.save(path)
    with pytest.raises(PictureError, match=name):
        stored(tmp_path, "affine_depth")
    with pytest.raises(EvaluationError, match="nowhere"):
        stored(tmp_path / "nowhere", "affine_depth")


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
