"""Predict the depth of images and write the requested files: one run, from its settings to the report."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import gather_object
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from marigold.config import ConfigError, to_dataclass
from marigold.depth.camera import CameraSettings
from marigold.depth.metric import metric_depth
from marigold.model.guided import STEPS, check_model, guided
from marigold.model.pipeline import MarigoldDepth
from marigold.model.settings import Sampling
from marigold.point_files import Known, PointFiles
from marigold.precision import PRECISIONS
from marigold.prediction_files import IN_SPACE, KINDS, METRIC_KINDS, Distances, Job, plan, read_ahead, write
from marigold.training.recipe import named_switches
from marigold.types import Prediction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferConfig:
    """The settings of configs/infer.yaml. `save`: kind of file -> whether to write it; METRIC_KINDS need points."""

    input: str
    output: str
    checkpoint: str
    revision: str | None
    recipe: str | None
    save: dict[str, bool]
    overwrite: bool
    sampler: Sampling
    seed: int
    camera: CameraSettings
    distances: Distances
    points: PointFiles
    precision: str
    device: str | None

    def __post_init__(self) -> None:
        """Check settings before the first image; raises ConfigError."""
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if unknown := sorted(self.save.keys() - KINDS.keys()):
            raise ConfigError(f"save: unknown kinds {', '.join(unknown)}; known: {', '.join(KINDS)}")
        if self.save.get("exr") and find_spec("OpenEXR") is None:
            raise ConfigError("save.exr=true needs the package OpenEXR: pip install -e '.[exr]'")
        if not self.kinds:
            raise ConfigError("save: every kind of file is switched off")
        if self.save.get("uncertainty") and self.sampler.ensemble_size < 2:
            raise ConfigError("save.uncertainty: needs sampler.ensemble_size of 2 or more")

    @property
    def kinds(self) -> list[str]:
        """The kinds of files that are written."""
        unknown = set() if self.points else set(METRIC_KINDS)
        if self.points.chosen == "guided" and self.sampler.ensemble_size == 1:
            unknown.add("metres_uncertainty")  # it is the spread of the members
        return [kind for kind, wanted in self.save.items() if wanted and kind not in unknown]


def in_metres(
    job: Job,
    image: Tensor,
    prediction: Prediction,
    known: Known,
    model: MarigoldDepth,
    settings: InferConfig,
    shown: bool,
) -> tuple[Tensor, Tensor | None]:
    """Metric depth and its uncertainty, (1, H, W), by `points.method`; uncertainty None for one guided member."""
    method, name = settings.points.chosen, str(job.picture)
    if method != "guided":
        metric = metric_depth(prediction, known.places, known.metres, image=image, method=method, name=name)
        return metric.depth.cpu(), metric.uncertainty.cpu()
    sampler = settings.sampler
    steered = guided(
        model,
        image[None],
        known.places,
        known.metres,
        steps=sampler.steps or STEPS,
        ensemble_size=sampler.ensemble_size,
        processing_resolution=sampler.processing_resolution,
        seed=settings.seed,
        name=name,
        shown=shown,
    )
    return steered.depth[0].cpu(), None if steered.uncertainty is None else steered.uncertainty[0].cpu()


def predict_all(jobs: Sequence[Job], model: MarigoldDepth, settings: InferConfig, shown: bool) -> list[str]:
    """Predict and write every job; returns the error messages of images that failed."""
    failures = []
    for job, picture in tqdm(read_ahead(jobs), total=len(jobs), unit="image", disable=not shown):
        try:
            image = picture.result()
            height, width = image.shape[-2:]
            camera, source = settings.camera.of(job.picture, height, width)
            if IN_SPACE & job.files.keys() or settings.points.distance == "ray":
                logger.info("%s: camera %s", job.picture, source)
            known = None
            if settings.points:  # read first, so that an invalid file costs no prediction
                ray = settings.points.distance == "ray"  # which an assumed camera would not convert
                trusted = camera if ray and settings.camera.known(job.picture, width) else None
                known = settings.points.read(job, (height, width), trusted)
            prediction = model(image[None], seed=settings.seed, **settings.sampler.arguments())
            metres = in_metres(job, image, prediction, known, model, settings, shown) if known else (None, None)
            write(job, image, prediction, camera, settings.distances, *metres)
        except ValueError as error:  # of this image alone; a full disk or exhausted memory ends the run
            message = str(error)
            failures.append(message if str(job.picture) in message else f"{job.picture}: {message}")
    return failures


def run(config: DictConfig) -> bool:
    """Predict as configured; returns whether every image succeeded. Raises ValueError for invalid settings."""
    settings = to_dataclass(InferConfig, config)
    state = PartialState()
    jobs = plan(settings.input, Path(settings.output), settings.kinds)
    todo = [job for job in jobs if settings.overwrite or not job.done()]
    for job in todo if settings.points else ():
        settings.points.file_of(job)  # raises for a missing file before the first prediction
    # Only once every process has listed the finished jobs: new files would shift the shares of a slow one.
    state.wait_for_everyone()
    failures: list[str] = []
    if todo:
        switches = named_switches(settings.recipe)
        precision = PRECISIONS[settings.precision]
        model = MarigoldDepth.from_pretrained(settings.checkpoint, precision, settings.revision, switches)
        model.switches.check_sampling(settings.sampler.steps, settings.sampler.ensemble_size)
        if settings.points and settings.points.chosen == "guided":  # it steers the latents during sampling
            check_model(model)
        model.to(settings.device or state.device)
        # A prediction depends on the seed and the image alone, so the number of processes changes nothing.
        mine = todo[state.process_index :: state.num_processes]
        failures = gather_object(predict_all(mine, model, settings, state.is_main_process))
    if state.is_main_process:
        skipped = len(jobs) - len(todo)
        done = len(todo) - len(failures)
        print(f"{done} done, {skipped} skipped (done before), {len(failures)} failed: {settings.output}")
        if failures:
            print("failed:", *sorted(failures), sep="\n  ", file=sys.stderr)
    return not failures
