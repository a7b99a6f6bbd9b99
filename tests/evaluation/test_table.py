"""Tables: protocols apart, ranks by hand, and every row marked published or measured."""

import base64
import csv
import io
import json
import os
import re

import pytest
from omegaconf import OmegaConf
from PIL import Image

from marigold.evaluation import report, table
from marigold.evaluation.published import PUBLISHED_MARK, Entry
from marigold.evaluation.report import single_table
from marigold.evaluation.result import Facts, Result, Split
from marigold.evaluation.rows import Score
from marigold.evaluation.table import collect, ranks, to_html, to_markdown
from marigold.report import run


def result(
    dataset, abs_rel, delta1=0.9, *, protocol="marigold", complete=True, official=True, name="mine", limit=None, **more
):
    count = 654 if complete else 650
    sampler = {"steps": 1, "ensemble_size": more.get("size", 10)}
    split = Split("test", "test.txt", 654, "0" * 64, official)
    facts = Facts(dataset, {"name": protocol}, split, {}, limit, {"name": name}, sampler, "commit", "fingerprint")
    metrics = {"abs_rel": Score(abs_rel, 0.0, None), "delta1": Score(delta1, 0.0, None)}
    date = f"2026-01-{more.get('day', 1):02d}T12:00:00+00:00"
    return Result(date, facts, (0,), count, 654, complete, metrics, {}, (), ())


def tables_of(*results, published=False):
    return collect({f"runs/{k}": one for k, one in enumerate(results)}, published)


def test_ranks_by_hand():
    def entry(method, *values, notes=()):
        return Entry(method, "", "p", "measured here", dict(zip("ab", values, strict=False)), notes)

    rows = [
        entry("x", (5.0, 90.0), (9.0, 80.0)),
        entry("y", (6.0, 95.0), (8.0, 80.0)),
        entry("z", (7.0, 85.0), (8.0, 70.0)),
    ]
    # AbsRel a: 1 2 3; delta1 a: 2 1 3; AbsRel b: 3 1.5 1.5; delta1 b: 1.5 1.5 3.
    assert ranks(rows, ["a", "b"]) == pytest.approx([7.5 / 4, 6 / 4, 10.5 / 4])
    partial = [*rows[:2], entry("short", (1.0, 99.0)), entry("odd", (1.0, 99.0), (1.0, 99.0), notes=("incomplete",))]
    assert ranks(partial, ["a", "b"])[2:] == [None, None]
    assert ranks(rows[:1], ["a", "b"]) == [None]


def test_protocols_are_tables_of_their_own_and_every_row_says_what_it_is():
    found = [result("nyu", 0.0555, 0.9612), result("kitti", 0.1), result("nyu", 0.05, protocol="disparity")]
    tables = tables_of(*found, published=True)
    methods = {table.protocol: [row.method for row, _ in table.rows] for table in tables}
    assert list(methods) == ["marigold", "disparity"]
    assert ("Marigold v1.0" in methods["marigold"], "DPT" in methods["marigold"]) == (True, False)
    assert "DPT" in methods["disparity"]
    assert methods["marigold"].count("mine") == 1  # both data sets in one row
    lines = [line for line in to_markdown(tables).splitlines() if line.startswith("| ") and "method" not in line]
    assert all(("*published*" in line) != ("measured here" in line) for line in lines)
    (ours,) = [line.split() for line in lines if "mine" in line and "5.55" in line]
    assert {"5.55", "96.12", "10.00", "90.00"} < set(ours)


@pytest.mark.parametrize("facts", [{"complete": False}, {"official": False}, {"limit": 6}])
def test_incomplete_and_unofficial_results_are_noted_and_not_ranked(facts):
    part = result("nyu", 0.01, 0.99, **facts)
    row, rank = tables_of(part, published=True)[0].rows[-1]
    assert (len(row.notes), row.notes[0].split(": ")[0], rank) == (1, "nyu", None)
    assert row.notes[0].removeprefix("nyu: ") in single_table(part)


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (result("nyu", 0.0529, 0.9642, size=1), "mine: reproduced"),
        (result("nyu", 0.0509, 0.9630, size=1), "mine: nyu -0.11 AbsRel, nyu -0.30 delta1"),
        (result("nyu", 0.0520, 0.9660), ""),
        (result("nyu", 0.0520, 0.9660, protocol="marigold+prefit", size=1), ""),
        (result("nyu", 0.0520, 0.9660, size=1, official=False), ""),
        (result("nyu", 0.0520, 0.9660, size=1, limit=6), ""),
    ],
)
def test_a_published_row_of_the_same_setting_is_reproduced_or_the_difference_is_shown(ours, expected, monkeypatch):
    row = Entry("E2E", "1 x 1", "marigold", PUBLISHED_MARK, {"nyu": (5.2, 96.6), "scannet": (5.8, 96.2)})
    for module in (report, table):
        monkeypatch.setattr(module, "PUBLISHED", (row,))
    for text in (single_table(ours), to_markdown(tables_of(ours, published=True))):
        for line in text.splitlines():
            if "E2E" in line:
                assert line.rstrip("| ").endswith(expected or "96.6") or (not expected and "mine" not in line)


@pytest.mark.parametrize(
    ("results", "counted", "reason"),
    [
        ([result("nyu", 0.1, day=2), result("nyu", 0.2, day=1)], 0, "is newer"),
        ([result("nyu", 0.1, day=1), result("nyu", 0.2, day=2, limit=6)], 0, "has the whole set"),
        ([result("nyu", 0.1, day=2, complete=False), result("nyu", 0.2)], 1, "has the whole set"),
    ],
)
def test_of_two_results_for_one_cell_one_counts_and_the_other_is_listed(results, counted, reason):
    tables = tables_of(*results, result("nyu", 0.1, protocol="disparity"))
    ((row, _),) = tables[0].rows
    assert row.values["nyu"][0] == pytest.approx(100 * results[counted].metrics["abs_rel"].mean)
    line = f"mine 1 x 10 on nyu: runs/{counted} {reason}"
    assert [table.superseded for table in tables] == [{f"runs/{1 - counted}": line}, {}]
    assert f"- `runs/{1 - counted}`: {line}\n" in to_markdown(tables)
    assert f"<li>runs/{1 - counted}: {line}</li>" in to_html(tables, {})


def test_the_command_writes_every_format_with_the_panels_of_the_results_that_count(tmp_path, capsys):
    # Two of one name, and two for one cell without a date, as earlier versions wrote them: the file's time counts.
    for k, (size, abs_rel, time) in enumerate([(1, 0.3, 1e9), (10, 0.1, 2e9), (10, 0.2, 1e9)]):
        path = tmp_path / f"run_{k}" / "results.json"
        result("nyu", abs_rel, size=size, name="a<b_c").to_json(path)
        content = json.loads(path.read_text())
        del content["date"]
        path.write_text(json.dumps(content))
        Image.new("RGB", (k + 1, 1)).save(path.with_name("panel.png"))
        os.utime(path, (time, time))
    run(OmegaConf.create({"results": [str(tmp_path)], "published": False, "output": str(tmp_path / "page")}))
    printed = capsys.readouterr().out
    assert ("10.00" in printed, "30.00" in printed, "20.00" in printed) == (True, True, False)
    files = {path.suffix: path.read_text() for path in tmp_path.glob("page.*")}
    assert (tmp_path / "page-marigold.png").is_file()
    page = files[".html"]
    embedded = [base64.b64decode(text) for text in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert [Image.open(io.BytesIO(image)).size[0] for image in embedded] == [1, 2]
    assert f"({tmp_path / 'run_1'})" in page  # tells panels of one name apart
    # One file that loads nothing else, with the names escaped.
    assert not re.search(r"(src|href)=.(?!data:)|a<b", page)
    assert r"a<b\_c" in files[".tex"]
    rows = list(csv.DictReader(files[".csv"].splitlines()))
    assert [(row["dataset"], float(row["abs_rel_percent"]), row["delta1_percent"]) for row in rows] == [
        ("nyu", 30.0, "90.0"),
        ("nyu", 10.0, "90.0"),
    ]
