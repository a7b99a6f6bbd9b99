"""The one evaluator: samples and a predictor in, one row per image out.

Validation, benchmarks, curves, constants and third-party predictions all go through `evaluate`. It is a generator:
the caller's loop owns the progress bar, the file of rows, and what becomes of them.
"""

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed

from marigold.depth.metrics import METRICS, boundary_f1, compute_metrics
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.protocol import Aligned, Protocol
from marigold.files import csv_text, write_atomically
from marigold.types import DepthSample, Prediction

BOUNDARY = "boundary_f1"  # of pairs of pixels; AbsRel hardly moves with the quality of edges
ALL_METRICS = (*METRICS, BOUNDARY)

Predict = Callable[[DepthSample], Prediction]
"""A sample, as the protocol shows it -> its Prediction, a batch of 1."""
OnError = Literal["raise", "report"]


@dataclass(frozen=True)
class Row:
    """The scores of one image; `error` says why there are none (only with `on_error="report"`)."""

    name: str
    metrics: dict[str, float]
    error: str | None = None


def evaluate(
    predict: Predict,
    samples: Sequence[DepthSample],
    protocol: Protocol,
    *,
    metrics: Sequence[str] = ALL_METRICS,
    indices: Iterable[int] | None = None,
    on_error: OnError = "raise",
) -> Iterator[Row]:
    """One row per sample, in the order of `indices`, or of all samples; each as soon as it is known.

    Raises EvaluationError naming the image; with `on_error="report"` such an image becomes a row with its
    `error`, and the others are still evaluated.
    """
    unknown = sorted(set(metrics) - set(ALL_METRICS))
    if unknown:
        raise EvaluationError(f"unknown metric(s) {', '.join(unknown)}; known: {', '.join(ALL_METRICS)}")
    for index in range(len(samples)) if indices is None else indices:
        try:
            # Reading is inside: a damaged file is an image that failed, not the end of the others.
            sample = protocol.shown(samples[index])
            yield score(align(predict, sample, protocol), sample.name, metrics)
        except (ValueError, RuntimeError, OSError) as error:
            if on_error == "raise":
                raise
            names = getattr(samples, "names", {index: f"sample {index}"})
            yield Row(names[index], {}, str(error).splitlines()[0])


@torch.inference_mode()
def align(predict: Predict, sample: DepthSample, protocol: Protocol) -> Aligned:
    """Predict one sample, as the protocol shows it, and align the prediction to metres; errors name the sample."""
    try:
        return protocol.align(predict(sample), sample)
    except ValueError as error:
        raise EvaluationError(f"{sample.name}: {error}") from error


@torch.inference_mode()
def score(aligned: Aligned, name: str, metrics: Sequence[str]) -> Row:
    """The metrics of one image, and as METHOD.METRIC those of its `others`.

    Raises EvaluationError naming image and metric for a value that is not finite.
    """
    per_pixel = [metric for metric in metrics if metric != BOUNDARY]
    scores = {}
    for prefix, depth in {"": aligned.depth, **{f"{key}.": one for key, one in aligned.others.items()}}.items():
        values = compute_metrics(depth, aligned.target, aligned.valid, per_pixel)
        if BOUNDARY in metrics:
            values[BOUNDARY] = boundary_f1(depth, aligned.target, aligned.valid)
        scores.update({prefix + metric: float(values[metric]) for metric in metrics})
    # One NaN would make a NaN of the mean over all images.
    for metric, value in scores.items():
        if not math.isfinite(value):
            raise EvaluationError(f"{name}: {metric} is {value}")
    return Row(name, scores)


def share(count: int) -> range:
    """The indices that are this process's: r, r + w, ... for process r of w."""
    if not torch.distributed.is_initialized():
        return range(count)
    # Nothing is padded to equal parts, as distributed samplers do: a doubled image would count twice.
    return range(torch.distributed.get_rank(), count, torch.distributed.get_world_size())


def gather_rows(mine: Sequence[Row], expected: int) -> list[Row]:
    """The rows of all processes, sorted by name, the same on every process; collective.

    Raises EvaluationError unless there are exactly `expected` of them, each image once: a prediction that
    was silently skipped, or a sample that two processes evaluated, would bias the mean.
    """
    parts = [list(mine)]
    if torch.distributed.is_initialized():
        parts *= torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, list(mine))
    # By name, so that files are the same to the byte for every number of processes.
    rows = sorted(itertools.chain(*parts), key=lambda row: row.name)
    twice = sorted({a.name for a, b in itertools.pairwise(rows) if a.name == b.name})
    if twice:
        raise EvaluationError(f"{len(twice)} image(s) were evaluated more than once, first {twice[0]}")
    if len(rows) != expected:
        raise EvaluationError(f"{len(rows)} images were evaluated, the data set lists {expected}")
    return rows


@dataclass(frozen=True)
class Score:
    """Mean of a metric over images and seeds.

    `std_over_images`: standard deviation of the scores of images; `std_over_seeds`: sample standard deviation of the
    mean over seeds, None for one seed.
    """

    mean: float
    std_over_images: float
    std_over_seeds: float | None


@dataclass(frozen=True)
class Group:
    """Some images, those that failed left out, and the score of each metric on them."""

    count: int
    metrics: dict[str, Score]


@dataclass(frozen=True)
class Summary(Group):
    """All images, and each group of them."""

    groups: dict[str, Group]


def summarise(*seeds: Sequence[Row], groups: Mapping[str, str] | None = None) -> Summary:
    """The one place that averages: over the images of each seed, then over the seeds; also per group.

    `groups` maps a label to a part of the sample's name; one without an image is left out, as a limited evaluation
    may hold none of them. Raises EvaluationError when no row is left.
    """
    good = [[row for row in rows if row.error is None] for rows in seeds]
    if not all(good):
        raise EvaluationError(f"none of {len(seeds[0])} image(s) could be evaluated")
    parts = {
        label: [[row for row in rows if part in row.name] for rows in good]
        for label, part in sorted((groups or {}).items())
    }
    return Summary(**vars(_group(good)), groups={label: _group(part) for label, part in parts.items() if all(part)})


def _group(seeds: Sequence[Sequence[Row]]) -> Group:
    metrics = {name: _score([[row.metrics[name] for row in rows] for rows in seeds]) for name in seeds[0][0].metrics}
    return Group(min(map(len, seeds)), metrics)  # of the seed with the most failures


def _score(seeds: Sequence[Sequence[float]]) -> Score:
    # fsum is exact, so the mean depends neither on the order nor on the number of processes.
    means = [math.fsum(values) / len(values) for values in seeds]
    spreads = [_deviation(values, mean, len(values)) for values, mean in zip(seeds, means, strict=True)]
    mean = math.fsum(means) / len(means)
    # n over images, which are all there are; n - 1 over seeds, which are a sample.
    over_seeds = _deviation(means, mean, len(means) - 1) if len(means) > 1 else None
    return Score(mean, math.fsum(spreads) / len(spreads), over_seeds)


def _deviation(values: Sequence[float], mean: float, count: int) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / count)


Done = dict[tuple[int, str], Row]
"""(seed, image name) -> row."""


class RowStore:
    """Appends rows to `rows/<fingerprint>-<rank>.jsonl` under a folder, one file per process.

    Floats go through their shortest exact representation, so a row that is read back is the row that was
    written, to the last bit. Rows with an error are not kept: the next run tries these images again.
    """

    def __init__(self, folder: Path, fingerprint: str, rank: int) -> None:
        self.folder = folder / "rows"
        self.fingerprint = fingerprint
        self.path = self.folder / f"{fingerprint[:16]}-{rank}.jsonl"

    def load(self) -> Done:
        """What all processes of earlier runs with this fingerprint have done.

        A line that a killed process left half-written is skipped; its image is evaluated again.
        """
        done: Done = {}
        for path in sorted(self.folder.glob(f"{self.fingerprint[:16]}-*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    seed, name, metrics = json.loads(line)
                except ValueError:
                    continue
                done[seed, name] = Row(name, metrics)
        return done

    def append(self, seed: int, row: Row) -> None:
        """Write one row; it survives the process being killed right after."""
        if row.error is not None:
            return
        # Made with the first row: a run that fails before it leaves no folder behind.
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            # A half-written last line must not swallow this one.
            size = file.seek(0, 2)
            file.seek(max(size - 1, 0))
            if file.read(1) not in (b"", b"\n"):
                file.write(b"\n")
            file.write(json.dumps([seed, row.name, row.metrics], allow_nan=False).encode() + b"\n")


def write_csv(path: Path, rows: Mapping[int, Sequence[Row]]) -> None:
    """One line per seed and image: seed, name, the metrics in full precision, and the error if there was one."""
    # A failed image has no metrics to name the columns with.
    metrics = next((list(row.metrics) for part in rows.values() for row in part if row.error is None), [])
    lines = [
        [seed, row.name, *(row.metrics.get(metric, "") for metric in metrics), row.error or ""]
        for seed, part in rows.items()
        for row in part
    ]
    write_atomically(path, csv_text([["seed", "name", *metrics, "error"], *lines]))
