"""The benchmark of training and inference at its smallest: it resumes where it stopped, and reports its rows."""

import json

import pytest
import torch

from benchmarks import gpu

FEW = "^peak$|plain loop|latents, 4 x 8$|infer, 4 x 1, .*, float32$|lotus_d, cached"


@pytest.mark.slow
def test_rows_are_measured_once_and_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu, "LEAST", 0)
    output = tmp_path / "gpu.jsonl"
    command = ["--output", str(output), "--tiny", "--device", "cpu", "--only"]
    gpu.main([*command, "^peak$"])
    gpu.main([*command, FEW, "--seconds", "1"])  # nothing fits
    gpu.main([*command, FEW])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["name"] for row in rows] == [name for name in gpu.ROWS if gpu.re.search(FEW, name)]
    measured = {row["name"]: row for row in rows}

    capsys.readouterr()
    gpu.main([*command, FEW, "--report"])
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    reported = {line[0]: line for line in lines}
    assert set(measured) <= set(reported)
    ours, theirs = (f"infer, 4 x 1, {side}, float32" for side in ("ours", "diffusers"))
    assert reported[ours][2] == f"{measured[theirs]['seconds'] / measured[ours]['seconds']:.2f}"
    assert all(reported[name][3].endswith("%") for name in (ours, theirs, gpu.PLAIN))


def test_a_row_without_memory_leaves_the_others():
    def hungry(**_):
        raise torch.OutOfMemoryError("no memory is left")

    row = gpu.attempt(gpu.Bench(torch.device("cpu"), tiny=True), gpu.partial(hungry))
    assert row["failed"] == "out of memory"


def test_operations_are_counted_without_numbers():
    """A convolution by hand: 2 x kernel x inputs x outputs x pixels, and twice that again backward."""
    with gpu.flops() as counter:
        layer = torch.nn.Conv2d(3, 5, 3, padding=1)
        layer(torch.zeros(2, 3, 8, 10, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 9 * 3 * 5 * 2 * 8 * 10
