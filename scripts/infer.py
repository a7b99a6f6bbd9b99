"""Predict the depth of pictures: see configs/infer.yaml for every key.

python scripts/infer.py input=photos output=depth checkpoint=DIR
accelerate launch --num_processes 2 scripts/infer.py input=photos output=depth checkpoint=DIR
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import hydra
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from marigold.config import ConfigError, errors_for_people, launch, to_dataclass
from marigold.depth.point_cloud import assumed_depth, unproject, write_ply
from marigold.model.pipeline import MarigoldDepth
from marigold.pictures import find_pictures, read_picture, write_grey16, write_rgb
from marigold.types import Prediction
from marigold.visualization import colour

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Save:
    """Which files are written for a picture."""

    npy: bool
    png: bool
    colour: bool
    uncertainty: bool
    point_cloud: bool


@dataclass(frozen=True)
class Sampler:
    """How the model is sampled; None leaves the choice to the checkpoint, and the batch size to the memory."""

    steps: int | None
    ensemble_size: int
    ensemble_method: str
    reduction: str
    processing_resolution: int | None
    batch_size: int | None


@dataclass(frozen=True)
class PointCloud:
    """The camera and the distances that are assumed."""

    field_of_view: float
    near: float
    far: float


@dataclass(frozen=True)
class InferConfig:
    """Everything in configs/infer.yaml."""

    input: str
    output: str
    checkpoint: str
    revision: str | None
    save: Save
    overwrite: bool
    sampler: Sampler
    seed: int
    point_cloud: PointCloud
    precision: str
    device: str | None

    def __post_init__(self) -> None:
        """Refuse what could only fail after the first picture; raises ConfigError."""
        if self.precision not in DTYPES:
            raise ConfigError(f"precision: expected one of {', '.join(DTYPES)}, got {self.precision!r}")
        if not any(asdict(self.save).values()):
            raise ConfigError("save: every kind of file is switched off")
        if self.save.uncertainty and self.sampler.ensemble_size < 2:
            raise ConfigError("save.uncertainty: needs sampler.ensemble_size of 2 or more")


@dataclass(frozen=True)
class Job:
    """One picture, and the files to write for it by kind."""

    picture: Path
    files: dict[str, Path]

    def done(self) -> bool:
        """Whether every file is there; a file gets its name only when it is complete."""
        return all(path.exists() for path in self.files.values())


def plan(settings: InferConfig) -> list[Job]:
    """All pictures with the files that come of them."""
    output = Path(settings.output)
    # A second run over a folder that holds its own output must not take that for input.
    pictures = {
        picture: place
        for picture, place in find_pictures(settings.input).items()
        if not picture.resolve().is_relative_to(output.resolve())
    }
    kinds = {
        "npy": ("depth_npy", ".npy"),
        "png": ("depth_png", ".png"),
        "colour": ("depth_colour", ".png"),
        "uncertainty": ("uncertainty_npy", ".npy"),
        "point_cloud": ("point_cloud", ".ply"),
    }
    uses = Counter(place.with_suffix("") for place in pictures.values())
    jobs = []
    for picture, place in pictures.items():
        # a.jpg and a.png in one folder keep their endings, or one would overwrite the other.
        name = place if uses[place.with_suffix("")] > 1 else place.with_suffix("")
        files = {
            kind: output / folder / name.with_name(name.name + ending)
            for kind, (folder, ending) in kinds.items()
            if getattr(settings.save, kind)
        }
        jobs.append(Job(picture, files))
    return jobs


def read_ahead(jobs: Sequence[Job]) -> Iterator[tuple[Job, Future[Tensor]]]:
    """Every job with its picture, which a thread reads while the previous one is predicted."""
    with ThreadPoolExecutor(1) as reader:
        upcoming = [(job, reader.submit(read_picture, job.picture)) for job in jobs[:1]]
        for following in [*jobs[1:], None]:
            current = upcoming.pop()
            if following is not None:
                upcoming.append((following, reader.submit(read_picture, following.picture)))
            yield current


def write(job: Job, image: Tensor, prediction: Prediction, assumed: PointCloud) -> None:
    """Write the files of one picture, each under its name only when it is complete."""
    depth = prediction.depth[0].cpu()
    # Disparity is large where it is near.
    nearness = 1 - depth if prediction.space == "affine_disparity" else depth

    def point_cloud(path: Path) -> None:
        distance = assumed_depth(depth, prediction.space, assumed.near, assumed.far)
        write_ply(path, unproject(distance, assumed.field_of_view), image.flatten(1).T)

    def uncertainty(path: Path) -> None:
        if prediction.uncertainty is not None:
            save_array(path, prediction.uncertainty[0, 0])

    writers: dict[str, Callable[[Path], None]] = {
        "npy": lambda path: save_array(path, depth[0]),
        "png": lambda path: write_grey16(path, depth),
        "colour": lambda path: write_rgb(path, colour(nearness[0].numpy(), 0, 1)),
        "uncertainty": uncertainty,
        "point_cloud": point_cloud,
    }
    for kind, path in job.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".partial-{path.name}")
        writers[kind](partial)
        os.replace(partial, path)


def save_array(path: Path, values: Tensor) -> None:
    """Write a map as float32, under exactly this name."""
    with path.open("wb") as file:
        np.save(file, values.float().cpu().numpy())


def predict_all(jobs: Sequence[Job], model: MarigoldDepth, settings: InferConfig, shown: bool) -> list[str]:
    """Predict and write every job; returns what was wrong with the pictures that could not be done."""
    failures = []
    for job, picture in tqdm(read_ahead(jobs), total=len(jobs), unit="picture", disable=not shown):
        try:
            image = picture.result()
            prediction = model(image[None], seed=settings.seed, **asdict(settings.sampler))
            write(job, image, prediction, settings.point_cloud)
        except ValueError as error:
            message = str(error)
            failures.append(message if str(job.picture) in message else f"{job.picture}: {message}")
    return failures


def run(config: DictConfig) -> bool:
    """Predict as configured; returns whether every picture was done. Raises ValueError for a person."""
    settings = to_dataclass(InferConfig, config)
    state = PartialState()
    jobs = plan(settings)
    todo = [job for job in jobs if settings.overwrite or not job.done()]
    # Not before every process has seen what is done: a quick one would shift the others' shares.
    state.wait_for_everyone()
    failures: list[str] = []
    if todo:
        model = MarigoldDepth.from_pretrained(settings.checkpoint, DTYPES[settings.precision], settings.revision)
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


@hydra.main(version_base="1.3", config_path="../configs", config_name="infer")
def main(config: DictConfig) -> None:
    with errors_for_people():
        finished = run(config)
    if not finished:
        sys.exit(1)


if __name__ == "__main__":
    launch(main)
