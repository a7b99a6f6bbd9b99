"""Fine-tune a diffusion model into a depth estimator: one run, from its settings to `final/`.

The run folder holds what the run is (config.yaml, provenance.json, changes.diff), what it measured (metrics.jsonl,
panels/), its checkpoints, and the models best/ and final/. The same command again resumes from the newest checkpoint.
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from marigold import provenance
from marigold.data.training_sets import TrainingSet
from marigold.evaluation import panels
from marigold.evaluation.evaluate import Predict, evaluate, gather_rows, share, summarise
from marigold.files import lock_folder
from marigold.inputs import (
    METRICS,
    Settings,
    ValidationSet,
    check_inputs,
    chosen_metric,
    lists_of,
    require_same_run,
    run_folder,
    run_identity,
)
from marigold.model.base import licence
from marigold.model.model_card import Score, model_card
from marigold.model.pipeline import DepthSettings, MarigoldDepth
from marigold.model.sampling import Sampling
from marigold.training.checkpoint import (
    Checkpoint,
    Validated,
    copy_model,
    keep_newest,
    load_latest,
    record_validation,
    save_checkpoint,
    step_folder,
    verify,
)
from marigold.training.guards import waiting_advice
from marigold.training.loop import Trainer
from marigold.training.objective import Objective
from marigold.training.settings import accumulation_steps, make_accelerator
from marigold.training.signals import stop_signals
from marigold.training.tracking import Start, Trackers

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> bool:
    """Train as configured; returns False if a signal or the time limit ended it early, with everything saved.

    Raises ValueError or OSError with a message for the user.
    """
    settings, folder = Settings.read(config), run_folder(config)
    accelerator = make_accelerator(config.precision, config.device)
    accumulation_steps(settings.train.effective_batch, settings.train.micro_batch, accelerator.num_processes)
    with lock_folder(folder) if accelerator.is_main_process else nullcontext():
        sets, validation_sets, backbone, data = check_inputs(config, settings)
        select_by = chosen_metric(settings.train.select_by, validation_sets)
        depends_on = run_identity(config, sets, backbone, accelerator)
        checkpoint = load_latest(folder / "checkpoints")
        if checkpoint is not None:
            require_same_run(checkpoint, depends_on, config.precision, folder)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:  # the run is accepted: nothing was written before
            OmegaConf.save(config, folder / "config.yaml", resolve=True)
            provenance.write(folder, accelerator.num_processes)
        # Nothing below draws from the global generators; a fixed seed makes sure that it would not matter.
        set_seed(settings.train.seed)
        export = settings.export
        advice = DepthSettings(
            "depth", True, True, export.default_denoising_steps, export.default_processing_resolution
        )
        model = MarigoldDepth(backbone, advice).to(accelerator.device)
        settings.performance.apply(backbone.unet)
        vae = None if settings.cache.enabled else backbone.vae
        objective = Objective(model.diffusion, settings.noise, model.prompt, vae, settings.train.seed)
        trainer = Trainer(settings.train, backbone.unet, data, objective, accelerator)
        finished = train(
            Run(settings, folder, config, model, trainer, sets, validation_sets, select_by, depends_on, accelerator),
            checkpoint,
        )
        if accelerator.is_main_process and finished:
            best = f" and {folder / 'best'} ({select_by})" if select_by else ""
            print(f"trained {settings.train.steps} steps: {folder / 'final'} (last){best}")
        accelerator.end_training()
    return finished


@dataclass(frozen=True)
class Run:
    """An accepted run, complete: all that its steps, checkpoints and validations need."""

    settings: Settings
    folder: Path
    config: DictConfig
    model: MarigoldDepth
    trainer: Trainer
    sets: Sequence[TrainingSet]
    validation_sets: Sequence[ValidationSet]
    select_by: str | None
    depends_on: Mapping[str, Any]
    accelerator: Accelerator


def train(run: Run, checkpoint: Checkpoint | None) -> bool:
    """The steps from the checkpoint, or from nothing, to the last, with what happens every N of them."""
    settings, trainer, main = run.settings.train, run.trainer, run.accelerator.is_main_process
    start, best, validated = resume(run, checkpoint)
    tracker = make_tracker(run, Start(start, validated)) if main else None
    deadline = math.inf if settings.time_limit is None else time.monotonic() + 3600 * settings.time_limit
    advised = False
    try:
        if checkpoint is not None and not validated:
            with trainer.exported():
                best = validate(run, checkpoint.folder, start, best, tracker)
        bar = tqdm(
            trainer.steps(start), initial=start, total=settings.steps, disable=not main, desc="train", mininterval=2
        )
        with stop_signals() as stopped:
            for done in bar:
                last = done == settings.steps
                if done % settings.log_every == 0 or last:
                    values = trainer.read_window(done)
                    bar.set_postfix(shown(values), refresh=False)
                    if tracker is not None:
                        tracker.log(done, values)
                    advised = advised or advise(values["data_wait_share"], run)
                # Several processes must agree on when to stop, and agreeing costs a synchronisation.
                stopping = stopped() or time.monotonic() > deadline
                if run.accelerator.num_processes > 1:
                    stopping = done % settings.log_every == 0 and trainer.anywhere(stopping)
                validating = done % settings.validate_every == 0 or last
                if validating or stopping or done % settings.checkpoint_every == 0:
                    trainer.check_finite(done)
                    with trainer.exported():
                        saved = save(run, done, best)
                        if validating:
                            best = validate(run, saved, done, best, tracker)
                if stopping and not last:
                    logger.warning("stopped after step %d; the same command resumes from there", done)
                    return False
    finally:
        if tracker is not None:
            tracker.close()
    return True


Best = dict[str, Any]
"""`metric`, `lists` (what it was measured on) and `value` of the best validation so far; empty before the first."""


def resume(run: Run, checkpoint: Checkpoint | None) -> tuple[int, Best, bool]:
    """Load a checkpoint; returns the steps done, the best validation so far, and whether that step's is finished."""
    if checkpoint is None:
        return 0, {}, True
    settings = run.settings.train
    run.trainer.load(checkpoint)
    logger.info("resumed from %s", checkpoint.folder)
    best: Best = checkpoint.metadata["best"]
    validated, lists = checkpoint.validation(), lists_of(run.validation_sets)
    last = checkpoint.step == settings.steps
    due = last or checkpoint.step % settings.validate_every == 0
    changed = best and (best["metric"], best["lists"]) != (run.select_by, lists)
    if changed or (validated is not None and validated.lists != lists):
        logger.warning("best/ was chosen on other lists or by another metric and is chosen anew")
        return checkpoint.step, {}, validated is None and not due
    if validated is None:
        return checkpoint.step, best, not due
    # A run that was shortened to a step that it had passed still lacks its final/.
    return checkpoint.step, better(run, best, validated.values)[0], validated.final or not last


def save(run: Run, done: int, best: Best) -> Path:
    """Write the checkpoint of `done` finished steps, before it is validated; collective, returns its folder."""
    checkpoints, settings = run.folder / "checkpoints", run.settings.train
    if run.accelerator.is_main_process:
        metadata = {"identity": run.depends_on, "best": best, "pending": run.trainer.pending()}
        export = partial(run.model.save_pretrained, card=make_card(run, {}))
        saved = save_checkpoint(checkpoints, done, export, run.trainer.state(), metadata)
        run.trainer.saved = str(saved)
        if settings.verify_checkpoints:
            verify(saved, run.trainer.unet)
        keep_newest(checkpoints, settings.keep_checkpoints)
    run.accelerator.wait_for_everyone()
    return step_folder(checkpoints, done)


def validate(run: Run, saved: Path, done: int, best: Best, tracker: Trackers | None) -> Best:
    """Evaluate the model on every validation set, then make best/ and final/ of the checkpoint `saved`; collective.

    A killed run repeats all of it: the checkpoint is marked as validated at the end.
    """
    values: dict[str, float] = {}
    for part in run.validation_sets:
        values |= evaluate_on(part, run)
    if run.validation_sets and run.accelerator.is_main_process and run.settings.validation.panel:
        draw_panel(run.folder / "panels" / f"step_{done:06d}.png", run.validation_sets[0], run)
    best, improved = better(run, best, values)
    last = done == run.settings.train.steps
    if run.accelerator.is_main_process:
        if tracker is not None and values:
            tracker.log(done, values)
        card = make_card(run, values)
        if improved:
            copy_model(saved, run.folder / "best", card)
        if last:
            copy_model(saved, run.folder / "final", card)
        record_validation(saved, Validated(values, lists_of(run.validation_sets), last))
    run.accelerator.wait_for_everyone()
    return best


def better(run: Run, best: Best, values: Mapping[str, float]) -> tuple[Best, bool]:
    """The best validation after one with these values, and whether that is it; lower is better."""
    if run.select_by is None or run.select_by not in values:
        return best, False
    value = values[run.select_by]
    if best and best["value"] <= value:
        return best, False
    return {"metric": run.select_by, "lists": lists_of(run.validation_sets), "value": value}, True


def evaluate_on(part: ValidationSet, run: Run) -> dict[str, float]:
    """`NAME/abs_rel` and `NAME/delta1`; every process takes its share of the images, and all get the same values."""
    count = len(part.samples)
    rows = evaluate(predictor(part, run), part.samples, part.protocol, metrics=METRICS, indices=share(count))
    summary = summarise(gather_rows(list(rows), count))
    return {f"{part.name}/{metric}": summary.metrics[metric].mean for metric in METRICS}


def draw_panel(path: Path, part: ValidationSet, run: Run) -> None:
    """The same evenly spaced samples every time, so that the panels of a run can be compared."""
    names = part.samples.names
    count = min(run.settings.validation.panel, len(names))
    chosen = [(index, names[index]) for index in (k * len(names) // count for k in range(count))]
    panels.draw_panel(path, chosen, predictor(part, run), part.samples, part.protocol, part.name)


def predictor(part: ValidationSet, run: Run) -> Predict:
    """The model as validation samples it."""
    how = run.settings.validation
    resolution = part.protocol.benchmark.processing_resolution
    arguments = Sampling(how.steps, how.ensemble_size, processing_resolution=resolution).arguments()
    return lambda sample: run.model(sample.image[None], seed=how.seed, **arguments)


def make_card(run: Run, values: Mapping[str, float]) -> str:
    """The model card, with these validation metrics."""
    settings, model = run.settings, run.settings.model
    weights = {part.name: part.weight for part in run.sets}
    facts = {**asdict(settings.train), "noise": asdict(settings.noise), "weights": weights}
    return model_card(
        name=run.folder.name,
        base=model.location,
        revision=model.revision,
        licence=licence(model),
        data={part.name: part.licence for part in run.sets},
        settings={**facts, "commit": provenance.commit()},
        scores=[
            Score(f"{part.name} validation", len(part.samples), metric, values[f"{part.name}/{metric}"])
            for part in run.validation_sets
            for metric in METRICS
            if f"{part.name}/{metric}" in values
        ],
        notes=settings.export.notes,
    )


def make_tracker(run: Run, start: Start) -> Trackers:
    """Where metrics go; wandb sees the whole configuration."""
    plain: Any = OmegaConf.to_container(run.config, resolve=True)
    facts = {**plain, "commit": provenance.commit()}
    return run.settings.tracker.make(run.folder, run.folder.name, facts, start)


def shown(values: Mapping[str, float]) -> dict[str, str]:
    """What the progress bar shows."""
    return {
        "loss": f"{values['loss']:.4f}",
        "lr": f"{values['lr']:.1e}",
        "img/s": f"{values['images_per_second']:.1f}",
        "wait": f"{values['data_wait_share']:.0%}",
    }


def advise(waiting: float, run: Run) -> bool:
    """Warn that data loading is the bottleneck; returns whether it is."""
    advice = waiting_advice(waiting, run.settings.train.workers, cached=run.settings.cache.enabled)
    if advice and run.accelerator.is_main_process:
        logger.warning(advice)
    return advice is not None
