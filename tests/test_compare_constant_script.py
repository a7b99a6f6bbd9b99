"""A result is compared with constants on the very pixels that it was measured on, or not at all."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from marigold.compare_constant import run
from marigold.evaluate import run as evaluate
from marigold.evaluation.report import stamps
from marigold.evaluation.result import Result

CONFIGS = Path(__file__).parent.parent / "configs"
FLAT = """
def flat(image):
    return 0 * image[:, :1]
def half(image):
    return 0.5 + flat(image)
"""
CHOSEN = ["predictor=flat_prediction:flat", "space=affine_depth", "device=cpu", "panel.worst=0", "panel.median=0"]


def composed(name, data, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, ["dataset=rooms", f"paths.data={data}", *overrides])


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, rooms_data):
    """Rooms evaluated with a function that predicts one value everywhere."""
    folder = tmp_path_factory.mktemp("evaluated")
    (folder / "flat_prediction.py").write_text(FLAT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        evaluate(composed("eval", rooms_data, *CHOSEN, f"output={folder}"))
    return folder


def test_the_ratio_is_that_of_the_two_means(evaluated, rooms_data, capsys):
    run(composed("compare_constant", rooms_data, f"results={evaluated}"))
    text = capsys.readouterr().out
    ours = Result.from_json(evaluated / "results.json").metrics["abs_rel"].mean
    # A prediction without any structure scores what the aligned constant scores.
    assert f"AbsRel {ours:.4f}" in text
    assert f"like every prediction: {ours:.4f}, ratio 1.000" in text


@pytest.mark.parametrize("limit", ["limit=1", "dataset.reader.limit=1"])
def test_a_part_is_compared_on_the_same_images(evaluated, rooms_data, limit, monkeypatch, capsys):
    part = evaluated / limit.replace("=", "_")
    monkeypatch.syspath_prepend(evaluated)
    evaluate(composed("eval", rooms_data, *CHOSEN, f"output={part}", limit))
    ours = Result.from_json(part / "results.json")
    assert (ours.facts.limit, ours.facts.split.name, ours.count, ours.expected) == (1, "test[1]", 1, 1)
    assert "only 1 images of the set" in stamps(ours)
    capsys.readouterr()
    run(composed("compare_constant", rooms_data, f"results={part}"))
    text = capsys.readouterr().out
    mean = ours.metrics["abs_rel"].mean
    assert f"like every prediction: {mean:.4f}, ratio 1.000" in text
    assert mean != Result.from_json(evaluated / "results.json").metrics["abs_rel"].mean


@pytest.mark.parametrize("choice", [["space=affine_log_depth"], ["space=affine_disparity", "protocol.prefit=true"]])
def test_the_protocol_is_the_results(evaluated, rooms_data, choice, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(evaluated)
    chosen = ["predictor=flat_prediction:half", "device=cpu", "panel.worst=0", "panel.median=0"]
    evaluate(composed("eval", rooms_data, *chosen, *choice, f"output={tmp_path}"))
    capsys.readouterr()
    run(composed("compare_constant", rooms_data, f"results={tmp_path}"))
    assert "like every prediction: " in (text := capsys.readouterr().out)
    assert text.count("ratio 1.000") == 1


def test_a_fit_that_is_not_least_squares_is_refused(evaluated, rooms_data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(evaluated)
    evaluate(composed("eval", rooms_data, *CHOSEN, f"output={tmp_path}", "protocol=moge"))
    with pytest.raises(ValueError, match="'moge'"):
        run(composed("compare_constant", rooms_data, f"results={tmp_path}"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("dataset.reader.max_depth=4.0", r"dataset\.reader\.max_depth: .* 10\.0, .* 4\.0"),
        ("+protocol.benchmark_clip=false", "another protocol"),
        ("+dataset.evaluation.depth_range=[0.5,3.0]", "another protocol"),
        ("dataset.reader.limit=1", "another split"),
    ],
)
def test_other_pixels_are_refused(evaluated, rooms_data, change, reason):
    with pytest.raises(ValueError, match=reason):
        run(composed("compare_constant", rooms_data, f"results={evaluated}", change))
