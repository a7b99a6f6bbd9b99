"""A result is compared with constants on the very pixels that it was measured on, or not at all."""

import pytest

from marigold import compare_constant, evaluate
from marigold.evaluation.result import Result
from runs import composed

FLAT = """
def half(image):
    return 0.5 + 0 * image[:, :1]
"""


@pytest.fixture(scope="module")
def words(tmp_path_factory, rooms_data):
    """Where the rooms are; meanwhile a user's function that predicts a constant can be imported."""
    folder = tmp_path_factory.mktemp("functions")
    (folder / "flat_prediction.py").write_text(FLAT)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield ["dataset=rooms", f"paths.data={rooms_data}"]


def evaluated(words, folder, *choice):
    chosen = ["predictor=flat_prediction:half", "device=cpu", "panel.worst=0", "panel.median=0", *choice]
    evaluate.run(composed("eval", *words, "space=affine_depth", *chosen, f"output={folder}"))
    return folder


def compare(words, folder, *changes):
    compare_constant.run(composed("compare_constant", *words, f"results={folder}", *changes))


@pytest.mark.parametrize(
    "choice", [["dataset.reader.limit=1"], ["space=affine_disparity", "protocol=marigold", "protocol.prefit=true"]]
)
def test_a_constant_scores_what_the_aligned_constant_scores_on_the_same_pixels(words, choice, tmp_path, capsys):
    ours = Result.from_json(evaluated(words, tmp_path, *choice) / "results.json")
    capsys.readouterr()
    compare(words, tmp_path)
    text, mean = capsys.readouterr().out, ours.metrics["abs_rel"].mean
    assert f"AbsRel {mean:.4f}" in text
    assert text.count(f"{mean:.4f}, ratio 1.000") == 1


def test_other_pixels_and_other_fits_are_refused(words, tmp_path):
    folder = evaluated(words, tmp_path / "marigold")
    for change, reason in (
        ("dataset.reader.max_depth=4.0", r"dataset\.reader\.max_depth: .* 10\.0, .* 4\.0"),
        ("+protocol.benchmark_clip=false", "protocol"),
        ("dataset.reader.limit=1", "split"),
    ):
        with pytest.raises(ValueError, match=reason):
            compare(words, folder, change)
    with pytest.raises(ValueError, match="'moge'"):
        compare(words, evaluated(words, tmp_path / "moge", "protocol=moge"))
