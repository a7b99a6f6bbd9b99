"""The training loop: a function of the step, so that a resumed run is the run that was never disturbed."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from marigold.data.mixture import global_indices
from marigold.training.average import MovingAverage
from marigold.training.checkpoint import copy_model, keep_newest, save_checkpoint
from marigold.training.guards import check_attached, check_finite, waiting_advice
from marigold.training.resume import resume, verify
from marigold.training.schedule import learning_rate_factor
from marigold.training.settings import Run, TrainConfig, TrainingError, accumulation_steps, make_optimizer
from marigold.training.sharding import no_sync, published, shard, whole
from marigold.training.signals import stop_signals
from marigold.training.tracking import Tracker

logger = logging.getLogger(__name__)


@dataclass
class Window:
    """Losses and gradient norms since the last log entry, kept on the device so that no step waits for them."""

    losses: list[Tensor] = field(default_factory=list)
    grad_norms: list[Tensor] = field(default_factory=list)
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)


def train(config: TrainConfig, run: Run, accelerator: Accelerator) -> bool:
    """Train to `config.steps`, from the newest checkpoint in the run folder if there is one.

    Returns True when all steps are done, False when a signal or the time limit ended the run early; the state is
    saved either way. Raises TrainingError, before the first step where possible.
    """
    accumulation = accumulation_steps(config.effective_batch, config.micro_batch, accelerator.num_processes)
    sharded = config.shard and accelerator.num_processes > 1
    unet: torch.nn.Module = shard(run.unet, accelerator, config.optimizer) if sharded else run.unet
    optimizer = make_optimizer(config.optimizer, unet.parameters(), config.lr)
    average = MovingAverage(unet, config.ema_decay)
    start = resume(run.folder / "checkpoints", run.recipe, unet, optimizer, average)
    average.to(accelerator.device)
    unet.train()
    # A sharded U-Net reduces its own gradients and must not be wrapped once more.
    unet, prepared = (unet, accelerator.prepare(optimizer)) if sharded else accelerator.prepare(unet, optimizer)
    tracker = run.make_tracker(start.step) if accelerator.is_main_process else None
    loop = _Loop(config, run, accelerator, unet, prepared, accumulation, tracker, start.best, average)
    loop.window.losses = [torch.tensor(loss, device=accelerator.device) for loss in start.pending]
    try:
        return loop.go(start.step)
    finally:
        if tracker is not None:
            tracker.close()


class _Loop:
    """The state of a running loop, in named steps."""

    def __init__(
        self,
        config: TrainConfig,
        run: Run,
        accelerator: Accelerator,
        unet: torch.nn.Module,
        optimizer: Any,
        accumulation: int,
        tracker: Tracker | None,
        best: float,
        average: MovingAverage,
    ) -> None:
        self.config, self.run, self.accelerator = config, run, accelerator
        self.unet, self.optimizer, self.accumulation = unet, optimizer, accumulation
        self.tracker, self.best, self.average = tracker, best, average
        self.window = Window()
        self.saved: Path | None = None
        self.warned = False
        self.deadline = math.inf if config.time_limit is None else time.monotonic() + 3600 * config.time_limit

    def go(self, start: int) -> bool:
        config, main = self.config, self.accelerator.is_main_process
        loader = iter(self._loader(start))
        bar = tqdm(
            range(start, config.steps),
            initial=start,
            total=config.steps,
            disable=not main,
            desc="train",
            mininterval=2,
        )
        with stop_signals() as stopped:
            for step in bar:
                self._optimise(step, loader)
                if step == 0:
                    check_attached(self.window.losses, self.window.grad_norms[-1], self._any)
                done = step + 1
                last = done == config.steps
                if done % config.log_every == 0 or last:
                    bar.set_postfix(self._log(done), refresh=False)
                # Several processes must agree on when to stop, and agreeing costs a synchronisation.
                wants = stopped() or time.monotonic() > self.deadline
                if self.accelerator.num_processes > 1:
                    wants = done % config.log_every == 0 and self._any(wants)
                validating = last or done % config.validate_every == 0
                if validating or wants or done % config.checkpoint_every == 0:
                    self._check_finite(step)
                    with self.average.in_place(), published(self.unet, self.run.unet, self.accelerator.device):
                        improved = self._validate(done) if validating else False
                        self._save(done, improved)
                if wants and not last:
                    logger.warning("stopped after step %d; the same command goes on from here", done)
                    return False
        return True

    def _loader(self, start: int) -> DataLoader[Any]:
        config, accelerator = self.config, self.accelerator
        indices = global_indices(
            start, config.steps, self.accumulation, accelerator.process_index, accelerator.num_processes
        )
        # Not given to accelerate: the indices are this process's own already, and must not be sharded again.
        return DataLoader(
            self.run.data,
            batch_size=None,
            sampler=indices,
            num_workers=config.workers,
            collate_fn=_as_it_is,
            multiprocessing_context="spawn" if config.workers else None,
            persistent_workers=config.workers > 0,
            # Pinned copies travel to the GPU while it computes.
            pin_memory=accelerator.device.type == "cuda",
        )

    def _optimise(self, step: int, loader: Iterator[Any]) -> None:
        config, accelerator = self.config, self.accelerator
        factor = learning_rate_factor(
            step,
            warmup_steps=config.warmup_steps,
            total_steps=config.decay_steps,
            final_ratio=config.final_ratio,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * factor
        for k in range(self.accumulation):
            before = time.perf_counter()
            batch = next(loader)
            self.window.waited += time.perf_counter() - before
            last = k == self.accumulation - 1
            with nullcontext() if last else no_sync(self.unet, accelerator):
                with accelerator.autocast():
                    loss = self.run.objective(self.unet, batch, self._global_index(step, k))
                if not loss.requires_grad:
                    raise TrainingError("the loss is detached from the U-Net: are all of its weights frozen?")
                accelerator.backward(loss / self.accumulation)
            self.window.losses.append(loss.detach())
        limit = math.inf if config.max_grad_norm is None else config.max_grad_norm
        norm = accelerator.clip_grad_norm_(self.unet.parameters(), limit)
        assert norm is not None
        self.window.grad_norms.append(whole(norm.detach()))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update()

    def _global_index(self, step: int, k: int) -> int:
        accelerator = self.accelerator
        return (step * self.accumulation + k) * accelerator.num_processes + accelerator.process_index

    def _check_finite(self, step: int) -> None:
        check_finite(
            step,
            self.window.losses,
            self.window.grad_norms,
            self.accumulation,
            lambda step, k: self.run.data.names(self._global_index(step, k)),
            self.saved,
            self._any,
        )

    def _log(self, done: int) -> dict[str, str]:
        """Read the window's figures from the device, log them, and start a new window."""
        self._check_finite(done - 1)
        window, self.window = self.window, Window()
        losses = self.accelerator.gather(torch.stack(window.losses).float())
        seconds = time.perf_counter() - window.started
        values = {
            "loss": losses.double().mean().item(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": window.grad_norms[-1].item(),
            "images_per_second": len(window.grad_norms) * self.config.effective_batch / seconds,
            "data_wait_share": window.waited / seconds,
        }
        self._warn_of_waiting(values["data_wait_share"])
        if torch.cuda.is_available():
            values["peak_memory_gb"] = torch.cuda.max_memory_allocated() / 1e9
        if self.tracker is not None:
            self.tracker.log(done, values)
        return {
            "loss": f"{values['loss']:.4f}",
            "lr": f"{values['lr']:.1e}",
            "img/s": f"{values['images_per_second']:.1f}",
            "wait": f"{values['data_wait_share']:.0%}",
        }

    def _warn_of_waiting(self, share: float) -> None:
        """Say it once."""
        advice = waiting_advice(share, self.config.workers, cached=self.run.objective.vae is None)
        if advice and not self.warned and self.accelerator.is_main_process:
            self.warned = True
            logger.warning(advice)

    def _validate(self, done: int) -> bool:
        """Judge the model; True if it is the best so far."""
        self.run.unet.eval()
        started = time.perf_counter()
        values = self.run.validate(done)
        self.run.unet.train()
        # Validation is not training time: images/s must not depend on how often it happens.
        self.window.started += time.perf_counter() - started
        if self.tracker is not None:
            self.tracker.log(done, values)
        figure = values[self.config.select_by]
        improved = figure < self.best
        self.best = min(figure, self.best)
        return improved

    def _save(self, done: int, improved: bool) -> None:
        state = whole({"optimizer": self.optimizer.state_dict(), **self.average.state()})
        if self.accelerator.is_main_process:
            started = time.perf_counter()
            checkpoints = self.run.folder / "checkpoints"
            pending = [loss.item() for loss in self.window.losses]
            metadata = {"recipe": dict(self.run.recipe), "best": self.best, "pending": pending}
            self.saved = save_checkpoint(checkpoints, done, self.run.save_model, state, metadata)
            if self.config.verify_checkpoints:
                verify(self.saved, self.run.unet)
            keep_newest(checkpoints, self.config.keep_checkpoints)
            if improved:
                copy_model(self.saved, self.run.folder / "best")
            if done == self.config.steps:
                copy_model(self.saved, self.run.folder / "final")
            self.window.started += time.perf_counter() - started
        self.accelerator.wait_for_everyone()

    def _any(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        if self.accelerator.num_processes == 1:
            return flag
        flags = self.accelerator.gather(torch.tensor([flag], device=self.accelerator.device))
        return bool(flags.any())


def _as_it_is(batch: Any) -> Any:
    return batch
