"""A result is compared with constants on the very pixels that it was measured on, or not at all."""

import pytest

from marigold import compare_constant, evaluate
from marigold.evaluation.result import Result
from runs import composed

FLAT = """
def flat(image):
    return 0 * image[:, :1]
def half(image):
    return 0.5 + flat(image)
"""
CHOSEN = ["predictor=flat_prediction:flat", "space=affine_depth", "device=cpu", "panel.worst=0", "panel.median=0"]


@pytest.fixture(scope="module")
def words(tmp_path_factory, rooms_data):
    """Where the rooms lie; and a folder that can be imported from has somebody's functions of one value everywhere."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "flat_prediction.py").write_text(FLAT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield ["dataset=rooms", f"paths.data={rooms_data}"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, words):
    """All rooms, evaluated with that function."""
    folder = tmp_path_factory.mktemp("evaluated")
    evaluate.run(composed("eval", *words, *CHOSEN, f"output={folder}"))
    return folder


@pytest.mark.parametrize(
    "choice",
    [
        [],
        ["dataset.reader.limit=1"],
        ["predictor=flat_prediction:half", "space=affine_disparity", "protocol.prefit=true"],
    ],
)
def test_a_constant_scores_what_the_aligned_constant_scores_on_the_same_pixels(words, choice, tmp_path, capsys):
    evaluate.run(composed("eval", *words, *CHOSEN, *choice, f"output={tmp_path}"))
    ours = Result.from_json(tmp_path / "results.json")
    assert ours.facts.limit == (1 if "limit=1" in " ".join(choice) else None)
    capsys.readouterr()
    compare_constant.run(composed("compare_constant", *words, f"results={tmp_path}"))
    text, mean = capsys.readouterr().out, ours.metrics["abs_rel"].mean
    assert f"AbsRel {mean:.4f}" in text
    assert text.count(f"{mean:.4f}, ratio 1.000") == 1


def test_a_fit_that_is_not_least_squares_is_refused(words, tmp_path):
    evaluate.run(composed("eval", *words, *CHOSEN, f"output={tmp_path}", "protocol=moge"))
    with pytest.raises(ValueError, match="'moge'"):
        compare_constant.run(composed("compare_constant", *words, f"results={tmp_path}"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("dataset.reader.max_depth=4.0", r"dataset\.reader\.max_depth: .* 10\.0, .* 4\.0"),
        ("+protocol.benchmark_clip=false", "protocol"),
        ("dataset.reader.limit=1", "split"),
    ],
)
def test_other_pixels_are_refused(evaluated, words, change, reason):
    with pytest.raises(ValueError, match=reason):
        compare_constant.run(composed("compare_constant", *words, f"results={evaluated}", change))
