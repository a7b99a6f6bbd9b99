"""Oracles, constants and refusals under every protocol."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from marigold.config import ConfigError, build
from marigold.depth.reprojection import reproject
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.protocol import PROTOCOL_OF, Benchmark, settings_for
from marigold.evaluation.rows import evaluate
from marigold.types import SPACES, Camera, DepthSample, Prediction
from samples import sample

CONFIGS = Path(__file__).parents[2] / "configs"
OF_DEPTH = {
    "affine_depth": lambda d: d,
    "affine_disparity": lambda d: 1 / d,
    "affine_sqrt_disparity": torch.rsqrt,
    "affine_log_depth": torch.log,
    "metric_depth": lambda d: d,
}


def protocol(name, **settings):
    return build(OmegaConf.load(CONFIGS / f"protocol/{name}.yaml"), benchmark=Benchmark(**settings))


def scores(values, space, protocol, sample):
    return next(evaluate(lambda _: Prediction(values[None], None, space), [sample], protocol)).metrics


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "protocol").glob("*.yaml")))
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("prefit", [False, True])
def test_the_true_depth_has_no_error(name, space, prefit):
    """As an affine prediction in its space, under every protocol that evaluates it."""
    chosen = protocol(name, clip=(1e-3, 10.0))
    if prefit and name in ("moge", "ppd"):
        with pytest.raises(EvaluationError, match=f"'{name}'"):
            chosen.prefitted()
        return
    chosen = chosen.prefitted() if prefit else chosen
    truth = sample()
    known = torch.where(truth.valid, truth.depth, 1.0)
    # The line of `ppd` is in log(depth + 1).
    values = known.log1p() if (name, space) == ("ppd", "affine_log_depth") else OF_DEPTH[space](known)
    if space != "metric_depth":
        values = (values - values.min() + 0.3) / (values.max() - values.min() + 0.4)
    if space not in chosen.spaces:
        with pytest.raises(EvaluationError, match=f"'{name}' .* '{space}'"):
            scores(values, space, chosen, truth)
        return
    found = scores(values, space, chosen, truth)
    assert (found["abs_rel"], found["delta1"]) == (pytest.approx(0, abs=1e-5), 1)
    assert found["boundary_f1"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "space"),
    [("marigold", "affine_depth"), ("marigold", "metric_depth"), ("disparity", "affine_disparity")],
)
def test_prefit_changes_nothing_for_predictions_in_the_protocols_own_quantity(name, space):
    values = sample(seed=3).depth + 1
    plain = protocol(name, clip=(1e-3, 10.0))
    assert scores(values, space, plain.prefitted(), sample()) == scores(values, space, plain, sample())


def test_prefit_has_the_least_squared_error_of_all_fits_in_the_space():
    truth = sample()
    noise = torch.randn(truth.depth.shape, generator=torch.Generator().manual_seed(1))
    values = 1 / truth.depth.clamp_min(0.5) + 0.05 * noise
    own = scores(values, "affine_disparity", protocol("disparity"), truth)
    common = scores(values, "affine_disparity", protocol("marigold").prefitted(), truth)
    assert common["rmse"] < 0.9 * own["rmse"]


def test_a_prefitted_protocol_has_a_name_of_its_own_and_the_data_sets_settings():
    prefitted = protocol("marigold", clip=(0.5, 8.0), alignment_max_resolution=16).prefitted()
    described = prefitted.describe()
    assert (described["name"], described["fit"]) == ("marigold+prefit", {"kind": "Prefit", "quantity": "depth"})
    assert (set(described["spaces"]), described["benchmark"]["clip"]) == (set(SPACES), [0.5, 8.0])


def test_every_space_has_a_protocol_that_evaluates_it():
    assert set(PROTOCOL_OF) == set(SPACES)
    for space, name in PROTOCOL_OF.items():
        protocol(name).require_space(space)


def test_a_constant_prediction_scores_what_the_mean_depth_scores():
    truth = sample()
    depth = truth.depth[truth.valid].double().numpy()
    found = scores(torch.full((1, 24, 32), 0.4), "affine_depth", protocol("marigold"), truth)
    assert found["abs_rel"] == pytest.approx(np.mean(np.abs(depth - depth.mean()) / depth), rel=1e-5)
    assert found["rmse"] == pytest.approx(depth.std(), rel=1e-5)


def test_the_fit_comes_before_the_clip():
    depth = torch.tensor([[[1.0, 2.0], [3.0, 10.0]]])
    truth = DepthSample("x", torch.zeros(3, 2, 2), depth, torch.ones_like(depth, dtype=torch.bool))
    values = torch.tensor([[[0.0, 0.2], [0.2, 1.0]]])
    x, y = values.flatten().double().numpy(), depth.flatten().double().numpy()
    slope, intercept = np.polyfit(x, y, 1)
    expected = np.clip(slope * x + intercept, 2.0, 6.0)
    found = scores(values, "affine_depth", protocol("marigold", clip=(2.0, 6.0)), truth)
    assert found["abs_rel"] == pytest.approx(np.mean(np.abs(expected - y) / y), rel=1e-5)


def test_a_view_is_what_the_predictor_sees_and_what_is_evaluated():
    truth = sample(height=48, width=80)
    seen = []

    def oracle(shown):
        seen.append(shown)
        return Prediction((shown.depth[None] + 0.5) / 11, None, "affine_depth")

    turned = replace(truth, camera=Camera(60.0, 60.0, 37.0, 25.0))
    moge = protocol("moge", view_size=(20, 30))
    row = next(evaluate(oracle, [turned], moge))
    assert row.metrics["abs_rel"] < 1e-5
    assert (seen[0].image.shape, seen[0].depth.shape) == ((3, 20, 30), (1, 20, 30))
    photo, depth, valid = reproject(truth.image, truth.depth, truth.valid, turned.camera, (20, 30))
    assert torch.equal(seen[0].image, photo)
    assert torch.equal(seen[0].depth, depth)
    assert torch.equal(seen[0].valid, valid)
    with pytest.raises(EvaluationError, match=r"s0: .*reader\.cameras"):
        next(evaluate(oracle, [truth], moge))


def test_ppd_leaves_out_depth_edges_by_the_sobel_filter():
    depth = torch.full((1, 6, 8), 2.0)
    depth[..., 4:] = 2.2  # |dx| = 4 * 0.2 in the two columns at the step
    mask = protocol("ppd", largest_sobel=0.3).mask(depth[None])
    assert mask[0, 0].all(0).tolist() == [True, True, True, False, False, True, True, True]


def test_what_cannot_be_evaluated_names_the_image():
    truth = sample(seed=7)
    empty = DepthSample("empty", truth.image, truth.depth, torch.zeros_like(truth.valid))
    broken = torch.rand(1, 24, 32)
    broken[0, 5, 5] = torch.nan
    cropped = protocol("marigold", crop_size=(48, 64), crop_rows=(0, 40), crop_cols=(0, 60))
    for values, chosen, image, reason in (
        (torch.rand(1, 24, 32), protocol("marigold"), empty, "empty"),
        (broken, protocol("marigold"), truth, "s7: .* 1 of 768"),
        (torch.rand(1, 24, 32), cropped, truth, "s7: .* 48x64 .* 24x32"),
    ):
        with pytest.raises(EvaluationError, match=reason):
            scores(values, "affine_depth", chosen, image)


def test_a_smaller_prediction_is_compared_at_the_size_of_the_truth():
    rows = torch.linspace(1, 5, 24)[None, :, None].expand(1, 24, 32).contiguous()
    truth = DepthSample("ramp", torch.zeros(3, 24, 32), rows, torch.ones(1, 24, 32, dtype=torch.bool))
    half = torch.nn.functional.avg_pool2d(rows, 2)
    assert scores(half, "affine_depth", protocol("marigold"), truth)["abs_rel"] < 0.01


def test_a_data_set_says_what_a_protocol_does_differently_on_it():
    nyu = OmegaConf.to_container(OmegaConf.load(CONFIGS / "dataset/nyu.yaml").evaluation)
    usual = build(OmegaConf.create(settings_for(nyu, "marigold")))
    ppd = build(OmegaConf.create(settings_for(nyu, "ppd")))
    assert (usual.crop_rows, usual.crop_cols, usual.depth_range) == ((45, 471), (41, 601), None)
    assert (ppd.crop_rows, ppd.depth_range) == (None, (0.1, 10.0))


@pytest.mark.parametrize(("key", "value"), [("crop_row", [1, 2]), ("clip", "wide")])
def test_a_setting_that_is_misspelt_or_of_the_wrong_type_is_named(key, value):
    with pytest.raises(ConfigError, match=key):
        build(OmegaConf.create(settings_for({key: value}, "marigold")), "dataset.evaluation")
