"""Makes the other tests' web server and their readers of a run folder importable."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "data"), str(TESTS / "training")]
pytest.register_assert_rewrite("checks", "training_checks")  # so that a failed check shows its values
