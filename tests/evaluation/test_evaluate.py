"""Sharding, merging, averaging and resuming; no image is lost or counted twice."""

import csv
import math

import pytest
import torch

from marigold.data.splits import SplitInfo
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.evaluate import Row, evaluate, merge_rows, summarise
from marigold.evaluation.protocol import Benchmark, least_squares
from marigold.evaluation.results import read_results, results, write_results
from marigold.evaluation.rows import RowStore, write_csv
from marigold.evaluation.session import Processes, run_seed, worst_and_median
from marigold.types import DepthSample, Prediction

PROTOCOL = least_squares(
    name="p", spaces=["affine_depth"], quantity="depth", benchmark_clip=False, benchmark=Benchmark()
)


class Samples(list):
    name = "made"
    split = SplitInfo("made", "made.txt", 7, "0" * 64, None)

    @property
    def names(self):
        return [sample.name for sample in self]


def samples(n=7):
    made = Samples()
    for k in range(n):
        generator = torch.Generator().manual_seed(k)
        depth = 1 + torch.rand(1, 8, 8, generator=generator)
        made.append(DepthSample(f"s{k}", torch.rand(3, 8, 8, generator=generator), depth, depth > 0))
    return made


def grey(image):
    return Prediction(image.mean(1, keepdim=True), None, "affine_depth")


@pytest.mark.parametrize("world", [1, 2, 3, 10])
def test_any_number_of_processes_gives_the_same_rows(world):
    data = samples()
    alone = merge_rows([evaluate(grey, data, PROTOCOL)], 7)
    parts = [evaluate(grey, data, PROTOCOL, rank=rank, world=world) for rank in range(world)]
    assert [len(part) for part in parts] == [len(range(rank, 7, world)) for rank in range(world)]
    assert merge_rows(parts, 7) == alone


def test_missing_and_doubled_images_are_refused():
    rows = [Row("a", {"abs_rel": 0.1}), Row("b", {"abs_rel": 0.2})]
    with pytest.raises(EvaluationError, match="2 images were judged, the data set lists 3"):
        merge_rows([rows], 3)
    with pytest.raises(EvaluationError, match=r"1 image.* more than once, first b"):
        merge_rows([rows, rows[1:]], 3)


def test_the_mean_is_over_images_and_not_over_pixels():
    # Image a has one judged pixel, image b has many: both count the same.
    summary = summarise(
        [Row("x/a", {"m": 0.1}), Row("x/b", {"m": 0.4}), Row("y/c", {"m": 0.7})], {"x": "x/", "z": "z/"}
    )
    assert summary.metrics["m"].mean == pytest.approx(0.4)
    assert summary.metrics["m"].std == pytest.approx(math.sqrt(0.06))
    assert summary.groups["x"].metrics["m"].mean == pytest.approx(0.25)
    assert "z" not in summary.groups


def test_an_image_that_fails_stops_the_run_or_is_reported():
    def sometimes(image):
        return Prediction(grey(image).depth / (0 if torch.equal(image[0], data[3].image) else 1), None, "affine_depth")

    data = samples()
    with pytest.raises(EvaluationError, match=r"s3: .* not finite"):
        evaluate(sometimes, data, PROTOCOL)
    rows = evaluate(sometimes, data, PROTOCOL, on_error="report")
    assert [row.name for row in rows if row.error] == ["s3"]
    content = results({"dataset": "made"}, {0: rows}, 7, None)
    assert (content["count"], content["expected"], content["complete"]) == (6, 7, False)
    assert content["failures"][0]["name"] == "s3"
    with pytest.raises(EvaluationError, match="none of 1"):
        summarise([rows[3]])


def test_an_unknown_metric_is_named():
    with pytest.raises(EvaluationError, match=r"unknown metric.* absrel; known: abs_rel"):
        evaluate(grey, samples(), PROTOCOL, metrics=["absrel"])


def test_a_stopped_run_goes_on_and_gives_the_same_bits(tmp_path):
    data = samples()
    whole = merge_rows([evaluate(grey, data, PROTOCOL)], 7)
    store = RowStore(tmp_path, "f" * 64, rank=1)
    for row in whole[:3]:
        store.append(0, row)
    with store.path.open("ab") as file:
        file.write(b'[0, "s3", {"abs_r')  # killed in the middle of a line
    RowStore(tmp_path, "0" * 64, rank=0).append(0, Row("s5", {"abs_rel": 99.0}))  # of other settings
    judged = []
    again = RowStore(tmp_path, "f" * 64, rank=1)
    done = again.load()
    rows = run_seed(
        lambda sample: grey(sample.image[None]),
        data,
        PROTOCOL,
        0,
        done,
        again,
        metrics=list(whole[0].metrics),
        processes=Processes(rank=0, world=1, gather=lambda parts: parts, wait=lambda: None),
        on_row=lambda row: judged.append(row.name),
        on_error="raise",
    )
    assert judged == ["s3", "s4", "s5", "s6"]
    assert rows == whole
    assert sorted(again.load().values(), key=lambda row: row.name) == whole  # the broken line cost nothing but itself


def test_seeds_give_mean_and_deviation(tmp_path):
    rows = {seed: [Row("a", {"m": value}), Row("b", {"m": value + 0.2})] for seed, value in ((5, 0.1), (6, 0.3))}
    content = results({"dataset": "made"}, rows, 2, None)
    assert content["metrics"]["m"]["mean"] == pytest.approx(0.3)
    assert content["metrics"]["m"]["std_over_images"] == pytest.approx(0.1)
    assert content["metrics"]["m"]["std_over_seeds"] == pytest.approx(math.sqrt(0.02))
    assert [part["metrics"]["m"] for part in content["per_seed"]] == pytest.approx([0.2, 0.4])
    write_results(tmp_path / "results.json", content)
    assert read_results(tmp_path / "results.json") == content
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"other\.json: not a results file"):
        read_results(tmp_path / "other.json")


def test_the_csv_has_every_image_in_full_precision(tmp_path):
    write_csv(tmp_path / "a.csv", {0: [Row("a", {"m": 1 / 3}), Row("b", {}, "broken, badly")]})
    lines = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))
    assert lines[0] == ["seed", "name", "m", "error"]
    assert float(lines[1][2]) == 1 / 3
    assert lines[2] == ["0", "b", "", "broken, badly"]


def test_the_panel_shows_the_worst_and_then_the_median_images():
    rows = [Row(str(k), {"abs_rel": k / 100}) for k in range(21)]
    chosen = worst_and_median(rows, 2, 3)
    assert [(kind, row.name) for kind, row in chosen] == [
        ("worst", "20"),
        ("worst", "19"),
        ("median", "11"),
        ("median", "10"),
        ("median", "9"),
    ]
    assert len(worst_and_median(rows[:3], 10, 10)) == 3
