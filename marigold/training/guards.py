"""Advice for a run that is out of memory, or waits for data."""

WAIT_LIMIT = 0.3  # share of the time that training may wait for data without a warning


def memory_advice(step: int, micro_batch: int, checkpointed: bool, saved: object) -> str:
    """Advice for a run out of memory at `step`; `checkpointed` if activations are recomputed already."""
    advice = [f"train.micro_batch={micro_batch // 2} (a run of its own)"] if micro_batch > 1 else []
    if not checkpointed:
        advice.insert(0, "performance.gradient_checkpointing=true, which resumes from that checkpoint")
    return (
        f"out of memory at step {step} with train.micro_batch={micro_batch}; last checkpoint: {saved or 'none yet'}. "
        f"Try {' or '.join(advice) or 'precision=bf16, train.optimizer=adam8bit, or a larger GPU'}"
    )


def waiting_advice(share: float, workers: int, cached: bool) -> str | None:
    """Advice for a run that waits for data for more than WAIT_LIMIT of the time; None for less."""
    if share <= WAIT_LIMIT:
        return None
    slow = f"{workers} loading processes are" if workers else "loading in the training process itself is"
    more = "" if cached else "; scripts/cache_latents.py spares it the images altogether"
    return (
        f"training waits for data {share:.0%} of the time: the {slow} too slow. "
        f"More processes (train.workers={max(2 * workers, 2)}) or a faster disk help{more}"
    )
