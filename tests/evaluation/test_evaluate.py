"""Sharing, gathering, averaging and resuming; no image is lost or counted twice."""

import csv
import json
import math
import os
from dataclasses import replace

import pytest

from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.panels import worst_and_median
from marigold.evaluation.result import Facts, Result, Split, make_result
from marigold.evaluation.rows import Row, RowStore, evaluate, gather_rows, summarise, write_csv
from marigold.types import Prediction
from samples import PLAIN, sample

FACTS = Facts("made", {"name": "p"}, Split("s", "s.txt", 7, "0" * 64, None), {}, None, {"name": "m"}, None, "c", "f")
SAMPLES = [sample(seed, 8, 8) for seed in range(7)]


def grey(shown):
    return Prediction(shown.image.mean(0, keepdim=True)[None], None, "affine_depth")


@pytest.mark.parametrize("world", [3, 10])
def test_any_number_of_processes_gives_the_same_rows(world):
    shares = [range(rank, 7, world) for rank in range(world)]
    rows = [row for part in shares for row in evaluate(grey, SAMPLES, PLAIN, indices=part)]
    assert gather_rows(rows, 7) == list(evaluate(grey, SAMPLES, PLAIN))


def test_missing_and_doubled_images_are_refused():
    rows = [Row("a", {"abs_rel": 0.1}), Row("b", {"abs_rel": 0.2})]
    with pytest.raises(EvaluationError, match=r"2 .* 3"):
        gather_rows(rows, 3)
    with pytest.raises(EvaluationError, match=r"b$"):
        gather_rows([*rows, rows[1]], 3)


def test_an_image_that_fails_stops_the_run_or_is_reported():
    def sometimes(shown):
        return Prediction(grey(shown).depth / (0 if shown.name == "s3" else 1), None, "affine_depth")

    with pytest.raises(EvaluationError, match=r"s3: .* not finite"):
        list(evaluate(sometimes, SAMPLES, PLAIN))
    rows = list(evaluate(sometimes, SAMPLES, PLAIN, on_error="report"))
    result = make_result(FACTS, {0: rows}, 7, None)
    assert (result.count, result.expected, result.complete) == (6, 7, False)
    assert [failure.reason.split(":")[0] for failure in result.failures] == ["s3"]
    with pytest.raises(EvaluationError):
        summarise([rows[3]])
    with pytest.raises(EvaluationError, match="absrel"):
        next(evaluate(grey, SAMPLES, PLAIN, metrics=["absrel"]))


def test_rows_of_a_stopped_run_are_read_back_to_the_bit(tmp_path):
    whole = list(evaluate(grey, SAMPLES, PLAIN))
    store = RowStore(tmp_path, "f" * 64, rank=1)
    for row in whole[:3]:
        store.append(0, row)
    with store.path.open("ab") as file:
        file.write(b'[0, "s3", {"abs_r')  # killed in the middle of a line
    RowStore(tmp_path, "0" * 64, rank=0).append(0, Row("s5", {"abs_rel": 99.0}))  # of other settings
    again = RowStore(tmp_path, "f" * 64, rank=1)
    assert list(again.load().values()) == whole[:3]
    for row in [*whole[3:], Row("s9", {}, "failed")]:
        again.append(0, row)
    # Only the broken line is lost, and a failed image is evaluated again.
    assert list(again.load().values()) == whole


def test_means_over_images_and_seeds_and_in_groups(tmp_path):
    rows = {seed: [Row("x/a", {"m": value}), Row("y/b", {"m": value + 0.2})] for seed, value in ((5, 0.1), (6, 0.3))}
    result = make_result(FACTS, rows, 2, {"only x": "x/", "none": "z/"})
    score = result.metrics["m"]
    assert (score.mean, score.std_over_images, score.std_over_seeds) == pytest.approx((0.3, 0.1, math.sqrt(0.02)))
    assert [part.metrics["m"] for part in result.per_seed] == pytest.approx([0.2, 0.4])
    ((name, group),) = result.groups.items()
    assert (name, group.count, group.metrics["m"].mean) == ("only x", 1, pytest.approx(0.2))
    result.to_json(tmp_path / "results.json")
    assert Result.from_json(tmp_path / "results.json") == result


def test_results_of_earlier_versions_are_read_and_other_files_are_refused(tmp_path):
    path = tmp_path / "results.json"
    result = make_result(FACTS, {0: [Row("a", {"m": 0.1})]}, 1, None)
    result.to_json(path)
    content = json.loads(path.read_text())
    # Earlier versions wrote neither of these.
    early = {key: value for key, value in content.items() if key not in ("date", "reader", "limit")}
    del early["split"]["part"]
    path.write_text(json.dumps(early))
    os.utime(path, (2e9, 2e9))
    assert Result.from_json(path) == replace(result, date="2033-05-18T03:33:20.000+00:00")
    wrong = [[], {**content, "format": 2}, {**content, "metrics": {"m": {"mean": 0.1}}}]
    for text in [*map(json.dumps, wrong), json.dumps(content)[:-9]]:
        path.write_text(text)
        with pytest.raises(EvaluationError, match=r"results\.json"):
            Result.from_json(path)


def test_the_csv_has_every_image_in_full_precision(tmp_path):
    write_csv(tmp_path / "a.csv", {0: [Row("a", {"m": 1 / 3}), Row("b", {}, "broken, badly")]})
    lines = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))
    assert lines == [["seed", "name", "m", "error"], ["0", "a", str(1 / 3), ""], ["0", "b", "", "broken, badly"]]


def test_the_panel_shows_the_worst_and_then_the_median_images():
    rows = [Row(str(k), {"abs_rel": k / 100}) for k in range(21)]
    chosen = worst_and_median(rows, 2, 3)
    assert " ".join(f"{kind} {row.name}" for kind, row in chosen) == "worst 20 worst 19 median 11 median 10 median 9"
    assert len(worst_and_median(rows[:3], 10, 10)) == 3
