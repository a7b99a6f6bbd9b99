"""Fine-tune a diffusion model into a depth estimator: see configs/train.yaml and configs/exp.

python scripts/train.py +exp=quickstart
accelerate launch --num_processes 2 scripts/train.py +exp=quickstart train.micro_batch=8

The same command again continues from the newest checkpoint. Exit code 75: stopped by a signal or the time
limit, with everything saved.
"""

import json
import logging
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import hydra
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from omegaconf import DictConfig, OmegaConf

from assemble import load_model, mixture_dataset, recipe, training_sets
from compose import make_protocol, make_samples
from marigold.config import ConfigError, errors_for_people, launch, to_dataclass
from marigold.data.errors import DataError
from marigold.evaluation import provenance
from marigold.model.backbone import Backbone, BaseModelError
from marigold.model.model_card import Score, model_card
from marigold.model.pipeline import DepthSettings, MarigoldDepth
from marigold.training.loop import train
from marigold.training.objective import NoiseConfig, Objective
from marigold.training.settings import Performance, Run, TrainConfig, accumulation_steps
from marigold.training.tracking import JsonLines, Trackers, Wandb
from marigold.training.validation import METRICS, Sampling, ValidationSet, validate

STOPPED = 75  # EX_TEMPFAIL: run the same command again
PRECISIONS = ("auto", "no", "bf16", "fp16")


@dataclass(frozen=True)
class Export:
    """What a checkpoint says to whoever loads it: recommended settings, and the model card's data and notes."""

    default_denoising_steps: int
    default_processing_resolution: int
    data: list[str]
    notes: str


@dataclass(frozen=True)
class TrackerConfig:
    """`configs/tracker`: wandb's mode (online, offline, disabled) and project; null is no wandb."""

    mode: str | None
    project: str | None = None


def make_accelerator(config: DictConfig) -> Accelerator:
    """Precision `auto` is bf16 autocast on a GPU that has it, float32 elsewhere."""
    if config.precision not in PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {config.precision!r}")
    cpu = config.device == "cpu"
    has_bf16 = not cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    precision = ("bf16" if has_bf16 else "no") if config.precision == "auto" else config.precision
    # Gradients are summed where they lie instead of in copies.
    parallel = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    return Accelerator(mixed_precision=precision, cpu=cpu, rng_types=[], kwargs_handlers=[parallel])


def validation_sets(config: DictConfig) -> list[ValidationSet]:
    """The sets of `validation`; raises one error that lists everything that is missing."""
    found, missing = [], []
    for name, node in config.validation.sets.items():
        view = OmegaConf.create({"protocol": config.protocol, "dataset": node})
        try:
            protocol = make_protocol(view)
            found.append(ValidationSet(name, make_samples(node, protocol, f"validation.sets.{name}"), protocol))
        except (DataError, OSError) as error:
            missing.append(f"{name}: {error}")
    if missing:
        raise DataError("validation data is missing.\n  " + "\n  ".join(missing))
    return found


def check_inputs(config: DictConfig) -> tuple[list[Any], list[ValidationSet], Backbone]:
    """Everything that a run needs, or one error that names all that is missing."""
    found: list[Any] = []
    problems = []
    for make in (training_sets, validation_sets, load_model):
        try:
            found.append(make(config))
        except (DataError, BaseModelError, OSError) as error:
            problems.append(str(error))
    if problems:
        raise DataError("cannot start:\n" + "\n".join(f"- {problem}" for problem in problems))
    return found[0], found[1], found[2]


def record_run(folder: Path, config: DictConfig, processes: int) -> None:
    """What it takes to repeat this run: resolved configuration, commit and local changes, versions."""
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml", resolve=True)
    versions = {module.__name__: module.__version__ for module in (torch, diffusers, transformers)}
    facts = {
        "commit": provenance.commit(),
        "processes": processes,
        "python": platform.python_version(),
        **versions,
        "argv": sys.argv,
    }
    (folder / "provenance.json").write_text(json.dumps(facts, indent=1))
    try:
        diff = subprocess.run(["git", "diff", "HEAD"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return  # not a git checkout: the commit is recorded as unknown
    (folder / "changes.diff").write_text(diff)


def make_card(config: DictConfig, export: Export, judged_on: list[ValidationSet], values: dict[str, float]) -> str:
    """The model card, with the figures of the newest validation."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    settings = {**plain["train"], "noise": plain["noise"], "mixture": plain["mixture"], "commit": provenance.commit()}
    scores = [
        Score(f"{part.name} validation", len(part.samples), metric, values[f"{part.name}/{metric}"])
        for part in judged_on
        for metric in METRICS
        if f"{part.name}/{metric}" in values
    ]
    return model_card(
        name=config.name,
        base=config.model.base,
        revision=config.model.revision,
        data=export.data,
        settings=settings,
        scores=scores,
        notes=export.notes,
    )


def run(config: DictConfig) -> bool:
    """Train as configured; raises ValueError or OSError with a message for a person."""
    settings = to_dataclass(TrainConfig, config.train, "train")
    noise = to_dataclass(NoiseConfig, config.noise, "noise")
    export = to_dataclass(Export, config.export, "export")
    tracking = to_dataclass(TrackerConfig, config.tracker, "tracker")
    chosen = OmegaConf.masked_copy(config.validation, ["steps", "ensemble_size", "seed", "panel"])
    sampling = to_dataclass(Sampling, chosen, "validation")
    performance = to_dataclass(Performance, config.performance, "performance")
    accelerator = make_accelerator(config)
    accumulation_steps(settings.effective_batch, settings.micro_batch, accelerator.num_processes)
    sets, judged_on, backbone = check_inputs(config)
    # Nothing below draws from the global generators; a fixed seed makes sure that it would not matter.
    set_seed(settings.seed)
    folder = Path(config.run_dir)
    if accelerator.is_main_process:
        record_run(folder, config, accelerator.num_processes)
    model = MarigoldDepth(
        backbone,
        DepthSettings("depth", True, True, export.default_denoising_steps, export.default_processing_resolution),
    ).to(accelerator.device)
    performance.apply(backbone.unet)
    data = mixture_dataset(config, sets, backbone)
    vae = None if config.cache.enabled else backbone.vae
    objective = Objective(model.diffusion, noise, model.prompt, vae, settings.seed)

    def make_tracker(start_step: int) -> Trackers:
        trackers: list[Any] = [JsonLines(folder / "metrics.jsonl", start_step)]
        if tracking.mode is not None:
            plain: Any = OmegaConf.to_container(config, resolve=True)
            facts = {**plain, "commit": provenance.commit()}
            trackers.append(
                Wandb(folder, tracking.project or "marigold", config.name, tracking.mode, facts, start_step)
            )
        return Trackers(trackers)

    latest: dict[str, float] = {}

    def judge(step: int) -> dict[str, float]:
        latest.update(validate(model, judged_on, sampling, accelerator, folder / "panels" / f"step_{step:06d}.png"))
        return dict(latest)

    def save_model(path: Path) -> None:
        model.save_pretrained(path, make_card(config, export, judged_on, latest))

    if settings.select_by not in {f"{part.name}/{metric}" for part in judged_on for metric in METRICS}:
        raise ConfigError(f"train.select_by: no validation set gives {settings.select_by!r}")
    parts = Run(
        folder=folder,
        unet=backbone.unet,
        data=data,
        objective=objective,
        save_model=save_model,
        validate=judge,
        recipe=recipe(config, sets),
        make_tracker=make_tracker,
    )
    finished = train(settings, parts, accelerator)
    if accelerator.is_main_process and finished:
        print(
            f"trained {settings.steps} steps: {folder / 'final'} (last) and {folder / 'best'} ({settings.select_by})"
        )
    accelerator.end_training()
    return finished


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def main(config: DictConfig) -> None:
    with errors_for_people():
        finished = run(config)
    if not finished:  # several experiments of one -m go on after one that is done
        sys.exit(STOPPED)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    launch(main)
