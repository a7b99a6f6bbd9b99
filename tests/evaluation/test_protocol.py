"""Every protocol: the true depth scores perfectly, and pixels, views and errors are as documented."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from marigold.config import ConfigError, build
from marigold.depth.mapping import MAPPING_OF, MAPPINGS
from marigold.depth.reprojection import reproject
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.fits import BestConstant
from marigold.evaluation.protocol import PROTOCOL_OF, Benchmark, settings_for
from marigold.evaluation.rows import evaluate
from marigold.evaluation_set import make_protocol
from marigold.types import SPACES, Camera, DepthSample, Prediction
from samples import sample

CONFIGS = Path(__file__).parents[2] / "configs"


def protocol(name, **settings):
    node = OmegaConf.load(CONFIGS / f"protocol/{name}.yaml")
    return make_protocol(node, OmegaConf.create({"evaluation": settings}))


def scores(values, space, protocol, sample):
    return next(evaluate(lambda _: Prediction(values[None], None, space), [sample], protocol)).metrics


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "protocol").glob("*.yaml")))
@pytest.mark.parametrize("space", SPACES)
def test_the_true_depth_has_no_error(name, space):
    """As an affine prediction in its space, under every protocol that evaluates it, prefitted or not."""
    truth, plain = sample(), protocol(name, clip=(1e-3, 10.0))
    known = torch.where(truth.valid, truth.depth, 1.0)
    if space == "metric_depth":
        values = known
    else:
        # The line of `ppd` is in log(depth + 1).
        of_depth = (
            torch.log1p if (name, space) == ("ppd", "affine_log_depth") else MAPPINGS[MAPPING_OF[space]].of_depth
        )
        values = of_depth(known)
        values = (values - values.min() + 0.3) / (values.max() - values.min() + 0.4)
    if name in ("moge", "ppd"):
        chosen = [plain]
        with pytest.raises(EvaluationError, match=f"'{name}'"):
            plain.prefitted()
    else:
        chosen = [plain, plain.prefitted()]
    for one in chosen:
        if space in one.spaces:
            found = scores(values, space, one, truth)
            assert (found["abs_rel"], found["delta1"]) == (pytest.approx(0, abs=1e-5), 1)
            assert found["boundary_f1"] == pytest.approx(1, abs=1e-3)
        else:
            assert PROTOCOL_OF[space] != name
            with pytest.raises(EvaluationError, match=f"'{name}' .* '{space}'"):
                scores(values, space, one, truth)


@pytest.mark.parametrize(("name", "space"), [("marigold", "metric_depth"), ("disparity", "affine_disparity")])
def test_prefit_changes_nothing_for_predictions_in_the_protocols_own_quantity(name, space):
    values, plain = sample(seed=3).depth + 1, protocol(name, clip=(1e-3, 10.0))
    assert scores(values, space, plain.prefitted(), sample()) == scores(values, space, plain, sample())


def test_the_best_constant_is_no_worse_than_any_other():
    best, truth = replace(protocol("marigold"), fit=BestConstant()), sample()
    depth = truth.depth[truth.valid].double()
    # The optimum of a sum of weighted distances is one of the values themselves.
    errors = [((candidate - depth).abs() / depth).mean().item() for candidate in depth]
    found = scores(torch.zeros_like(truth.depth), "affine_depth", best, truth)
    assert found["abs_rel"] == pytest.approx(min(errors), abs=1e-12)


def test_a_view_is_what_the_predictor_sees_and_what_is_evaluated():
    truth = replace(sample(height=48, width=80), camera=Camera(60.0, 60.0, 37.0, 25.0))
    seen = []

    def oracle(shown):
        seen.append(shown)
        return Prediction((shown.depth[None] + 0.5) / 11, None, "affine_depth")

    moge = protocol("moge", view_size=(20, 30))
    assert next(evaluate(oracle, [truth], moge)).metrics["abs_rel"] < 1e-5
    view = reproject(truth.image, truth.depth, truth.valid, truth.camera, (20, 30))
    for found, wanted in zip((seen[0].image, seen[0].depth, seen[0].valid), view, strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(EvaluationError, match=r"s0: .*reader\.cameras"):
        next(evaluate(oracle, [sample()], moge))


def test_ppd_leaves_out_depth_edges_by_the_sobel_filter():
    depth = torch.full((1, 6, 8), 2.0)
    depth[..., 4:] = 2.2  # |dx| = 4 * 0.2 in the two columns at the step
    mask = protocol("ppd", largest_sobel=0.3).mask(depth[None])
    assert mask[0, 0].all(0).tolist() == [True, True, True, False, False, True, True, True]


def test_errors_name_the_image():
    truth = sample(seed=7)
    empty = DepthSample("empty", truth.image, truth.depth, torch.zeros_like(truth.valid))
    broken = torch.rand(1, 24, 32)
    broken[0, 5, 5] = torch.nan
    cropped = protocol("marigold", crop_size=(48, 64), crop_rows=(0, 40), crop_cols=(0, 60))
    for values, chosen, image, reason in (
        (truth.depth, protocol("marigold"), empty, "empty"),
        (broken, protocol("marigold"), truth, "s7: .* 1 of 768"),
        (truth.depth, cropped, truth, "s7: .* 48x64 .* 24x32"),
    ):
        with pytest.raises(EvaluationError, match=reason):
            scores(values, "affine_depth", chosen, image)


def test_a_smaller_prediction_is_compared_at_the_size_of_the_truth():
    rows = torch.linspace(1, 5, 24)[None, :, None].expand(1, 24, 32).contiguous()
    truth = DepthSample("ramp", torch.zeros(3, 24, 32), rows, torch.ones(1, 24, 32, dtype=torch.bool))
    half = torch.nn.functional.avg_pool2d(rows, 2)
    assert scores(half, "affine_depth", protocol("marigold"), truth)["abs_rel"] < 0.01


def test_a_data_set_changes_settings_for_a_protocol_and_a_misspelt_one_is_named():
    nyu = OmegaConf.to_container(OmegaConf.load(CONFIGS / "dataset/nyu.yaml").evaluation)
    usual, ppd = (build(OmegaConf.create(settings_for(nyu, name))) for name in ("marigold", "ppd"))
    assert (usual.crop_rows, usual.crop_cols, usual.depth_range) == ((45, 471), (41, 601), None)
    assert (ppd.crop_rows, ppd.depth_range) == (None, (0.1, 10.0))
    for key, value in (("crop_row", [1, 2]), ("clip", "wide")):
        with pytest.raises(ConfigError, match=key):
            build(OmegaConf.create(settings_for({key: value}, "marigold")), "dataset.evaluation")
    with pytest.raises(EvaluationError, match="crop_cols"):
        Benchmark(crop_size=(48, 64), crop_rows=(0, 48), crop_cols=(0, 65))
