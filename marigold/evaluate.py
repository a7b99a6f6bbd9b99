"""Evaluate a checkpoint, a function or stored predictions on a data set: one evaluation, from settings to table.

The output folder holds results.json, per_image.csv, panel.png, and the finished rows in rows/, from which the same
command resumes.
"""

import statistics
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from marigold import provenance
from marigold.evaluation import predictors
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.panels import draw_panel, worst_and_median
from marigold.evaluation.predictors import Predictor
from marigold.evaluation.report import metrics_table, single_table
from marigold.evaluation.result import Facts, Result, Split, make_result
from marigold.evaluation.rows import OnError, Row, RowStore, evaluate, gather_rows, share, write_csv
from marigold.evaluation.sparse import DrawnPoints
from marigold.evaluation_set import (
    EvaluationSet,
    open_set,
    output_folder,
    protocol_for,
    read_settings,
    start_processes,
)
from marigold.files import lock_folder
from marigold.identity import fingerprint
from marigold.model.settings import Sampling
from marigold.precision import PRECISIONS


@dataclass(frozen=True)
class Panel:
    """Number of images in panel.png: the worst, and those around the median."""

    worst: int
    median: int


@dataclass(frozen=True)
class EvalSettings:
    """The keys of configs/eval.yaml except data set and protocol."""

    checkpoint: str | None
    recipe: str | None
    predictor: str | None
    predictions: str | None
    space: str | None
    prediction_unit: float
    sampler: Sampling
    precision: str
    seed: int
    seeds: int
    limit: int | None
    on_error: str
    metrics: list[str]
    points: DrawnPoints
    panel: Panel
    output: str | None
    device: str | None
    threads: int

    def __post_init__(self) -> None:
        """Check settings before the first image; raises EvaluationError."""
        chosen = [key for key in ("checkpoint", "predictor", "predictions") if getattr(self, key)]
        if len(chosen) != 1:
            raise EvaluationError(
                f"give exactly one of checkpoint=DIR, predictor=MODULE:FUNCTION and predictions=DIR; "
                f"got {', '.join(chosen) or 'none'}"
            )
        for key, allowed in (("precision", tuple(PRECISIONS)), ("on_error", ("raise", "report"))):
            if getattr(self, key) not in allowed:
                raise EvaluationError(f"{key}={getattr(self, key)}: expected one of {', '.join(allowed)}")
        missing = {"abs_rel", "delta1"} - set(self.metrics)
        if missing:
            raise EvaluationError(f"metrics={self.metrics}: the tables need {', '.join(sorted(missing))} too")
        for key in ("seeds", "threads"):
            if getattr(self, key) < 1:
                raise EvaluationError(f"{key}={getattr(self, key)}: expected at least 1")

    def refuse_unused(self, kind: str, keys: Sequence[str]) -> None:
        """Raises EvaluationError if one of `keys` is set although this kind of predictor ignores it."""
        unused = {"precision": "float32", "space": None, "prediction_unit": 1.0, "recipe": None}
        for key in keys:
            if getattr(self, key) != unused[key]:
                raise EvaluationError(f"{key}={getattr(self, key)} has no effect on {kind}; leave it out")

    @property
    def all_seeds(self) -> range:
        """`seeds` consecutive seeds from `seed`."""
        return range(self.seed, self.seed + self.seeds)


def run(config: DictConfig) -> bool:
    """Evaluate as configured; returns False if some image failed, with `on_error=report`.

    Raises ValueError or OSError with a message for the user.
    """
    settings = read_settings(EvalSettings, config)
    state, device = start_processes(settings.device, settings.threads)
    predictor = make_predictor(settings, device)
    points = settings.points if settings.points.count else None
    # Known points give metric depth in any space, so the protocol only chooses pixels and clip.
    node = protocol_for(config, None if points else predictor.space)
    chosen = open_set(config, settings.limit, node, points)
    samples, protocol = chosen.samples, chosen.protocol
    predictor.require_protocol(protocol)
    facts = describe(predictor, chosen, settings, device)
    folder = output_folder(settings.output, Path(config.paths.runs) / "eval", default_name(facts, settings.all_seeds))
    with lock_folder(folder) if state.is_main_process else nullcontext():
        store = RowStore(folder, facts.fingerprint, state.process_index)
        done = store.load()
        state.wait_for_everyone()  # all have read before any writes, and the main process holds the lock
        rows: dict[int, list[Row]] = {}
        names, mine = samples.names, share(len(samples))
        on_error: OnError = "report" if settings.on_error == "report" else "raise"
        # The store has rows of the same fingerprint only, so its seeds and names need no second evaluation.
        for seed in settings.all_seeds:
            left = [index for index in mine if (seed, names[index]) not in done]
            found = [done[seed, names[index]] for index in mine if (seed, names[index]) in done]
            predict = predictor.at_seed(seed)
            bar = tqdm(
                evaluate(predict, samples, protocol, metrics=settings.metrics, indices=left, on_error=on_error),
                total=len(left),
                desc=f"{samples.name}, seed {seed}",
                unit="image",
                disable=not state.is_main_process,
                mininterval=0.5,
            )
            for row in bar:
                store.append(seed, row)
                found.append(row)
                bar.set_postfix_str(mean_abs_rel(found), refresh=False)
            rows[seed] = gather_rows(found, len(samples))
        # Every process has all rows now, so that all return the same exit code.
        result = make_result(facts, rows, len(samples), protocol.benchmark.groups)
        if state.is_main_process:
            write_csv(folder / "per_image.csv", rows)
            result.to_json(folder / "results.json")
            drawn = redraw_panel(folder / "panel.png", rows[settings.seed], predictor, chosen, settings)
            show(result, folder, drawn)
    return not result.failures


def redraw_panel(
    path: Path, rows: Sequence[Row], predictor: Predictor, chosen: EvaluationSet, settings: EvalSettings
) -> bool:
    """Draw the worst images of the first seed and those around the median; returns whether there are any."""
    # So that no earlier panel remains beside these results.
    path.unlink(missing_ok=True)
    samples = chosen.samples
    lines = [
        (samples.names.index(row.name), f"{kind}: {row.name}  AbsRel {row.metrics['abs_rel']:.4f}")
        for kind, row in worst_and_median(rows, settings.panel.worst, settings.panel.median)
    ]
    if lines:
        draw_panel(path, lines, predictor.at_seed(settings.seed), samples, chosen.protocol, samples.name)
    return bool(lines)


def show(result: Result, folder: Path, panel: bool) -> None:
    """Print the tables and the output folder, and to stderr the failed images."""
    print(f"\n{metrics_table(result)}\n\n{single_table(result)}\n")
    print(f"written to {folder}: results.json, per_image.csv{', panel.png' if panel else ''}")
    for failure in result.failures:
        print(f"FAILED (seed {failure.seed}): {failure.reason}", file=sys.stderr)


def make_predictor(settings: EvalSettings, device: torch.device) -> Predictor:
    """The configured predictor; raises EvaluationError for settings that it ignores."""
    if settings.predictions:
        metric = settings.space == "metric_depth"
        settings.refuse_unused(
            f"{settings.space} predictions", ("precision", "recipe", *(() if metric else ("prediction_unit",)))
        )
        return predictors.of_files(Path(settings.predictions), settings.space, settings.prediction_unit)
    named = settings.checkpoint or settings.predictor or ""
    if settings.predictor and ":" in named and not Path(named).exists():
        settings.refuse_unused("a predictor=MODULE:FUNCTION", ("precision", "recipe", "prediction_unit"))
        return predictors.of_function(named, settings.space, device)
    settings.refuse_unused("a checkpoint", ("space", "prediction_unit"))
    return of_checkpoint(named, settings, device)


def of_checkpoint(path: str, settings: EvalSettings, device: torch.device) -> Predictor:
    """The diffusion model in the folder `path`, or of that name on the hub.

    Raises ValueError for steps, members or seeds that the model ignores.
    """
    from marigold.model.pipeline import MarigoldDepth  # diffusers takes seconds, files need none
    from marigold.training.recipe import named_switches

    sampling, precision = settings.sampler, settings.precision
    switches = named_switches(settings.recipe)
    model = MarigoldDepth.from_pretrained(path, PRECISIONS[precision], switches=switches).to(device)
    model.switches.check_sampling(sampling.steps, sampling.ensemble_size)
    # Identical rows would suggest a deviation of 0 over seeds.
    if model.switches.silent and settings.seeds > 1:
        raise EvaluationError(
            f"seeds={settings.seeds}: this model sees no noise, so all seeds are equal; leave it at 1"
        )
    arguments = sampling.arguments(model.default_steps)
    of_recipe = {"recipe": settings.recipe} if settings.recipe else {}
    folder = Path(path)
    # A folder by its content, since it may be overwritten; a model on the hub by its name.
    files = provenance.files_identity(folder) if folder.is_dir() else path
    return Predictor(
        {"name": predictors.run_name(folder), "path": path, "files": files, **of_recipe},
        model.space,
        {**arguments, "precision": precision},
        lambda seed: lambda sample: model(sample.image[None], seed=seed, **arguments),
    )


def describe(predictor: Predictor, chosen: EvaluationSet, settings: EvalSettings, device: torch.device) -> Facts:
    """Everything that the results depend on except the seed; source and torch version are in the fingerprint only."""
    samples = chosen.samples
    facts = Facts(
        dataset=samples.name,
        protocol=chosen.protocol.describe(),
        split=Split(**asdict(samples.split)),
        reader=chosen.reader,
        # None if the limit excludes no image; the reader may have a limit of its own.
        limit=len(samples) if samples.split.part else None,
        predictor={**predictor.identity, "space": predictor.space},
        sampler=predictor.sampler,
        commit=provenance.commit(),
        fingerprint="",
    )
    decisive = {key: value for key, value in asdict(facts).items() if key not in ("commit", "fingerprint")}
    program = {
        "source": provenance.source_hash(),
        "metrics": settings.metrics,
        "torch": torch.__version__,
        # Other kernels change the last bits.
        "device": device.type,
        "threads": settings.threads,
    }
    return replace(facts, fingerprint=fingerprint({**decisive, **program}))


def default_name(facts: Facts, seeds: range) -> str:
    """The name of an output folder; its hash covers everything that the results depend on."""
    name = f"{facts.dataset}-{facts.protocol['name']}-{facts.fingerprint[:8]}"
    return name if seeds == range(1) else f"{name}-seeds{seeds[0]}to{seeds[-1]}"


def mean_abs_rel(rows: Sequence[Row]) -> str:
    """The text of the progress bar."""
    values = [row.metrics["abs_rel"] for row in rows if row.error is None]
    return f"mean AbsRel {statistics.fmean(values):.4f}" if values else ""
