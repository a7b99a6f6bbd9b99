"""Predict the depth of images and write the files that were asked for: one run, from its settings to the report."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from omegaconf import DictConfig
from tqdm import tqdm

from marigold.config import ConfigError, to_dataclass
from marigold.depth.metric import metric_depth
from marigold.model.pipeline import MarigoldDepth
from marigold.model.settings import Sampling
from marigold.point_files import Points
from marigold.precision import PRECISIONS
from marigold.prediction_files import METRIC_KINDS, Job, PointCloud, plan, read_ahead, write
from marigold.training.recipe import named_switches


@dataclass(frozen=True)
class Save:
    """Which files are written for an image; those of METRIC_KINDS only with known points."""

    npy: bool
    png: bool
    colour: bool
    uncertainty: bool
    point_cloud: bool
    metres: bool
    metres_png: bool
    metres_uncertainty: bool


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
    point_cloud: PointCloud
    points: Points
    precision: str
    device: str | None

    def __post_init__(self) -> None:
        """Refuse what could only fail after the first image; raises ConfigError."""
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not self.kinds:
            raise ConfigError("save: every kind of file is switched off")
        if self.save.uncertainty and self.sampler.ensemble_size < 2:
            raise ConfigError("save.uncertainty: needs sampler.ensemble_size of 2 or more")

    @property
    def kinds(self) -> list[str]:
        """The kinds of files that are written."""
        wanted = [kind for kind, wanted in asdict(self.save).items() if wanted]
        return [kind for kind in wanted if self.points or kind not in METRIC_KINDS]


def predict_all(jobs: Sequence[Job], model: MarigoldDepth, settings: InferConfig, shown: bool) -> list[str]:
    """Predict and write every job; returns what was wrong with the images that could not be done."""
    failures = []
    for job, picture in tqdm(read_ahead(jobs), total=len(jobs), unit="image", disable=not shown):
        try:
            image = picture.result()
            known = settings.points.read(job, (image.shape[1], image.shape[2]), None) if settings.points else None
            prediction = model(image[None], seed=settings.seed, **settings.sampler.arguments())
            if known is None:
                write(job, image, prediction, settings.point_cloud)
            else:
                metric = metric_depth(
                    prediction, known.places, known.metres, method=settings.points.chosen, name=str(job.picture)
                )
                write(job, image, prediction, settings.point_cloud, metric.depth.cpu(), metric.uncertainty.cpu())
        except ValueError as error:
            message = str(error)
            failures.append(message if str(job.picture) in message else f"{job.picture}: {message}")
    return failures


def run(config: DictConfig) -> bool:
    """Predict as configured; returns whether every image was done. Raises ValueError for the user."""
    settings = to_dataclass(InferConfig, config)
    state = PartialState()
    jobs = plan(settings.input, Path(settings.output), settings.kinds)
    todo = [job for job in jobs if settings.overwrite or not job.done()]
    for job in todo if settings.points else ():
        settings.points.file_of(job)  # a missing one is found before the first image is predicted
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
