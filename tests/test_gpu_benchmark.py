"""The benchmark of training and inference at its smallest: it goes on where it stopped, and reports its rows."""

import json

import pytest
import torch

from benchmarks import gpu

FEW = "^peak$|plain loop|latents, 4 x 8$|infer, 4 x 1, .*, float32$|^top, training$|lotus_d, cached"


@pytest.mark.slow
def test_rows_are_measured_once_and_reported(tmp_path, monkeypatch):
    output = tmp_path / "gpu.jsonl"
    command = ["--output", str(output), "--tiny", "--device", "cpu", "--least", "0", "--only", FEW]
    wanted = [name for name in gpu.ROWS if gpu.re.search(FEW, name)]

    def rows():
        return [json.loads(line) for line in output.read_text().splitlines()]

    gpu.main([*command, "--seconds", "41"])  # the loop, which may take 60, does not fit
    assert [row["name"] for row in rows()] == ["peak"]

    def hungry(**more):
        raise torch.OutOfMemoryError("no memory is left")

    monkeypatch.setitem(gpu.ROWS, gpu.OURS, gpu.partial(hungry))
    gpu.main(command)
    monkeypatch.undo()
    gpu.main(command)  # nothing is left to measure
    measured = {row["name"]: row for row in rows()}
    assert list(measured) == wanted
    assert [name for name, row in measured.items() if "failed" in row] == [gpu.OURS]
    assert measured[gpu.PLAIN]["images_per_second"] > 0
    shares = [share for _, share in measured["top, training"]["top"]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1

    gpu.main([*command, "--report"])
    reported = {row["name"]: row for row in json.loads(output.with_suffix(".json").read_text())}
    ours, theirs = (reported[f"infer, 4 x 1, {side}, float32"] for side in ("ours", "diffusers"))
    assert ours["ratio"] == pytest.approx(theirs["seconds"] / ours["seconds"])
    assert ours["tflops"] * ours["seconds"] == pytest.approx(theirs["tflops"] * theirs["seconds"])
    assert ours["of_peak"] == pytest.approx(ours["tflops"] / reported["peak"]["tflops"])
    table = output.with_suffix(".md").read_text()
    assert all(f"| {name} |" in table for name in wanted)


def test_operations_are_counted_without_numbers():
    """A convolution by hand: 2 x kernel x inputs x outputs x pixels, and twice that again backward."""
    with gpu.flops() as counter:
        layer = torch.nn.Conv2d(3, 5, 3, padding=1)
        layer(torch.zeros(2, 3, 8, 10, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 9 * 3 * 5 * 2 * 8 * 10
