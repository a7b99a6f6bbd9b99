"""Fine-tune a diffusion model into a depth estimator: see configs/train.yaml and configs/exp.

python scripts/train.py +exp=quickstart
accelerate launch --num_processes 2 scripts/train.py +exp=quickstart train.micro_batch=8

The same command again continues from the newest checkpoint. Exit code 75: stopped by a signal or the time
limit, with everything saved.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import hydra
from accelerate.utils import set_seed
from omegaconf import DictConfig, OmegaConf

from assemble import load_model, mixture_dataset, recipe, training_sets, validation_sets
from marigold.config import ConfigError, errors_for_people, launch, to_dataclass
from marigold.data.errors import DataError
from marigold.evaluation import provenance
from marigold.model.backbone import Backbone, BaseModelError
from marigold.model.pipeline import DepthSettings, MarigoldDepth
from marigold.training.loop import train
from marigold.training.objective import NoiseConfig, Objective
from marigold.training.record import Export, make_card, write_provenance
from marigold.training.settings import Performance, Run, TrainConfig, accumulation_steps, make_accelerator
from marigold.training.tracking import TrackerConfig
from marigold.training.validation import METRICS, Sampling, ValidationSet, validate

STOPPED = 75  # EX_TEMPFAIL: run the same command again


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


def run(config: DictConfig) -> bool:
    """Train as configured; raises ValueError or OSError with a message for a person."""
    settings = to_dataclass(TrainConfig, config.train, "train")
    noise = to_dataclass(NoiseConfig, config.noise, "noise")
    export = to_dataclass(Export, config.export, "export")
    tracking = to_dataclass(TrackerConfig, config.tracker, "tracker")
    chosen = OmegaConf.masked_copy(config.validation, ["steps", "ensemble_size", "seed", "panel"])
    sampling = to_dataclass(Sampling, chosen, "validation")
    performance = to_dataclass(Performance, config.performance, "performance")
    accelerator = make_accelerator(config.precision, config.device)
    accumulation_steps(settings.effective_batch, settings.micro_batch, accelerator.num_processes)
    sets, judged_on, backbone = check_inputs(config)
    if settings.select_by not in {f"{part.name}/{metric}" for part in judged_on for metric in METRICS}:
        raise ConfigError(f"train.select_by: no validation set gives {settings.select_by!r}")
    # Nothing below draws from the global generators; a fixed seed makes sure that it would not matter.
    set_seed(settings.seed)
    folder = Path(config.run_dir)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(config, folder / "config.yaml", resolve=True)
        write_provenance(folder, accelerator.num_processes)
    advice = DepthSettings("depth", True, True, export.default_denoising_steps, export.default_processing_resolution)
    model = MarigoldDepth(backbone, advice).to(accelerator.device)
    performance.apply(backbone.unet)
    data = mixture_dataset(config, sets, backbone)
    vae = None if config.cache.enabled else backbone.vae
    objective = Objective(model.diffusion, noise, model.prompt, vae, settings.seed)
    plain: Any = OmegaConf.to_container(config, resolve=True)
    latest: dict[str, float] = {}

    def judge(step: int) -> dict[str, float]:
        latest.update(validate(model, judged_on, sampling, accelerator, folder / "panels" / f"step_{step:06d}.png"))
        return dict(latest)

    parts = Run(
        folder=folder,
        unet=backbone.unet,
        data=data,
        objective=objective,
        save_model=lambda path: model.save_pretrained(path, make_card(plain, export, judged_on, latest)),
        validate=judge,
        recipe=recipe(config, sets),
        make_tracker=lambda start_step: tracking.make(
            folder, config.name, {**plain, "commit": provenance.commit()}, start_step
        ),
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
