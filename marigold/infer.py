"""Predict the depth of images and write the files that were asked for: one run, from its settings to the report."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from omegaconf import DictConfig
from tqdm import tqdm

from marigold.config import ConfigError, to_dataclass
from marigold.depth.camera import CameraSettings
from marigold.model.pipeline import MarigoldDepth
from marigold.model.settings import Sampling
from marigold.precision import PRECISIONS
from marigold.prediction_files import IN_SPACE, Distances, Job, plan, read_ahead, write
from marigold.training.recipe import named_switches

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Save:
    """Which files are written for an image."""

    npy: bool
    png: bool
    colour: bool
    uncertainty: bool
    point_cloud: bool
    mesh: bool
    viewer: bool
    exr: bool

    def __post_init__(self) -> None:
        """Raises ConfigError for files whose extra is not installed, and when there are none to write."""
        if self.exr and find_spec("OpenEXR") is None:
            raise ConfigError("save.exr=true needs the package OpenEXR: pip install -e '.[exr]'")
        if not any(asdict(self).values()):
            raise ConfigError("save: every kind of file is switched off")


@dataclass(frozen=True)
class InferConfig:
    """Everything in configs/infer.yaml."""

    input: str
    output: str
    checkpoint: str
    revision: str | None
    recipe: str | None
    save: Save
    overwrite: bool
    sampler: Sampling
    seed: int
    camera: CameraSettings
    distances: Distances
    precision: str
    device: str | None

    def __post_init__(self) -> None:
        """Refuse what could only fail after the first image; raises ConfigError."""
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.save.uncertainty and self.sampler.ensemble_size < 2:
            raise ConfigError("save.uncertainty: needs sampler.ensemble_size of 2 or more")


def predict_all(jobs: Sequence[Job], model: MarigoldDepth, settings: InferConfig, shown: bool) -> list[str]:
    """Predict and write every job; returns what was wrong with the images that could not be done."""
    failures = []
    for job, picture in tqdm(read_ahead(jobs), total=len(jobs), unit="image", disable=not shown):
        try:
            image = picture.result()
            prediction = model(image[None], seed=settings.seed, **settings.sampler.arguments())
            camera, source = settings.camera.of(job.picture, *image.shape[-2:])
            if IN_SPACE & job.files.keys():
                logger.info("%s: camera %s", job.picture, source)
            write(job, image, prediction, camera, settings.distances)
        except ValueError as error:
            message = str(error)
            failures.append(message if str(job.picture) in message else f"{job.picture}: {message}")
    return failures


def run(config: DictConfig) -> bool:
    """Predict as configured; returns whether every image was done. Raises ValueError for the user."""
    settings = to_dataclass(InferConfig, config)
    state = PartialState()
    jobs = plan(
        settings.input, Path(settings.output), [kind for kind, wanted in asdict(settings.save).items() if wanted]
    )
    todo = [job for job in jobs if settings.overwrite or not job.done()]
    # Not before every process has seen what is done: a quick one would shift the others' shares.
    state.wait_for_everyone()
    failures: list[str] = []
    if todo:
        switches = named_switches(settings.recipe)
        precision = PRECISIONS[settings.precision]
        model = MarigoldDepth.from_pretrained(settings.checkpoint, precision, settings.revision, switches)
        model.switches.check_sampling(settings.sampler.steps, settings.sampler.ensemble_size)
        model.to(settings.device or state.device)
        mine = todo[state.process_index :: state.num_processes]
        failures = gather_object(predict_all(mine, model, settings, state.is_main_process))
    if state.is_main_process:
        skipped = len(jobs) - len(todo)
        done = len(todo) - len(failures)
        print(f"{done} done, {skipped} skipped (done before), {len(failures)} failed: {settings.output}")
        if failures:
            print("not done:", *sorted(failures), sep="\n  ", file=sys.stderr)
    return not failures
