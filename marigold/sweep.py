"""Draw the paper's inference ablations: AbsRel over the ensemble size, or over the denoising steps.

The output folder holds points.csv, curve.png and sweep.json. The training ablations are experiments: see configs/exp.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from marigold import provenance
from marigold.config import to_dataclass
from marigold.evaluation.curves import Point, write_curve
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.predictors import run_name
from marigold.evaluation.rows import Predict, Row, evaluate, gather_rows, share, summarise
from marigold.evaluation_set import EvaluationSet, Samples, open_set, output_folder, protocol_for, start_processes
from marigold.files import lock_folder
from marigold.identity import fingerprint
from marigold.model.pipeline import MarigoldDepth, Members
from marigold.model.settings import Sampling
from marigold.precision import PRECISIONS
from marigold.types import DepthSample, Prediction

AXES = {"ensemble": "ensemble size", "steps": "denoising steps"}
Key = tuple[str, int]
"""The line that a point is on, and its place on it."""


@dataclass(frozen=True)
class SweepSettings:
    """The keys of configs/sweep.yaml but for the data set and the protocol; `sampler` is what all points share."""

    curve: str
    checkpoint: str
    ensemble_sizes: list[int]
    steps: list[int]
    spacings: list[str]
    sampler: Sampling
    precision: str
    seed: int
    limit: int | None
    metrics: list[str]
    output: str | None
    device: str | None
    threads: int

    @classmethod
    def read(cls, config: DictConfig) -> "SweepSettings":
        """Raises ConfigError for an unknown key, a missing one and a value of the wrong type."""
        OmegaConf.resolve(config)
        return to_dataclass(cls, OmegaConf.masked_copy(config, [field.name for field in fields(cls)]))

    def __post_init__(self) -> None:
        """Refuse what could only fail after the first image; raises EvaluationError."""
        for key, allowed in (("curve", tuple(AXES)), ("precision", tuple(PRECISIONS))):
            if getattr(self, key) not in allowed:
                raise EvaluationError(f"{key}={getattr(self, key)}: expected one of {', '.join(allowed)}")
        if not self.metrics or self.metrics[0] != "abs_rel":
            raise EvaluationError(f"metrics={self.metrics}: abs_rel, which is drawn, has to be the first")
        for key in ("ensemble_sizes", "steps"):
            values = getattr(self, key)
            if not values or min(values) < 1 or len(set(values)) < len(values):
                raise EvaluationError(f"{key}={values}: expected different numbers from 1 on")


def run(config: DictConfig) -> None:
    """Evaluate every point and write the three files; raises ValueError or OSError with a message for the user."""
    settings = SweepSettings.read(config)
    state, device = start_processes(settings.device, settings.threads)
    model = MarigoldDepth.from_pretrained(settings.checkpoint, torch_dtype=PRECISIONS[settings.precision]).to(device)
    chosen = open_set(config, settings.limit, protocol_for(config, model.space))
    samples, protocol = chosen.samples, chosen.protocol
    protocol.require_space(model.space)
    points = (over_sizes if settings.curve == "ensemble" else over_steps)(model, settings)
    facts = describe(model, chosen, settings)
    digest = fingerprint({**facts, "settings": asdict(replace(settings, output=None))})
    name = f"{samples.name}-{protocol.name}-{settings.curve}-{digest[:8]}"
    folder = output_folder(settings.output, Path(config.paths.runs) / "sweep", name)
    with lock_folder(folder) if state.is_main_process else nullcontext():
        mine, latest = share(len(samples)), Latest(samples)
        # All points of an image before the next image: one stream of rows per point, in step.
        streams = [
            evaluate(predict, latest, protocol, metrics=settings.metrics, indices=mine) for predict in points.values()
        ]
        bar = tqdm(
            zip(*streams, strict=True),
            total=len(mine),
            desc=f"{settings.curve} curve",
            unit="image",
            disable=not state.is_main_process,
        )
        rows: dict[Key, list[Row]] = {key: [] for key in points}
        for of_image in bar:
            for key, row in zip(points, of_image, strict=True):
                rows[key].append(row)
        found = [Point(*key, summarise(gather_rows(part, len(samples)))) for key, part in rows.items()]
        if not state.is_main_process:
            return
        axis = AXES[settings.curve]
        method = run_name(Path(settings.checkpoint))
        title = f"{method} on {samples.name}, {len(samples)} images, protocol {protocol.name}"
        write_curve(folder, found, axis, title, facts)
    print(f"\n{'line':12s}{axis:>18s}{'AbsRel %':>10s}")
    for point in found:
        print(f"{point.line:12s}{point.value:18d}{point.percent:10.2f}")
    print(f"written to {folder}: points.csv, curve.png, sweep.json")


def over_sizes(model: MarigoldDepth, settings: SweepSettings) -> dict[Key, Predict]:
    """A predictor per ensemble size; the smaller ones take the first members of the largest one's."""
    chosen, latest = settings.sampler, dict[str, Members]()

    def members(sample: DepthSample) -> Members:
        if sample.name not in latest:
            latest.clear()
            latest[sample.name] = members_of(model, sample, settings, chosen.steps, max(settings.ensemble_sizes))
        return latest[sample.name]

    def predict(size: int, sample: DepthSample) -> Prediction:
        made = members(sample).first(size)
        return model.combine(made, method=chosen.ensemble_method, reduction=chosen.reduction)

    return {
        (chosen.ensemble_method, size): lambda sample, size=size: predict(size, sample)  # type: ignore[misc]
        for size in settings.ensemble_sizes
    }


def over_steps(model: MarigoldDepth, settings: SweepSettings) -> dict[Key, Predict]:
    """A predictor per number of denoising steps, one line per spacing of the timesteps."""
    chosen = settings.sampler
    spaced = {spacing: model.with_spacing(spacing) for spacing in settings.spacings}

    def predict(spacing: str, steps: int, sample: DepthSample) -> Prediction:
        made = members_of(spaced[spacing], sample, settings, steps, chosen.ensemble_size)
        return spaced[spacing].combine(made, method=chosen.ensemble_method, reduction=chosen.reduction)

    return {
        (spacing, steps): lambda sample, spacing=spacing, steps=steps: predict(spacing, steps, sample)  # type: ignore[misc]
        for spacing in spaced
        for steps in settings.steps
    }


def members_of(
    model: MarigoldDepth, sample: DepthSample, settings: SweepSettings, steps: int | None, size: int
) -> Members:
    """The members of a sample, which a point combines."""
    arguments = settings.sampler.arguments()
    return model.members(
        sample.image[None],
        steps=steps,
        ensemble_size=size,
        seed=settings.seed,
        processing_resolution=arguments["processing_resolution"],
        batch_size=arguments["batch_size"],
    )


class Latest(Sequence):
    """The samples of a data set, of which the latest is kept: predictors in step read each only once."""

    def __init__(self, samples: Samples) -> None:
        self.samples, self.names = samples, samples.names
        self.kept: dict[int, DepthSample] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> DepthSample:  # type: ignore[override]
        if index not in self.kept:
            self.kept = {index: self.samples[index]}
        return self.kept[index]


def describe(model: MarigoldDepth, chosen: EvaluationSet, settings: SweepSettings) -> dict[str, object]:
    """What stands in sweep.json: everything that the points depend on."""
    plain = asdict(settings)
    del plain["sampler"]
    return {
        "settings": plain,
        "sampler": settings.sampler.arguments(model.default_steps),
        "reader": chosen.reader,
        "protocol": chosen.protocol.describe(),
        "split": asdict(chosen.samples.split),
        "checkpoint_files": provenance.files_identity(Path(settings.checkpoint)),
        "commit": provenance.commit(),
    }
