"""Draw the paper's inference ablations: AbsRel over the ensemble size, or over the denoising steps.

The output folder holds points.csv, curve.png and sweep.json. The training ablations are experiments: see configs/exp.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from marigold import provenance
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.predictors import run_name
from marigold.evaluation.report import markdown
from marigold.evaluation.rows import Row, Summary, align, gather_rows, score, share, summarise
from marigold.evaluation_set import (
    EvaluationSet,
    open_set,
    output_folder,
    protocol_for,
    read_settings,
    start_processes,
)
from marigold.files import csv_text, lock_folder, write_atomically
from marigold.identity import fingerprint
from marigold.model.pipeline import MarigoldDepth
from marigold.model.settings import Sampling
from marigold.precision import PRECISIONS
from marigold.types import DepthSample, Prediction
from marigold.visualization import curves

AXES = {"ensemble": "ensemble size", "steps": "denoising steps"}
Point = tuple[str, int]
"""The line of a curve and the value on its axis."""


@dataclass(frozen=True)
class SweepSettings:
    """The keys of configs/sweep.yaml except data set and protocol; `sampler` applies to all points."""

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

    def __post_init__(self) -> None:
        """Check settings before the first image; raises EvaluationError."""
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
    settings = read_settings(SweepSettings, config)
    state, device = start_processes(settings.device, settings.threads)
    model = MarigoldDepth.from_pretrained(settings.checkpoint, torch_dtype=PRECISIONS[settings.precision]).to(device)
    chosen = open_set(config, settings.limit, protocol_for(config, model.space))
    samples, protocol = chosen.samples, chosen.protocol
    protocol.require_space(model.space)
    # One line per timestep spacing, which matters most for few steps (Garcia et al., WACV 2025).
    lines, values = {settings.sampler.ensemble_method: model}, settings.ensemble_sizes
    if settings.curve == "steps":
        lines, values = {spacing: model.with_spacing(spacing) for spacing in settings.spacings}, settings.steps
    facts = describe(model, chosen, settings)
    # The output folder affects no result.
    digest = fingerprint({**facts, "settings": asdict(replace(settings, output=None))})
    name = f"{samples.name}-{protocol.name}-{settings.curve}-{digest[:8]}"
    folder = output_folder(settings.output, Path(config.paths.runs) / "sweep", name)
    with lock_folder(folder) if state.is_main_process else nullcontext():
        rows: dict[Point, list[Row]] = {(line, value): [] for line in lines for value in values}
        bar = tqdm(
            share(len(samples)), desc=f"{settings.curve} curve", unit="image", disable=not state.is_main_process
        )
        for index in bar:
            # Image by image, so that each is decoded once and its members are sampled once.
            sample = protocol.shown(samples[index])
            for line, sampled in lines.items():
                predictions = predict(sampled, sample, settings)
                for value in values:
                    aligned = align(lambda _, made=predictions: next(made), sample, protocol)  # type: ignore[misc]
                    rows[line, value].append(score(aligned, sample.name, settings.metrics))
        found = {point: summarise(gather_rows(part, len(samples))) for point, part in rows.items()}
        if not state.is_main_process:
            return
        axis = AXES[settings.curve]
        method = run_name(Path(settings.checkpoint))
        title = f"{method} on {samples.name}, {len(samples)} images, protocol {protocol.name}"
        write_curve(folder, found, axis, title, facts)
    cells = [(line, str(value), f"{percent(summary):.2f}") for (line, value), summary in found.items()]
    print(f"\n{markdown(('line', axis, 'AbsRel %'), cells)}\n\nwritten to {folder}: points.csv, curve.png, sweep.json")


def predict(model: MarigoldDepth, sample: DepthSample, settings: SweepSettings) -> Iterator[Prediction]:
    """The predictions of one line's points; an ensemble takes the first members of the largest one."""
    chosen, arguments = settings.sampler, settings.sampler.arguments()
    members = partial(
        model.members,
        sample.image[None],
        seed=settings.seed,
        processing_resolution=arguments["processing_resolution"],
        batch_size=arguments["batch_size"],
    )
    if settings.curve == "ensemble":
        # The noise of member k depends on (seed, k) alone, so a smaller ensemble is a prefix of a larger one.
        largest = members(steps=chosen.steps, ensemble_size=max(settings.ensemble_sizes))
        points = (largest.first(size) for size in settings.ensemble_sizes)
    else:
        # Another number of steps is another trajectory, so points share nothing.
        points = (members(steps=steps, ensemble_size=chosen.ensemble_size) for steps in settings.steps)
    for made in points:
        yield model.combine(made, method=chosen.ensemble_method, reduction=chosen.reduction)


def write_curve(
    folder: Path, found: Mapping[Point, Summary], axis: str, title: str, facts: Mapping[str, object]
) -> None:
    """Write points.csv (means and deviations over images), curve.png and, with the facts behind them, sweep.json."""
    metrics = list(next(iter(found.values())).metrics)  # the same at every point
    statistics = [f"{metric}_{part}" for metric in metrics for part in ("mean", "std")]
    table: list[list[object]] = [["line", axis.replace(" ", "_"), "images", *statistics]]
    lines: dict[str, list[tuple[int, float]]] = {}
    for (line, value), summary in found.items():
        scores = [summary.metrics[metric] for metric in metrics]
        table.append(
            [line, value, summary.count, *(x for score in scores for x in (score.mean, score.std_over_images))]
        )
        lines.setdefault(line, []).append((value, percent(summary)))
    write_atomically(folder / "points.csv", csv_text(table))
    curves(folder / "curve.png", lines, axis, "AbsRel %", title)
    write_atomically(folder / "sweep.json", json.dumps(facts, indent=1))


def percent(summary: Summary) -> float:
    """AbsRel in percent."""
    return 100 * summary.metrics["abs_rel"].mean


def describe(model: MarigoldDepth, chosen: EvaluationSet, settings: SweepSettings) -> dict[str, object]:
    """The content of sweep.json: everything that the points depend on."""
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
