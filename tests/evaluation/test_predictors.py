"""Stored predictions and somebody else's functions."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.predictors import imported, of_files, stored
from marigold.pictures import PictureError
from marigold.types import DepthSample, Prediction

SAMPLE = DepthSample("a/rgb_0001.png", torch.zeros(3, 2, 3), torch.ones(1, 2, 3), torch.ones(1, 2, 3) > 0)


@pytest.mark.parametrize("name", ["a/rgb_0001.png.npy", "a/rgb_0001.npy", "a/pred_rgb_0001.npy", "a/pred_0001.npy"])
def test_a_prediction_is_found_by_the_samples_name(tmp_path, name):
    (tmp_path / "a").mkdir()
    values = np.arange(6, dtype=np.float64).reshape(1, 2, 3)
    np.save(tmp_path / name, values)
    prediction = stored(tmp_path, "affine_disparity", 1.0)(SAMPLE)
    assert prediction.space == "affine_disparity"
    assert prediction.depth[0].tolist() == values.tolist()


def test_a_metric_png_holds_counts_of_the_unit(tmp_path):
    (tmp_path / "a").mkdir()
    counts = np.array([[0, 1000, 65535], [1, 2, 3]], dtype=np.uint16)
    Image.fromarray(counts).save(tmp_path / "a/rgb_0001.png")
    depth = stored(tmp_path, "metric_depth", 0.001)(SAMPLE).depth[0, 0].numpy()
    np.testing.assert_allclose(depth, counts / 1000, rtol=1e-6)
    # Rows of another unit are not kept.
    assert of_files(tmp_path, "metric_depth", 0.001).identity != of_files(tmp_path, "metric_depth", 0.002).identity
    affine = stored(tmp_path, "affine_depth", 0.001)(SAMPLE).depth[0, 0].numpy()
    np.testing.assert_allclose(affine, counts / 65535, rtol=1e-6)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(EvaluationError, match="none"):
        stored(tmp_path / "none", "affine_depth", 1.0)
    with pytest.raises(EvaluationError, match=r"space=depth: .*affine_depth"):
        stored(tmp_path, "depth", 1.0)
    with pytest.raises(EvaluationError, match=r"a/rgb_0001\.npy"):
        stored(tmp_path, "affine_depth", 1.0)(SAMPLE)


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
        stored(tmp_path, "affine_depth", 1.0)(SAMPLE)


def test_a_function_gives_a_prediction_or_a_tensor(monkeypatch):
    module = types.ModuleType("somebody")
    module.whole = lambda image: Prediction(image.mean(1, keepdim=True), None, "affine_log_depth")
    module.bare = lambda image: image[0, 0]
    module.wrong = lambda image: "far"
    monkeypatch.setitem(sys.modules, "somebody", module)
    image = torch.rand(1, 3, 4, 5)
    assert imported("somebody:whole", None)(image).space == "affine_log_depth"
    assert torch.equal(imported("somebody:bare", "metric_depth")(image).depth[0, 0], image[0, 0])
    with pytest.raises(EvaluationError, match="somebody:wrong"):
        imported("somebody:wrong", None)(image)
    with pytest.raises(EvaluationError, match="space=None"):
        imported("somebody:bare", None)(image)
    for path in ("somebody:else", "nobody_at_all:f"):
        with pytest.raises(EvaluationError, match=path):
            imported(path, None)
