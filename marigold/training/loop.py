"""The training loop: an iterator of finished optimiser steps.

Every step is a function of its number, so a resumed run is the run that was never disturbed.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.models import UNet2DConditionModel
from torch import Tensor
from torch.utils.data import DataLoader

from marigold.data.mixture import MixtureDataset, global_indices
from marigold.training.average import MovingAverage
from marigold.training.checkpoint import Checkpoint, trained_weights
from marigold.training.guards import memory_advice
from marigold.training.objective import Objective
from marigold.training.schedule import learning_rate_factor
from marigold.training.settings import TrainConfig, TrainingError, accumulation_steps, make_optimizer


@dataclass
class Window:
    """Losses and gradient norms since the last log entry, kept on the device so that no step waits for them."""

    losses: list[Tensor] = field(default_factory=list)
    grad_norms: list[Tensor] = field(default_factory=list)
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)


class Trainer:
    """A U-Net in training: optimiser, moving average, and the losses that were not logged yet.

    `unet` is the bare module, whose weights validation and export read; parameters that require no gradient stay as
    they are. Raises TrainingError for batches that do not divide and for an optimiser that is not installed.
    """

    def __init__(
        self,
        config: TrainConfig,
        unet: UNet2DConditionModel,
        data: MixtureDataset[Any],
        objective: Objective,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.unet, self.data = config, unet, data
        self.objective, self.accelerator = objective, accelerator
        self.accumulation = accumulation_steps(config.effective_batch, config.micro_batch, accelerator.num_processes)
        trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        self.optimizer = make_optimizer(config, trained)
        self.average = MovingAverage(trained, config.ema_decay)
        self.window = Window()
        self.saved: str | None = None  # the last checkpoint, for messages

    def load(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint: weights, optimiser, moving average, losses that were not logged yet."""
        state = checkpoint.state()
        self.unet.load_state_dict({**self.unet.state_dict(), **trained_weights(checkpoint.folder)})
        self.average.load(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        mine = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        pending = checkpoint.metadata["pending"][mine]
        self.window.losses = [torch.tensor(loss, device=self.accelerator.device) for loss in pending]
        self.saved = str(checkpoint.folder)

    def state(self) -> dict[str, Any]:
        """The state that `load` needs beside the model folder, read while the moving average is in place."""
        state = {"optimizer": self.optimizer.state_dict(), **self.average.state()}
        if self.accelerator.scaler is not None:
            state["scaler"] = self.accelerator.scaler.state_dict()
        return state

    def pending(self) -> list[float]:
        """The losses since the last log entry of all processes, by global micro-batch; collective."""
        parts = gather_object([[loss.item() for loss in self.window.losses]])
        return [loss for together in zip(*parts, strict=True) for loss in together]

    def steps(self, start: int) -> Iterator[int]:
        """Take the optimiser steps from `start` on; yields the number of steps that are finished.

        Raises TrainingError when the loss does not reach the weights, and when memory runs out.
        """
        self.average.to(self.accelerator.device)
        self.unet.train()
        module, self.optimizer = self.accelerator.prepare(self.unet, self.optimizer)
        loader = iter(self._loader(start))
        self.window.started = time.perf_counter()
        for step in range(start, self.config.steps):
            try:
                self._optimise(module, step, loader)
            except torch.OutOfMemoryError as error:
                checkpointed = self.unet.is_gradient_checkpointing
                raise TrainingError(memory_advice(step, self.config.micro_batch, checkpointed, self.saved)) from error
            if step == 0:
                self._check_attached()
            yield step + 1

    def _loader(self, start: int) -> DataLoader[Any]:
        config, accelerator = self.config, self.accelerator
        indices = global_indices(
            start, config.steps, self.accumulation, accelerator.process_index, accelerator.num_processes
        )
        # Not given to accelerate: the indices are this process's own already, and must not be shared out again.
        return DataLoader(
            self.data,
            batch_size=None,
            sampler=indices,
            num_workers=config.workers,
            collate_fn=whole_batch,
            # A fork would inherit the locks of threads that it does not have, and a CUDA context that it cannot use.
            multiprocessing_context="spawn" if config.workers else None,
            persistent_workers=config.workers > 0,
            # Pinned copies travel to the GPU while it computes.
            pin_memory=accelerator.device.type == "cuda",
        )

    def _optimise(self, module: torch.nn.Module, step: int, loader: Iterator[Any]) -> None:
        config, accelerator = self.config, self.accelerator
        factor = learning_rate_factor(
            step,
            warmup_steps=config.warmup_steps,
            total_steps=config.decay_steps,
            final_ratio=config.final_ratio,
            schedule=config.schedule,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        for k in range(self.accumulation):
            before = time.perf_counter()
            batch = next(loader)
            self.window.waited += time.perf_counter() - before
            last = k == self.accumulation - 1
            # Processes exchange their gradients once a step, while the last micro-batch goes backward.
            with nullcontext() if last else accelerator.no_sync(module):
                with accelerator.autocast():
                    loss = self.objective(module, batch, self._global_index(step, k))
                if not loss.requires_grad:
                    raise TrainingError("the loss is detached from the U-Net: are all of its weights frozen?")
                accelerator.backward(loss / self.accumulation)  # the gradients add up to the mean loss's
            self.window.losses.append(loss.detach())
        # The norm is logged even where nothing is clipped: a limit of infinity leaves gradients as they are.
        limit = math.inf if config.max_grad_norm is None else config.max_grad_norm
        norm = accelerator.clip_grad_norm_(module.parameters(), limit)
        assert norm is not None
        self.window.grad_norms.append(norm.detach())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()

    def _global_index(self, step: int, k: int) -> int:
        """g = (step * accumulation + k) * world + rank: the same micro-batches for any number of processes."""
        accelerator = self.accelerator
        return (step * self.accumulation + k) * accelerator.num_processes + accelerator.process_index

    def _check_attached(self) -> None:
        """Stop after the first step if no gradient reached the U-Net: nothing would ever be learnt."""
        # Without any valid pixel the loss is exactly 0 and so is its gradient: unlucky, but not detached.
        learnable = self.anywhere(bool((torch.stack(self.window.losses) != 0).any()))
        if learnable and self.window.grad_norms[-1].item() == 0:
            raise TrainingError(
                "the gradient is zero at the first step: the loss does not depend on the U-Net's weights. "
                "Are they frozen, or was the prediction detached?"
            )

    def check_finite(self, done: int) -> None:
        """Raise TrainingError, naming step and samples, if a loss or gradient since the last entry is not finite."""
        losses, norms, accumulation = self.window.losses, self.window.grad_norms, self.accumulation
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() >= 1:
            norms = []  # in fp16 a step whose gradient overflows is not taken, and the next ones are scaled by less
        if not losses:
            return
        # All at once: looking at each value as it is made would wait for the device in every micro-batch.
        bad = ~torch.isfinite(torch.stack(losses))
        bad_norm = ~torch.isfinite(torch.stack(norms)) if norms else bad[:0]
        if not self.anywhere(bool(bad.any() or bad_norm.any())):
            return
        steps = max(len(losses) // accumulation, 1)
        if bad.any():
            at, micro = divmod(int(bad.nonzero()[0]), accumulation)
            micros = [micro]
        else:
            # Losses from before a resume have no norms beside them.
            at = (int(bad_norm.nonzero()[0]) if bad_norm.any() else 0) + steps - len(norms)
            micros = list(range(accumulation))
        step = done - steps + at
        samples = ", ".join(name for k in micros for name in self.data.names(self._global_index(step, k)))
        raise TrainingError(
            f"the {'loss' if bad.any() else 'gradient'} is not finite at step {step} (samples: {samples}). "
            f"Nothing was saved after that; last good checkpoint: {self.saved or 'none yet'}. "
            f"A lower train.lr or precision=no may help"
        )

    def take_metrics(self, done: int) -> dict[str, float]:
        """Gather the metrics since the last log entry from all processes, and start a new window; collective."""
        self.check_finite(done)
        window, self.window = self.window, Window()
        losses = self.accelerator.gather(torch.stack(window.losses).float())
        seconds = time.perf_counter() - window.started
        values = {
            "loss": losses.double().mean().item(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "images_per_second": len(window.grad_norms) * self.config.effective_batch / seconds,
            "data_wait_share": window.waited / seconds,
        }
        norm = window.grad_norms[-1].item()  # of a step of fp16 that was not taken: infinite, which JSON does not have
        if math.isfinite(norm):
            values["grad_norm"] = norm
        if self.accelerator.scaler is not None:
            values["loss_scale"] = self.accelerator.scaler.get_scale()
        if torch.cuda.is_available():
            values["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        return values

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """Within this context the U-Net is in evaluation mode and holds the moving average, if there is one.

        Saving and validation are not training time: images per second must not depend on how often they happen.
        """
        started = time.perf_counter()
        self.unet.eval()
        with self.average.in_place():
            yield
        self.unet.train()
        self.window.started += time.perf_counter() - started

    def anywhere(self, flag: bool) -> bool:
        """Whether the flag is up on any process; collective."""
        if self.accelerator.num_processes == 1:
            return flag
        flags = self.accelerator.gather(torch.tensor([flag], device=self.accelerator.device))
        return bool(flags.any())


def whole_batch(batch: Any) -> Any:
    """The data set gives whole micro-batches: nothing is left to collate."""
    return batch
