"""The learning rate's factor against the recipe's values."""

import pytest

from marigold.training.schedule import learning_rate_factor


def test_paper_values():
    expected = {0: 0.0, 50: 0.5, 100: 1.0, 1000: 0.8467, 12500: 0.1009, 24999: 0.010002, 25000: 0.01, 30000: 0.01}
    assert {step: learning_rate_factor(step) for step in expected} == pytest.approx(expected, abs=5e-5)
    # Three points at equal distances of an exponential: the middle one is the geometric mean.
    first, middle, last = (learning_rate_factor(step) for step in (100, 5100, 10100))
    assert middle == pytest.approx((first * last) ** 0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("linear", [0.5, 1.0, 0.51, 0.02, 0.02]), ("constant", [0.5, 1.0, 1.0, 1.0, 1.0])],
)
def test_other_schedules(schedule, factors):
    settings = {"warmup_steps": 10, "total_steps": 110, "final_ratio": 0.02, "schedule": schedule}
    assert [learning_rate_factor(step, **settings) for step in (5, 10, 60, 110, 500)] == pytest.approx(factors)


@pytest.mark.parametrize("settings", [{"warmup_steps": 10, "total_steps": 10}, {"schedule": "cosine"}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="learning_rate_factor"):
        learning_rate_factor(1, **settings)
