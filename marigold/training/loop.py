"""The training loop: a function of the step, so that a resumed run is the run that was never disturbed."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.models import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from marigold.data.mixture import global_indices
from marigold.training.checkpoint import Checkpoint, check, copy_model, keep_newest, load_latest, save_checkpoint
from marigold.training.schedule import learning_rate_factor
from marigold.training.settings import Run, TrainConfig, TrainingError, accumulation_steps, make_optimizer
from marigold.training.signals import stop_signals
from marigold.training.tracking import Tracker

logger = logging.getLogger(__name__)
WAIT_LIMIT = 0.3  # share of the time that training may wait for data without a warning


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
    checkpoints = run.folder / "checkpoints"
    optimizer = make_optimizer(config.optimizer, run.unet.parameters(), config.lr)
    average = None
    if config.ema_decay is not None:
        average = EMAModel(run.unet.parameters(), decay=config.ema_decay, foreach=True)
    start, best, pending = _resume(checkpoints, run, optimizer, average)
    run.unet.train()
    unet, prepared = accelerator.prepare(run.unet, optimizer)
    tracker = run.make_tracker(start) if accelerator.is_main_process else None
    loop = _Loop(config, run, accelerator, unet, prepared, accumulation, tracker, best, average)
    if average is not None:
        average.to(accelerator.device)
    loop.window.losses = [torch.tensor(loss, device=accelerator.device) for loss in pending]
    try:
        return loop.go(start)
    finally:
        if tracker is not None:
            tracker.close()


def _resume(
    checkpoints: Path, run: Run, optimizer: torch.optim.Optimizer, average: EMAModel | None
) -> tuple[int, float, list[float]]:
    """Load the newest good checkpoint: the step to start with, the best figure so far, unlogged losses."""
    found: Checkpoint | None = load_latest(checkpoints)
    if found is None:
        return 0, math.inf, []
    theirs = found.metadata["recipe"]
    different = [
        f"{key}: checkpoint {theirs.get(key)!r}, this run {run.recipe.get(key)!r}"
        for key in sorted({*theirs, *run.recipe})
        if theirs.get(key) != run.recipe.get(key)
    ]
    if different:
        raise TrainingError(
            f"{found.folder} was made with other settings and is not continued. {'; '.join(different)}. "
            "Give another run_dir, or move that folder away"
        )
    state = found.state()
    if average is None:
        run.unet.load_state_dict(UNet2DConditionModel.from_pretrained(found.folder / "unet").state_dict())
    else:
        # The model folder holds the average; the weights themselves are part of the training state.
        average.load_state_dict(state["average"])
        with torch.no_grad():
            for parameter, saved in zip(run.unet.parameters(), state["weights"], strict=True):
                parameter.copy_(saved)
    optimizer.load_state_dict(state["optimizer"])
    logger.info("resumed from %s", found.folder)
    return found.step, float(found.metadata["best"]), list(found.metadata["pending"])


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
        average: EMAModel | None,
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
                    self._check_attached()
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
                    with self._averaged():
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
            with nullcontext() if last else accelerator.no_sync(self.unet):
                with accelerator.autocast():
                    loss = self.run.objective(self.unet, batch, self._global_index(step, k))
                if not loss.requires_grad:
                    raise TrainingError("the loss is detached from the U-Net: are all of its weights frozen?")
                accelerator.backward(loss / self.accumulation)
            self.window.losses.append(loss.detach())
        limit = math.inf if config.max_grad_norm is None else config.max_grad_norm
        norm = accelerator.clip_grad_norm_(self.unet.parameters(), limit)
        assert norm is not None
        self.window.grad_norms.append(norm.detach())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.step(self.run.unet.parameters())

    def _global_index(self, step: int, k: int) -> int:
        accelerator = self.accelerator
        return (step * self.accumulation + k) * accelerator.num_processes + accelerator.process_index

    def _check_attached(self) -> None:
        """Stop after the first step if no gradient reached the U-Net: nothing would ever be learnt."""
        losses, norm = torch.stack(self.window.losses), self.window.grad_norms[-1]
        # Without any valid pixel the loss is exactly 0 and so is its gradient: unlucky, but not detached.
        if self._any(bool((losses != 0).any())) and norm.item() == 0:
            raise TrainingError(
                "the gradient is zero at the first step: the loss does not depend on the U-Net's weights. "
                "Are they frozen, or was the prediction detached?"
            )

    def _check_finite(self, step: int) -> None:
        """Stop, naming the samples, if any loss or gradient since the last check is not finite."""
        if not self.window.losses:
            return
        losses, norms = torch.stack(self.window.losses), self.window.grad_norms
        bad = ~torch.isfinite(losses)
        bad_norm = ~torch.isfinite(torch.stack(norms)) if norms else bad[:0]
        if not self._any(bool(bad.any() or bad_norm.any())):
            return
        window_steps = max(len(losses) // self.accumulation, 1)
        if bad.any():
            position = int(bad.nonzero()[0])
            at, micro = divmod(position, self.accumulation)
            micros = [micro]
        else:
            at, micros = int(bad_norm.nonzero()[0]) if bad_norm.any() else 0, list(range(self.accumulation))
            at += window_steps - len(norms)
        where = step - window_steps + 1 + at
        names = [name for micro in micros for name in self.run.data.names(self._global_index(where, micro))]
        good = self.saved or "none yet"
        raise TrainingError(
            f"the {'loss' if bad.any() else 'gradient'} is not finite at step {where} (samples: {', '.join(names)}). "
            f"Nothing was saved after that; last good checkpoint: {good}. "
            f"A lower train.lr or precision=no may help"
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
        """Say once when the device waits for data for more than WAIT_LIMIT of the time, and what helps."""
        if share <= WAIT_LIMIT or self.warned or not self.accelerator.is_main_process:
            return
        self.warned = True
        workers = self.config.workers
        cached = self.run.objective.vae is None
        advice = "" if cached else "; scripts/cache_latents.py spares it the pictures altogether"
        logger.warning(
            "training waits for data %.0f %% of the time: the %s too slow. "
            "More processes (train.workers=%d) or a faster disk help%s",
            100 * share,
            f"{workers} loading processes are" if workers else "loading in the training process itself is",
            max(2 * workers, 2),
            advice,
        )

    def _validate(self, done: int) -> bool:
        """Judge the model; True if it is the best so far."""
        self.unet.eval()
        started = time.perf_counter()
        values = self.run.validate(done)
        self.unet.train()
        # Validation is not training time: images/s must not depend on how often it happens.
        self.window.started += time.perf_counter() - started
        if self.tracker is not None:
            self.tracker.log(done, values)
        figure = values[self.config.select_by]
        improved = figure < self.best
        self.best = min(figure, self.best)
        return improved

    def _save(self, done: int, improved: bool) -> None:
        if self.accelerator.is_main_process:
            started = time.perf_counter()
            checkpoints = self.run.folder / "checkpoints"
            pending = [loss.item() for loss in self.window.losses]
            metadata = {"recipe": dict(self.run.recipe), "best": self.best, "pending": pending}
            state = {"optimizer": self.optimizer.state_dict()}
            if self.average is not None:
                state |= {"average": self.average.state_dict(), "weights": self.average.temp_stored_params}
            self.saved = save_checkpoint(checkpoints, done, self.run.save_model, state, metadata)
            if self.config.verify_checkpoints:
                _verify(self.saved, self.run.unet)
            keep_newest(checkpoints, self.config.keep_checkpoints)
            if improved:
                copy_model(self.saved, self.run.folder / "best")
            if done == self.config.steps:
                copy_model(self.saved, self.run.folder / "final")
            self.window.started += time.perf_counter() - started
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the moving average in place of the weights while the model is judged and exported."""
        if self.average is None:
            yield
            return
        parameters = list(self.run.unet.parameters())
        self.average.store(parameters)
        self.average.copy_to(parameters)
        yield
        self.average.restore(parameters)

    def _any(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        if self.accelerator.num_processes == 1:
            return flag
        flags = self.accelerator.gather(torch.tensor([flag], device=self.accelerator.device))
        return bool(flags.any())


def _verify(folder: Path, unet: torch.nn.Module) -> None:
    """Raise TrainingError unless the U-Net in `folder` has the weights of `unet`, bit for bit."""
    check(folder)
    weights = unet.state_dict()
    for name, saved in UNet2DConditionModel.from_pretrained(folder / "unet").state_dict().items():
        if not torch.equal(saved, weights[name].cpu()):
            raise TrainingError(f"{folder}: {name} was not saved as it is in memory; is the disk failing?")


def _as_it_is(batch: Any) -> Any:
    return batch
