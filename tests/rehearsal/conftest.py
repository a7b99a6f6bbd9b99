"""The rehearsal borrows the tests' web server and their reading of a run folder."""

import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "data"), str(TESTS / "training")]
pytest.register_assert_rewrite("checks", "training_checks")  # a failed check says which values it found
