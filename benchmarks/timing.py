"""What a function costs, on a machine that may be busy with other work."""

import time
from collections.abc import Callable
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
