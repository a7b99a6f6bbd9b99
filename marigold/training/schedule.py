"""The learning rate's factor, as a function of the step alone."""

SCHEDULES = ("exponential", "linear", "constant")


def learning_rate_factor(
    step: int,
    *,
    warmup_steps: int = 100,
    total_steps: int = 25000,
    final_ratio: float = 0.01,
    schedule: str = "exponential",
) -> float:
    """Factor of the base learning rate at `step`: linear from 0 over the warm-up, then by `schedule`, then constant.

    exponential and linear fall to `final_ratio` at `total_steps` and stay there; constant stays at 1. The defaults are
    the paper's recipe: 0 at step 0, 0.5 at 50, 1 at 100, 0.8467 at 1000, 0.01 from 25000 on. Raises ValueError for an
    unknown schedule and for numbers of steps that do not follow each other.
    """
    if not 0 <= warmup_steps < total_steps or not 0 < final_ratio <= 1 or schedule not in SCHEDULES:
        raise ValueError(
            "learning_rate_factor: needs 0 <= warmup_steps < total_steps, 0 < final_ratio <= 1 and one of "
            f"{', '.join(SCHEDULES)}; got {warmup_steps}, {total_steps}, {final_ratio}, {schedule}"
        )
    if step < warmup_steps:  # the reference's IterExponential warms up from 0, so step 0 moves nothing
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    # p = (n - N_warm) / (N - N_warm), at most 1: training may be longer than the decay.
    progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
    # exponential r^p: equal steps, equal ratios; linear 1 + (r - 1) p
    return final_ratio**progress if schedule == "exponential" else 1 + (final_ratio - 1) * progress
