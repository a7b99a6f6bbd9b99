"""The learning rate's factor, as a function of the step alone."""


def learning_rate_factor(
    step: int, *, warmup_steps: int = 100, total_steps: int = 25000, final_ratio: float = 0.01
) -> float:
    """Factor of the base learning rate at `step`: linear from 0 over the warm-up, then exponential, then constant.

    The exponential reaches `final_ratio` at `total_steps` and stays there. The defaults are the paper's recipe:
    0 at step 0, 0.5 at 50, 1 at 100, 0.8467 at 1000, 0.01 from 25000 on. Raises ValueError for numbers of steps
    that do not follow each other.
    """
    if not 0 <= warmup_steps < total_steps or not 0 < final_ratio <= 1:
        raise ValueError(
            "learning_rate_factor: needs 0 <= warmup_steps < total_steps and 0 < final_ratio <= 1, "
            f"got {warmup_steps}, {total_steps}, {final_ratio}"
        )
    if step < warmup_steps:
        return step / warmup_steps
    progress = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
    return final_ratio**progress
