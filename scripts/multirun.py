"""Several jobs by Hydra's -m: one that fails does not keep the next ones from running; the program fails at its end.

Around a script's job: `with one_job():`; instead of `launch(main)`: `launch_jobs(main)`.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from marigold.config import launch

_failed: list[tuple[str, int]] = []  # overrides and exit code


@contextmanager
def one_job() -> Iterator[None]:
    """Let the SystemExit of a job among several end that job only; `launch_jobs` tells at the end.

    With several processes it ends the program: the others may still be at this job.
    """
    try:
        yield
    except SystemExit as end:
        together = int(os.environ.get("WORLD_SIZE", "1")) > 1
        if HydraConfig.get().mode != RunMode.MULTIRUN or (together and end.code):
            raise
        if end.code:
            job = " ".join(HydraConfig.get().overrides.task)
            print(end.code if isinstance(end.code, str) else f"failed: {job}", file=sys.stderr)
            _failed.append((job, end.code if isinstance(end.code, int) else 1))


def launch_jobs(main: Callable[[], None]) -> None:
    """`launch`, and after several jobs of which some failed, the list of these and the highest of their exit codes."""
    launch(main)
    if _failed:
        print(f"error: {len(_failed)} job(s) failed:", *(job for job, _ in _failed), sep="\n  ", file=sys.stderr)
        sys.exit(max(code for _, code in _failed))
