"""One job, or with -m several: all of them run, and the exit code is the worst one."""

import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import NoReturn

from marigold.config import launch

_SEVERAL = {"-m", "--multirun"}


def run_jobs(main: Callable[[], None], codes: Sequence[int]) -> NoReturn:
    """Run a script's Hydra program, which adds each job's exit code to `codes`, and exit."""
    words = sys.argv[1:]
    with tempfile.TemporaryDirectory() as scratch:
        if _SEVERAL & set(words):
            # Hydra leaves a file and folders of a -m, which nobody needs; and it takes no flag between overrides.
            rest = [word for word in words if word not in _SEVERAL]
            sys.argv[1:] = ["-m", f"hydra.sweep.dir={scratch}", *rest]
        launch(main)
    sys.exit(max(codes, default=0))
