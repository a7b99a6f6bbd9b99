"""What a run is stopped for, or warned of, while it is running."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from marigold.training.settings import TrainingError

WAIT_LIMIT = 0.3  # share of the time that training may wait for data without a warning
AnyProcess = Callable[[bool], bool]
"""Whether a flag is up on any process."""


def check_attached(losses: Sequence[Tensor], grad_norm: Tensor, anywhere: AnyProcess) -> None:
    """Stop after the first step if no gradient reached the U-Net: nothing would ever be learnt."""
    # Without any valid pixel the loss is exactly 0 and so is its gradient: unlucky, but not detached.
    if anywhere(bool((torch.stack(list(losses)) != 0).any())) and grad_norm.item() == 0:
        raise TrainingError(
            "the gradient is zero at the first step: the loss does not depend on the U-Net's weights. "
            "Are they frozen, or was the prediction detached?"
        )


def check_finite(
    step: int,
    losses: Sequence[Tensor],
    grad_norms: Sequence[Tensor],
    accumulation: int,
    names: Callable[[int, int], Sequence[str]],
    saved: object,
    anywhere: AnyProcess,
) -> None:
    """Stop if any loss or gradient since the last check, up to `step`, is not finite.

    `names(step, k)` are the samples of this process's k-th micro-batch of a step; `saved` is the last checkpoint.
    """
    if not losses:
        return
    # All at once: looking at each value as it is made would wait for the device in every micro-batch.
    bad = ~torch.isfinite(torch.stack(list(losses)))
    bad_norm = ~torch.isfinite(torch.stack(list(grad_norms))) if grad_norms else bad[:0]
    if not anywhere(bool(bad.any() or bad_norm.any())):
        return
    steps = max(len(losses) // accumulation, 1)
    if bad.any():
        at, micro = divmod(int(bad.nonzero()[0]), accumulation)
        micros = [micro]
    else:
        # Losses of before a resume have no norms beside them.
        at = (int(bad_norm.nonzero()[0]) if bad_norm.any() else 0) + steps - len(grad_norms)
        micros = list(range(accumulation))
    where = step - steps + 1 + at
    samples = ", ".join(name for micro in micros for name in names(where, micro))
    raise TrainingError(
        f"the {'loss' if bad.any() else 'gradient'} is not finite at step {where} (samples: {samples}). "
        f"Nothing was saved after that; last good checkpoint: {saved or 'none yet'}. "
        f"A lower train.lr or precision=no may help"
    )


def memory_advice(step: int, micro_batch: int, checkpointed: bool, saved: object) -> str:
    """What helps if memory runs out in a step; `checkpointed` if activations are recomputed already."""
    advice = [] if checkpointed else ["performance.gradient_checkpointing=true resumes from that checkpoint"]
    if micro_batch > 1:
        advice.append(f"train.micro_batch={micro_batch // 2} needs about half of the activations, as a run of its own")
    return (
        f"out of memory at step {step} with train.micro_batch={micro_batch}; last checkpoint: {saved or 'none yet'}. "
        f"{'; '.join(advice) or 'Nothing is left to save: take a larger GPU, precision=bf16 or adam8bit'}"
    )


def waiting_advice(share: float, workers: int, cached: bool) -> str | None:
    """What helps if training waits for data for more than WAIT_LIMIT of the time; None if it does not."""
    if share <= WAIT_LIMIT:
        return None
    slow = f"{workers} loading processes are" if workers else "loading in the training process itself is"
    more = "" if cached else "; scripts/cache_latents.py spares it the images altogether"
    return (
        f"training waits for data {share:.0%} of the time: the {slow} too slow. "
        f"More processes (train.workers={max(2 * workers, 2)}) or a faster disk help{more}"
    )
