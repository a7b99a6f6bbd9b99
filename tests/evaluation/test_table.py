"""Tables: protocols apart, ranks by hand, and every row marked published or measured."""

import base64
import io
import json
import os
import re
from html.parser import HTMLParser

import pytest
from omegaconf import OmegaConf
from PIL import Image

from marigold.evaluation import report
from marigold.evaluation.published import Published
from marigold.evaluation.report import Entry, single_table
from marigold.evaluation.result import Facts, Result, Score, Split
from marigold.evaluation.table import collect, ranks, to_csv, to_html, to_latex, to_markdown
from marigold.report import run


def content(
    dataset,
    abs_rel,
    delta1,
    protocol="marigold",
    complete=True,
    official=True,
    name="my_model",
    limit=None,
    day=1,
    ensemble_size=10,
):
    count = 654 if complete else 650
    split = Split("test", "test.txt", 654, "0" * 64, official)
    sampler = {"steps": 1, "ensemble_size": ensemble_size}
    facts = Facts(dataset, {"name": protocol}, split, {}, limit, {"name": name}, sampler, "commit", "fingerprint")
    metrics = {"abs_rel": Score(abs_rel, 0.0, None), "delta1": Score(delta1, 0.0, None)}
    date = f"2026-01-{day:02d}T12:00:00+00:00"
    return Result(date, facts, (0,), count, 654, complete, metrics, {}, (), ())


def in_folders(*contents):
    return {f"runs/{k}": result for k, result in enumerate(contents)}


def entry(method, *values, notes=()):
    return Entry(method, "", "p", "measured here", dict(zip("ab", values, strict=False)), notes)


def test_ranks_by_hand():
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
    tables = collect(
        in_folders(
            content("nyu", 0.0555, 0.9612), content("kitti", 0.1, 0.9), content("nyu", 0.05, 0.97, "disparity")
        ),
        True,
    )
    assert [table.protocol for table in tables] == ["marigold", "disparity"]
    methods = {table.protocol: [row.method for row, _ in table.rows] for table in tables}
    assert "Marigold v1.0" in methods["marigold"]
    assert "DPT" not in methods["marigold"]
    assert "DPT" in methods["disparity"]
    assert methods["marigold"].count("my_model") == 1  # both data sets in one row
    text = to_markdown(tables)
    ours = next(line for line in text.splitlines() if "my_model" in line)
    assert "measured here" in ours
    assert "5.55" in ours
    assert "96.12" in ours
    assert all(
        "*published*" in line or "measured here" in line
        for line in text.splitlines()
        if line.startswith("| ") and "method" not in line
    )


def test_what_is_incomplete_or_unofficial_is_said_and_not_ranked():
    table = collect(in_folders(content("nyu", 0.01, 0.99, complete=False, official=False)), True)[0]
    row, rank = table.rows[-1]
    assert rank is None
    assert row.notes == ("nyu: incomplete: 650 of 654 images", "nyu: unofficial split (654 lines)")
    part, rank = collect(in_folders(content("nyu", 0.01, 0.99, limit=6)), True)[0].rows[-1]
    assert (part.notes, rank) == (("nyu: only 6 images of the set",), None)
    assert "incomplete: 650 of 654" in single_table(content("nyu", 0.01, 0.99, complete=False))


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        (content("nyu", 0.0559, 0.9661, ensemble_size=1), "my_model: nyu +0.39 AbsRel"),
        (content("nyu", 0.0529, 0.9642, ensemble_size=1), "my_model: reproduced"),
        (content("nyu", 0.0520, 0.9635, ensemble_size=1), "my_model: nyu -0.25 delta1"),
        (content("nyu", 0.0509, 0.9630, ensemble_size=1), "my_model: nyu -0.11 AbsRel, nyu -0.30 delta1"),
        (content("nyu", 0.0520, 0.9660), ""),
        (content("nyu", 0.0520, 0.9660, protocol="marigold+prefit", ensemble_size=1), ""),
        (content("nyu", 0.0520, 0.9660, ensemble_size=1, official=False), ""),
        (content("nyu", 0.0520, 0.9660, ensemble_size=1, official=None), ""),
        (content("nyu", 0.0520, 0.9660, ensemble_size=1, complete=False), ""),
        (content("nyu", 0.0520, 0.9660, ensemble_size=1, limit=6), ""),
        (content("scannet", 0.0580, 0.9620, ensemble_size=1), "my_model: reproduced"),
    ],
)
def test_a_published_row_of_the_same_setting_is_reproduced_or_missed_by_so_much(ours, expected, monkeypatch):
    row = Published("E2E", "1 x 1", "marigold", {"nyu": (5.2, 96.6), "scannet": (5.8, 96.2)})
    monkeypatch.setattr(report, "PUBLISHED", (row,))
    line = next(line for line in single_table(ours).splitlines() if "E2E" in line)
    assert line.rstrip("| ").endswith(expected or "96.6")
    tables = collect(in_folders(ours), True)
    lines = [line for line in to_markdown(tables).splitlines() if "E2E" in line]
    assert [expected in line and ("my_model" in line) == bool(expected) for line in lines] == [True] * len(lines)


def test_what_several_results_make_of_a_published_row_is_said_set_by_set(monkeypatch):
    row = Published("E2E", "1 x 10", "marigold", {"nyu": (5.2, 96.6), "kitti": (9.6, 91.9)})
    monkeypatch.setattr(report, "PUBLISHED", (row,))
    found = [content("nyu", 0.052, 0.966, name="a"), content("kitti", 0.099, 0.919, name="a")]
    found += [content("nyu", 0.052, 0.966, name="b"), content("kitti", 0.099, 0.919, name="b", limit=6)]
    (published, rank), *_ = collect(in_folders(*found), True)[0].rows
    assert published.beside == ("a: kitti +0.30 AbsRel", "b: reproduced")
    assert rank is not None  # a remark is no reason to leave a row out


def test_csv_has_a_line_per_row_and_data_set_in_full_precision():
    found = in_folders(content("nyu", 0.0555512, 0.96), content("kitti", 0.1, 0.9, limit=6))
    lines = to_csv(collect(found, False)).splitlines()
    assert lines[0].startswith("protocol,method,setting,source,dataset,abs_rel_percent")
    assert [line.split(",")[:2] for line in lines[1:]] == [["marigold", "my_model"]] * 2
    assert lines[1].split(",")[3:7] == ["measured here", "nyu", str(100 * 0.0555512), "96.0"]
    assert "only 6 images" in lines[2]


@pytest.mark.parametrize(
    ("results", "counted", "reason"),
    [
        ([content("nyu", 0.1, 0.9, day=1), content("nyu", 0.2, 0.8, day=2)], 1, "is newer"),
        ([content("nyu", 0.1, 0.9, day=2), content("nyu", 0.2, 0.8, day=1)], 0, "is newer"),
        ([content("nyu", 0.1, 0.9, day=1), content("nyu", 0.2, 0.8, day=2, limit=6)], 0, "has the whole set"),
        ([content("nyu", 0.1, 0.9, day=2, complete=False), content("nyu", 0.2, 0.8)], 1, "has the whole set"),
        ([content("nyu", 0.1, 0.9, day=1, limit=9), content("nyu", 0.2, 0.8, day=2, limit=6)], 1, "is newer"),
    ],
)
def test_of_two_results_for_one_cell_one_counts_and_the_other_is_listed(results, counted, reason):
    tables = collect({**in_folders(*results), "other": content("nyu", 0.1, 0.9, "disparity")}, False)
    (row, _), *more = tables[0].rows
    assert (row.values["nyu"][0], more) == (pytest.approx(100 * results[counted].metrics["abs_rel"].mean), [])
    line = f"my_model 1 x 10 on nyu: runs/{counted} {reason}"
    assert tables[0].superseded == {f"runs/{1 - counted}": line}
    assert tables[1].superseded == {}
    assert f"- `runs/{1 - counted}`: {line}\n" in to_markdown(tables)
    assert f"<li>runs/{1 - counted}: {line}</li>" in to_html(tables, {})


def test_a_set_that_was_evaluated_twice_is_in_the_table_once(tmp_path, capsys):
    # Without a date, as results were written before: the file's counts.
    for folder, abs_rel, time in (("a", 0.1, 2e9), ("b", 0.2, 1e9)):
        path = tmp_path / folder / "results.json"
        content("nyu", abs_rel, 0.9).to_json(path)
        path.write_text(
            json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "date"})
        )
        Image.new("RGB", (1, 1)).save(tmp_path / folder / "panel.png")
        os.utime(path, (time, time))
    run(OmegaConf.create({"results": [str(tmp_path)], "published": False, "output": str(tmp_path / "page")}))
    printed = capsys.readouterr().out
    assert "10.00" in printed
    assert "20.00" not in printed
    assert f"- `{tmp_path}/b`: my_model 1 x 10 on nyu: {tmp_path}/a is newer" in printed
    assert (tmp_path / "page.html").read_text().count("data:image/png") == 1  # no picture beside other numbers


def test_html_is_one_well_formed_file_and_latex_is_escaped(tmp_path):
    (tmp_path / "panel.png").write_bytes(b"\x89PNG")
    tables = collect(in_folders(content("nyu", 0.05, 0.97, name="a<b_c")), True)
    page = to_html(tables, {"a<b_c on nyu": tmp_path / "panel.png"})
    assert "a<b" not in page
    assert not re.search(r"(src|href)=.(?!data:)", page)
    assert "prefers-color-scheme: dark" in page
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag not in ("meta", "link", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed(page)
    assert open_tags == []
    latex = to_latex(tables)
    assert r"a<b\_c" in latex
    assert latex.count(r"\begin{tabular}") == latex.count(r"\end{tabular}") == 1


def test_the_page_has_the_panel_of_every_result_also_of_those_of_one_name(tmp_path):
    for size in (1, 10):
        folder = tmp_path / f"size_{size}"
        content("nyu", 0.1 / size, 0.9, ensemble_size=size).to_json(folder / "results.json")
        Image.new("RGB", (size, 1)).save(folder / "panel.png")
    settings = {"results": [str(tmp_path)], "published": False, "output": str(tmp_path / "page")}
    run(OmegaConf.create(settings))
    page = (tmp_path / "page.html").read_text()
    pictures = [base64.b64decode(text) for text in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    assert [Image.open(io.BytesIO(picture)).size[0] for picture in pictures] == [1, 10]
    assert f"({tmp_path / 'size_10'})" in page
