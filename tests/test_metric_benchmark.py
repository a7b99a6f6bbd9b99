"""The benchmark of metric depth at its smallest: rows are measured once, and the tables have every method."""

import json

from benchmarks import metric_depth


def test_rows_are_measured_once_and_drawn(checkpoint, rooms_data, tmp_path, capsys):
    output, picture = tmp_path / "rows.jsonl", tmp_path / "picture.png"
    command = [str(checkpoint), "--data", str(rooms_data), "--dataset", "rooms", "--output", str(output)]
    command += ["--patterns", "grid", "--seeds", "1", "--limit", "1"]
    metric_depth.main([*command, "--picture", str(picture)])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["count"] for row in rows] == list(metric_depth.COUNTS)
    assert all(0 < row["residual"] < row["fit"] for row in rows[1:])
    assert picture.read_bytes().startswith(b"\x89PNG")
    metric_depth.main(command)
    assert len(output.read_text().splitlines()) == len(rows)
    table = capsys.readouterr().out
    assert all(f"| grid | {method} |" in table for method in metric_depth.METHODS[:-1])
