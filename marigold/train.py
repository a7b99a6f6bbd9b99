"""Fine-tune a diffusion model into a depth estimator: one run, from its settings to `final/`.

The run folder holds the settings and the state of the source (config.yaml, provenance.json, changes.diff), the metrics
(metrics.jsonl, panels/), checkpoints, and the models best/ and final/. The same command resumes from the newest
checkpoint.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
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
from marigold.files import lock_folder
from marigold.inputs import Settings, open_inputs, require_same_run, run_folder, run_identity
from marigold.model.backbone import Backbone
from marigold.model.base import licence
from marigold.model.lora import save_merged
from marigold.model.model_card import Score, model_card
from marigold.model.pipeline import DepthSettings, MarigoldDepth
from marigold.training.checkpoint import (
    Checkpoint,
    Validated,
    copy_model,
    keep_newest,
    load_latest,
    record_validation,
    save_checkpoint,
    save_trained,
    step_folder,
    verify,
    write_model,
)
from marigold.training.guards import waiting_advice
from marigold.training.loop import Trainer
from marigold.training.objective import Objective
from marigold.training.settings import accumulation_steps, make_accelerator
from marigold.training.signals import stop_signals
from marigold.training.tracking import Start, Tracker
from marigold.validation import METRICS, ValidationSet, chosen_metric, draw_panel, evaluate_on, lists_of

logger = logging.getLogger(__name__)
PROGRESS = "loss={loss:.4f}, lr={lr:.1e}, img/s={images_per_second:.1f}, wait={data_wait_share:.0%}"


@dataclass(frozen=True)
class TrainingRun:
    """An accepted run, with everything that its steps, checkpoints and validations need."""

    settings: Settings
    folder: Path
    config: DictConfig
    model: MarigoldDepth
    trainer: Trainer
    sets: Sequence[TrainingSet]
    validation_sets: Sequence[ValidationSet]
    select_by: str | None
    validated_on: str
    depends_on: Mapping[str, Any]
    accelerator: Accelerator
    licence: str | None  # the base's, looked up once: the base may be gone by the time of a checkpoint


@dataclass(frozen=True)
class Best:
    """The best validation so far: the metric that chose it, a hash of the lists it was measured on, its value."""

    metric: str
    lists: str
    value: float


@dataclass(frozen=True)
class Resumed:
    """Where a run starts: finished steps, the best validation so far, and whether its validation is still due."""

    step: int = 0
    best: Best | None = None
    validation_due: bool = False


def run(config: DictConfig) -> bool:
    """Train as configured; returns False if a signal or the time limit ended it early, with everything saved.

    Raises ValueError or OSError with a message for the user.
    """
    settings, folder = Settings.read(config), run_folder(config)
    accelerator = make_accelerator(config.precision, config.device)
    # Batches that do not divide are refused before anything is loaded.
    accumulation_steps(settings.train.effective_batch, settings.train.micro_batch, accelerator.num_processes)
    with lock_folder(folder) if accelerator.is_main_process else nullcontext():
        inputs = open_inputs(config, settings)
        select_by = chosen_metric(settings.train.select_by, inputs.validation_sets)
        recipe = settings.recipe
        depends_on = run_identity(config, recipe, inputs.sets, inputs.backbone, accelerator)
        checkpoint = load_latest(folder / "checkpoints")
        if checkpoint is not None:
            require_same_run(checkpoint, depends_on, folder, settings.train.steps)
        # Nothing below draws from the global generators; a fixed seed makes sure that it would not matter.
        set_seed(settings.train.seed)
        unet = inputs.backbone.unet
        model = depth_model(inputs.backbone, settings).to(accelerator.device)
        settings.performance.apply(unet)
        # Latents from the cache need no encoder, and without a term on pixels there is nothing to decode.
        vae = None if settings.cache.enabled and not recipe.pixels else inputs.backbone.vae
        objective = Objective(recipe, model.diffusion, model.prompt, vae, settings.train.seed)
        if accelerator.device.type == "cuda":  # the prompt is encoded already, and the encoder takes 1.4 GB
            inputs.backbone.text_encoder.to("cpu")  # type: ignore[arg-type]
        training_run = TrainingRun(
            settings=settings,
            folder=folder,
            config=config,
            model=model,
            trainer=Trainer(settings.train, unet, inputs.data, objective, accelerator),
            sets=inputs.sets,
            validation_sets=inputs.validation_sets,
            select_by=select_by,
            validated_on=lists_of(inputs.validation_sets, settings.validation),
            depends_on=depends_on,
            accelerator=accelerator,
            licence=licence(settings.model),
        )
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:  # the run is accepted: nothing was written before
            OmegaConf.save(config, folder / "config.yaml", resolve=True)
            provenance.write(folder, accelerator.num_processes)
        finished = train(training_run, checkpoint)
        if accelerator.is_main_process and finished:
            best = f" and {folder / 'best'} ({select_by})" if select_by else ""
            print(f"trained {settings.train.steps} steps: {folder / 'final'} (last){best}")
            print(f"to publish it: hf upload ORG/NAME {folder / 'final'}")
    return finished


def depth_model(backbone: Backbone, settings: Settings) -> MarigoldDepth:
    """The base as a depth estimator, with the recipe and the sampling defaults that its checkpoints store."""
    recipe, export = settings.recipe, settings.export
    chosen = DepthSettings(
        switches=recipe.switches,
        default_denoising_steps=1 if recipe.switches.one_pass else export.default_denoising_steps,
        default_processing_resolution=export.default_processing_resolution,
        recipe=recipe.stored(),
    )
    return MarigoldDepth(backbone, chosen)


def train(run: TrainingRun, checkpoint: Checkpoint | None) -> bool:
    """Take the steps from the checkpoint, or from the first, to the last; log, save and validate every N of them.

    Returns False if the run was stopped early.
    """
    settings, trainer, main = run.settings.train, run.trainer, run.accelerator.is_main_process
    resumed = resume(run, checkpoint)
    best = resumed.best
    facts: Any = OmegaConf.to_container(run.config, resolve=True)
    start = Start(resumed.step, not resumed.validation_due)
    tracker = None
    if main:
        tracker = Tracker(run.folder, run.settings.tracker, {**facts, "commit": provenance.commit()}, start)
    # The monotonic clock: a correction of the wall clock must not end a run.
    deadline = math.inf if settings.time_limit is None else time.monotonic() + 3600 * settings.time_limit
    warned = False
    try:
        with stop_signals() as stopped:
            if checkpoint is not None and resumed.validation_due:
                with trainer.evaluation_weights():
                    values = validate(run, resumed.step, tracker)
                    best = promote(run, checkpoint.folder, resumed.step, values, best)
            bar = tqdm(
                trainer.steps(resumed.step),
                initial=resumed.step,
                total=settings.steps,
                disable=not main,
                desc="train",
                mininterval=2,
            )
            for done in bar:
                last = done == settings.steps
                if done % settings.log_every == 0 or last:
                    metrics = trainer.take_metrics(done)
                    bar.set_postfix_str(PROGRESS.format(**metrics), refresh=False)
                    if tracker is not None:
                        tracker.log(done, metrics)
                    warned = warned or warn_of_slow_data(metrics["data_wait_share"], run)
                # Several processes must agree on when to stop, and agreeing costs a synchronisation.
                stopping = stopped() or time.monotonic() > deadline
                if run.accelerator.num_processes > 1:
                    stopping = done % settings.log_every == 0 and trainer.anywhere(stopping)
                validating = done % settings.validate_every == 0 or last
                if validating or stopping or done % settings.checkpoint_every == 0:
                    trainer.check_finite(done)
                    # Saved before it is validated: a run that is killed during the validation repeats that alone.
                    with trainer.evaluation_weights():
                        saved = save(run, done, best)
                        if validating:
                            values = validate(run, done, tracker)
                            best = promote(run, saved, done, values, best)
                if stopping and not last:
                    logger.warning("stopped after step %d; the same command resumes from there", done)
                    return False
    finally:
        if tracker is not None:
            tracker.close()
    return True


def resume(run: TrainingRun, checkpoint: Checkpoint | None) -> Resumed:
    """Load a checkpoint, if there is one."""
    if checkpoint is None:
        return Resumed()
    settings, step = run.settings.train, checkpoint.step
    run.trainer.load(checkpoint)
    logger.info("resumed from %s", checkpoint.folder)
    saved = checkpoint.metadata["best"]
    best = None if saved is None else Best(**saved)
    validated, lists = checkpoint.validation(), run.validated_on
    run.accelerator.wait_for_everyone()  # no process records a validation before all have read
    last = step == settings.steps
    due = last or step % settings.validate_every == 0
    changed = best is not None and (best.metric, best.lists) != (run.select_by, lists)
    if changed or (validated is not None and validated.lists != lists):
        logger.warning("best/ was chosen on other lists or by another metric and is chosen anew")
        return Resumed(step, None, validation_due=validated is not None or due)
    if validated is None:
        return Resumed(step, best, validation_due=due)
    # A run that was shortened to a step that it had passed still lacks its final/.
    return Resumed(step, better(run, best, validated.values), validation_due=last and not validated.final)


def save(run: TrainingRun, done: int, best: Best | None) -> Path:
    """Write the checkpoint of `done` finished steps, before it is validated; collective, returns its folder."""
    checkpoints, settings = run.folder / "checkpoints", run.settings.train
    pending = run.trainer.pending()
    if run.accelerator.is_main_process:
        saved_best = None if best is None else asdict(best)
        metadata = {"identity": run.depends_on, "best": saved_best, "pending": pending}
        # The card of a checkpoint has no metrics yet; best/ and final/ get their own.
        export: Callable[[Path], object] = partial(run.model.save_pretrained, card=make_card(run, {}))
        if run.settings.model.lora.on:
            export = partial(save_trained, run.trainer.unet)
        saved = save_checkpoint(checkpoints, done, export, run.trainer.state(), metadata)
        run.trainer.saved = str(saved)
        if settings.verify_checkpoints:
            verify(saved, run.trainer.unet)
        keep_newest(checkpoints, settings.keep_checkpoints)
    run.accelerator.wait_for_everyone()
    return step_folder(checkpoints, done)


def validate(run: TrainingRun, done: int, tracker: Tracker | None) -> dict[str, float]:
    """Evaluate the model on every validation set, log the metrics and draw the panel; collective."""
    values: dict[str, float] = {}
    for part in run.validation_sets:
        values |= evaluate_on(part, run.model, run.settings.validation)
    how = run.settings.validation
    if run.validation_sets and run.accelerator.is_main_process and how.panel:
        draw_panel(run.folder / "panels" / f"step_{done:06d}.png", run.validation_sets[0], run.model, how)
    if tracker is not None and values:
        tracker.log(done, values)
    return values


def promote(run: TrainingRun, saved: Path, done: int, values: Mapping[str, float], best: Best | None) -> Best | None:
    """Make best/ and final/ from the validated checkpoint `saved` if they are due; returns the best; collective.

    The checkpoint is marked as validated last: a run that is killed before that repeats validation and promotion.
    """
    now, last = better(run, best, values), done == run.settings.train.steps
    if run.accelerator.is_main_process:
        card = make_card(run, values)
        for name in [name for name, due in (("best", now != best), ("final", last)) if due]:
            if run.settings.model.lora.on:  # the weights in memory equal the checkpoint's
                write_model(partial(save_merged, run.model), run.folder / name, card)
            else:
                copy_model(saved, run.folder / name, card)
        record_validation(saved, Validated(dict(values), run.validated_on, last))
    run.accelerator.wait_for_everyone()
    return now


def better(run: TrainingRun, best: Best | None, values: Mapping[str, float]) -> Best | None:
    """The best validation so far, these values included; lower is better, and of equal ones the first counts."""
    if run.select_by is None or run.select_by not in values:
        return best
    value = values[run.select_by]
    if best is not None and best.value <= value:
        return best
    return Best(run.select_by, run.validated_on, value)


def make_card(run: TrainingRun, values: Mapping[str, float]) -> str:
    """The model card, with these validation metrics."""
    settings, model = run.settings, run.settings.model
    weights = {part.name: part.weight for part in run.sets}
    facts = {**asdict(settings.train), "recipe": settings.recipe.name, "weights": weights}
    return model_card(
        name=run.folder.name,
        base=model.location,
        revision=model.revision,
        licence=run.licence,
        lora=model.lora,
        data={part.name: part.licence for part in run.sets},
        switches=settings.recipe.switches,
        settings={**facts, "commit": provenance.commit()},
        scores=[
            Score(f"{part.name} validation", len(part.samples), metric, values[f"{part.name}/{metric}"])
            for part in run.validation_sets
            for metric in METRICS
            if f"{part.name}/{metric}" in values
        ],
        notes=settings.export.notes,
    )


def warn_of_slow_data(waiting: float, run: TrainingRun) -> bool:
    """Warn that data loading is the bottleneck; returns whether it is."""
    advice = waiting_advice(waiting, run.settings.train.workers, cached=run.settings.cache.enabled)
    if advice and run.accelerator.is_main_process:
        logger.warning(advice)
    return advice is not None
