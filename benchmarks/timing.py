"""What a function costs, on a machine that may be busy with other work."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Cost(NamedTuple, Generic[T]):
    """Seconds on the clock, seconds of processor (which other programs do not lengthen), and the result."""

    wall: float
    cpu: float
    result: T


def measure(function: Callable[[], T], repetitions: int) -> Cost[T]:
    """Least cost of `repetitions` calls: other work on the machine can only add to it."""
    walls, cpus = [], []
    for _ in range(repetitions):
        wall, cpu = time.perf_counter(), time.process_time()
        result = function()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Cost(min(walls), min(cpus), result)


def peak_memory(function: Callable[[], object]) -> float:
    """MiB that a call needs at its peak beyond what the process holds before it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    function()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))
