"""The settings of a training run, checked before its first step."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from diffusers.models import UNet2DConditionModel

from marigold.precision import AUTOCAST
from marigold.training.schedule import SCHEDULES

MIXED_PRECISIONS = ("auto", *AUTOCAST)
OPTIMIZERS = ("adam", "adamw", "adam8bit")


class TrainingError(ValueError):
    """Training cannot start or continue; the message says why and what to do."""


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the loop, as `configs/train.yaml` gives them.

    `steps` counts optimiser steps of `effective_batch` samples, taken in micro-batches. The learning rate is
    `lr` times `learning_rate_factor`: `schedule` exponential or linear falls to `final_ratio` at `decay_steps`,
    constant stays after the warm-up. `optimizer` is adam, adamw, or adam8bit for bitsandbytes' 8-bit moments;
    `weight_decay` is decoupled (adamw), or added to the gradient. `max_grad_norm` null does not clip. With
    `ema_decay` a moving average of the weights is kept, validated and exported instead of the weights
    themselves; null for none. With `verify_checkpoints` each checkpoint is read back and compared with the
    weights in memory. `time_limit` is in hours, null for none. `select_by` names the validation metric (lower is
    better) that decides which checkpoint is kept as `best`; null takes AbsRel on the first validation set.
    """

    steps: int
    effective_batch: int
    micro_batch: int
    lr: float
    schedule: str
    warmup_steps: int
    decay_steps: int
    final_ratio: float
    optimizer: str
    weight_decay: float
    max_grad_norm: float | None
    ema_decay: float | None
    seed: int
    log_every: int
    checkpoint_every: int
    validate_every: int
    keep_checkpoints: int
    verify_checkpoints: bool
    select_by: str | None
    workers: int
    time_limit: float | None

    def __post_init__(self) -> None:
        """Refuse values that could only fail later; raises TrainingError naming the key."""
        least = dict.fromkeys(("steps", "log_every", "checkpoint_every", "validate_every", "keep_checkpoints"), 1)
        for key, value in {**least, "weight_decay": 0, "workers": 0}.items():
            if getattr(self, key) < value:
                raise TrainingError(f"train.{key}={getattr(self, key)}: expected at least {value}")
        for key, known in (("schedule", SCHEDULES), ("optimizer", OPTIMIZERS)):
            if getattr(self, key) not in known:
                raise TrainingError(f"train.{key}={getattr(self, key)}: expected one of {', '.join(known)}")
        if not 0 <= self.warmup_steps < self.decay_steps or not 0 < self.final_ratio <= 1:
            raise TrainingError(
                f"train: expected 0 <= warmup_steps < decay_steps and 0 < final_ratio <= 1, got {self.warmup_steps}, "
                f"{self.decay_steps}, {self.final_ratio}"
            )


@dataclass(frozen=True)
class Performance:
    """Switches that change a run's speed and memory but not its recipe: `performance` in `configs/train.yaml`.

    `tf32` lets float32 products on the GPU round to TF32. `gradient_checkpointing` recomputes activations in the
    backward pass. `channels_last` orders the U-Net's weights for tensor cores. `compile` runs torch.compile.
    """

    tf32: bool
    gradient_checkpointing: bool
    channels_last: bool
    compile: bool

    def apply(self, unet: UNet2DConditionModel) -> None:
        """Prepare `unet` in place, before the optimiser is made."""
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        # Convolutions have a switch of their own, which is on by default.
        torch.backends.cudnn.allow_tf32 = self.tf32
        if self.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if self.channels_last:
            unet.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
        if self.compile:
            unet.compile()


def make_accelerator(precision: str, device: str | None) -> Accelerator:
    """The processes of a run; `auto` is bf16 autocast on a GPU that has it, float32 elsewhere.

    Raises TrainingError for an unknown precision and for fp16 without a GPU.
    """
    if precision not in MIXED_PRECISIONS:
        raise TrainingError(f"precision: expected one of {', '.join(MIXED_PRECISIONS)}, got {precision!r}")
    cpu = device == "cpu"
    if precision == "auto":
        has_bf16 = not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if has_bf16 else "no"
    if precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise TrainingError("precision=fp16: loss scaling needs a GPU; on a CPU take precision=no or bf16")
    AcceleratorState._reset_state(reset_partial_state=True)  # the runs of one -m may differ in precision
    # Gradients are summed where they lie instead of in copies.
    parallel = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    # No rng_types: nothing draws from the global generators, so there is nothing to keep equal between processes.
    return Accelerator(mixed_precision=precision, cpu=cpu, rng_types=[], kwargs_handlers=[parallel])


def make_optimizer(config: TrainConfig, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Adam, AdamW, or bitsandbytes' Adam with 8-bit moments; raises TrainingError without that package."""
    parameters, lr, decay = list(parameters), config.lr, config.weight_decay
    # One kernel for all parameters, which other devices do not have.
    fused = parameters[0].device.type in ("cpu", "cuda")
    # beta = (0.9, 0.999) and eps = 1e-8, torch's defaults (Kingma and Ba, 2015, algorithm 1), as the reference has it.
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=lr, weight_decay=decay, fused=fused)
    # Decoupled: w <- w - lr decay w beside Adam's step (Loshchilov and Hutter, 2019, algorithm 2).
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, fused=fused)
    try:
        from bitsandbytes.optim import Adam8bit
    except ImportError as error:
        raise TrainingError("train.optimizer=adam8bit needs bitsandbytes: pip install -e '.[adam8bit]'") from error
    return Adam8bit(parameters, lr=lr, weight_decay=decay)


def accumulation_steps(effective_batch: int, micro_batch: int, world: int) -> int:
    """Micro-batches per process and optimiser step; raises TrainingError if they don't fill the batch exactly."""
    if min(effective_batch, micro_batch) < 1 or effective_batch % (micro_batch * world):
        raise TrainingError(
            f"train.effective_batch={effective_batch} is not a multiple of train.micro_batch={micro_batch} x "
            f"{world} process(es); change one of them"
        )
    return effective_batch // (micro_batch * world)
