"""Shared by the benchmarks: the cost of a function on a machine that may be busy, rows in a file, a table."""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Cost(NamedTuple):
    """Seconds on the clock, and seconds of processor, which other programs do not lengthen."""

    wall: float
    cpu: float


def measure(function: Callable[[], object], repetitions: int) -> Cost:
    """Least cost of `repetitions` calls: other work on the machine can only add to it."""
    walls, cpus = [], []
    for _ in range(repetitions):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Cost(min(walls), min(cpus))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none if there is no file yet."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def add_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows as JSON lines, all at once: an interrupted measurement leaves none."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)


def table(headings: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (headings, *rows)]
    lines.insert(1, "|" + "---|" * len(headings))
    return "\n".join(lines)
