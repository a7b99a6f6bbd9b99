"""The recipes side by side on the rendered rooms: the same samples, rate and base, several seeds, one table.

`python scripts/benchmark.py study` trains and evaluates what RUNS/study lacks and prints the table; the same command
again resumes, run by run. It needs the rooms, make data, and the extra `samples`.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from benchmarks.timing import table
from marigold.cli import launch
from marigold.config import installed
from marigold.evaluation.result import Result
from marigold.evaluation.rows import align
from marigold.evaluation_set import named_protocol, open_set
from marigold.files import new_folder, write_atomically
from marigold.model.pipeline import MarigoldDepth
from marigold.visualization import bars

encoding: Any  # a worker's lock: one run at a time encodes

STEPS, BATCH, RATE = 300, 32, 1.6e-3  # 9,600 samples; the quickstart's rate, tuned for none of the recipes
SEEDS, JOBS = (2024, 2025, 2026), 2  # runs at a time, each on one thread
AUGMENTED = "recipe.augmentation={variants:3,crop:0.6,photometric:0.8}"
PROTOCOLS = ("marigold", "disparity", "sqrt_disparity", "log")
FOLDER = Path(os.environ.get("MARIGOLD_RUNS", "runs"), "study").absolute()
HEADINGS = ("recipe", "steps x members", "AbsRel, own protocol", "AbsRel", "delta1", "boundary F1", "motorcycle")


class Row(NamedTuple):
    """A way of training: its overrides, how it is sampled (steps, members), and whether the last third of its samples
    goes to recipe=sharpen."""

    train: tuple[str, ...]
    sampled: tuple[tuple[int, int], ...] = ((1, 1),)
    sharpened: bool = False


ROWS = {
    "marigold_few_step": Row(("recipe=marigold_few_step",), ((1, 1), (1, 5))),
    "marigold": Row(("recipe=marigold",), ((1, 1), (10, 5))),
    "e2e_ft": Row(("recipe=e2e_ft",)),
    "lotus_d": Row(("recipe=lotus_d",)),
    **{
        f"one_step, {mapping}": Row(("recipe=one_step", f"recipe.mapping={mapping}"))
        for mapping in ("depth", "disparity", "sqrt_disparity", "log_depth")
    },
    "one_step, depth, augmented": Row(("recipe=one_step", "recipe.mapping=depth", AUGMENTED)),
    "one_step, depth + sharpen": Row(("recipe=one_step", "recipe.mapping=depth"), sharpened=True),
}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py study", description=__doc__)
    parser.add_argument("--report", type=Path, help="write the table as Markdown, and the plot beside it")
    options = parser.parse_args(argv)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(JOBS, spawn, start_worker, (spawn.Lock(),)) as pool:
        list(pool.map(one_run, *zip(*itertools.product(ROWS, SEEDS), strict=True)))
        pool.submit(control).result()
    measured = {
        (name, label(pair)): metrics_of([place(name, seed) for seed in SEEDS], label(pair))
        for name, row in ROWS.items()
        for pair in row.sampled
    }
    text = report(measured)
    print(text)
    if options.report:
        write_atomically(options.report, text + "\n")
        plot(measured, options.report.with_suffix(".png"))


def start_worker(lock: Any) -> None:
    """Run in every worker first: one thread, and one lock for who encodes, as caches are shared."""
    global encoding
    encoding = lock
    torch.set_num_threads(1)


def verb(name: str, *words: str) -> float:
    """Run a command of the README in this process; returns its processor time in seconds."""
    started, sys.argv = time.process_time(), [name, *words, "device=cpu"]
    try:
        launch(name)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"failed: {name} {' '.join(words)}") from end
    return time.process_time() - started


def one_run(name: str, seed: int) -> None:
    """Train and evaluate one row at one seed, unless that is done already."""
    row, folder = ROWS[name], place(name, seed)
    first = folder.with_name(f"{folder.name}_first") if row.sharpened else folder
    steps = STEPS * 2 // 3 if row.sharpened else STEPS
    train(first, steps, RATE, seed, *row.train)
    if row.sharpened:
        train(folder, STEPS - steps, RATE / 10, seed, "recipe=sharpen", f"model.base={first / 'final'}")
    for pair in row.sampled:
        output, how = folder / label(pair), [f"sampler.steps={pair[0]}", f"sampler.ensemble_size={pair[1]}"]
        how.append(f"checkpoint={folder / 'final'}")
        evaluate(output / "own", "dataset=rooms", *how)
        evaluate(output / "common", "dataset=rooms", "protocol.prefit=true", *how)
        small = ("protocol.prefit=true", "sampler.processing_resolution=128")
        evaluate(output / "motorcycle", "dataset=motorcycle", *small, *how)
        if not (speed := output / "seconds.json").is_file():
            write_atomically(speed, json.dumps(seconds_per_image(folder / "final", *pair)))


def train(folder: Path, steps: int, rate: float, seed: int, *overrides: str) -> None:
    """One run of `steps` batches, with the processor time of training in seconds.json."""
    if (folder / "seconds.json").is_file():
        return
    if folder.is_dir():  # interrupted: the time of the rest would not be the run's
        shutil.rmtree(folder)
    words = ["+exp=quickstart", *overrides, f"train.lr={rate}", f"train.seed={seed}"]
    words += [f"train.{key}={steps}" for key in ("steps", "decay_steps", "checkpoint_every", "validate_every")]
    words += [f"train.warmup_steps={steps // 15}", "train.final_ratio=0.02", f"train.effective_batch={BATCH}"]
    words += ["validation.panel=0", f"run_dir={folder}", f"cache.folder={FOLDER / 'latents'}"]
    with encoding:
        verb("cache-latents", *words)
    write_atomically(folder / "seconds.json", json.dumps(verb("train", *words)))


def evaluate(output: Path, *words: str) -> None:
    """One evaluation, unless its results are there."""
    if not (output / "results.json").is_file():
        verb("eval", *words, f"output={output}", "panel.worst=0", "panel.median=0")


def seconds_per_image(checkpoint: Path, steps: int, members: int) -> float:
    """Processor time to predict one 96x128 image, median of nine."""
    model, image, times = MarigoldDepth.from_pretrained(checkpoint), torch.rand(1, 3, 96, 128), []
    for _ in range(10):
        started = time.process_time()
        model(image, steps=steps, ensemble_size=members)
        times.append(time.process_time() - started)
    return statistics.median(times[1:])


def control() -> None:
    """One model's depth in metres, fitted in each of the four quantities: what the fit alone is worth."""
    stored = FOLDER / "control"
    if not stored.is_dir():
        write_metric(place("one_step, depth", SEEDS[0]) / "final", stored)
    for protocol in PROTOCOLS:
        given = ("dataset=rooms", f"predictions={stored}", "space=metric_depth", f"protocol={protocol}")
        evaluate(FOLDER / f"control_{protocol}", *given)


def write_metric(checkpoint: Path, folder: Path) -> None:
    """The checkpoint's depth of every room in metres, by the fit of protocol marigold."""
    model = MarigoldDepth.from_pretrained(checkpoint)
    with initialize_config_dir(str(installed("configs")), version_base="1.3"):
        config = compose("eval", ["dataset=rooms"])
        chosen = open_set(config, None, named_protocol(config, "marigold"))
    with new_folder(folder) as partial:
        for index in range(len(chosen.samples)):
            sample = chosen.protocol.shown(chosen.samples[index])
            depth = align(lambda one: model(one.image[None]), sample, chosen.protocol).depth[0, 0]
            path = (partial / sample.name).with_suffix(".npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, depth.numpy())


Spread = tuple[float, float]
"""Mean and standard deviation over the seeds."""


def metrics_of(folders: Sequence[Path], sampled: str) -> dict[str, Spread]:
    """Each column of the table, over the runs in `folders`."""

    def metric(part: str, key: str) -> Spread:
        results = [Result.from_json(folder / sampled / part / "results.json") for folder in folders]
        return spread([result.metrics[key].mean for result in results])

    def seconds(folder: Path) -> float:
        return float(json.loads((folder / "seconds.json").read_text()))

    stages = [[folder, *folder.parent.glob(f"{folder.name}_first")] for folder in folders]
    return {
        "own": metric("own", "abs_rel"),
        **{key: metric("common", key) for key in ("abs_rel", "delta1", "boundary_f1")},
        "motorcycle": metric("motorcycle", "abs_rel"),
        "image": spread([seconds(folder / sampled) for folder in folders]),
        "training": spread([sum(map(seconds, stage)) for stage in stages]),
    }


def spread(values: Sequence[float]) -> Spread:
    return statistics.mean(values), statistics.stdev(values)


def report(measured: dict[tuple[str, str], dict[str, Spread]]) -> str:
    """The table in Markdown, and the control below it."""
    lines = []
    for (name, sampled), columns in measured.items():
        *metrics, image, training = columns.values()
        cells = [f"{mean:.4f} ± {deviation:.4f}" for mean, deviation in metrics]
        lines.append((name, sampled, *cells, f"{image[0]:.3f}", f"{training[0]:.0f}"))
    fits = [(name, Result.from_json(FOLDER / f"control_{name}" / "results.json")) for name in PROTOCOLS]
    fitted = ", ".join(f"{name} {result.metrics['abs_rel'].mean:.4f}" for name, result in fits)
    return (
        f"{table((*HEADINGS, 's / image', 'training, s'), lines)}\n\n"
        f"One model's metres under the fit of each protocol, AbsRel: {fitted}."
    )


def plot(measured: dict[tuple[str, str], dict[str, Spread]], path: Path) -> None:
    """Error, edges and cost of each row, side by side, with whiskers of one standard deviation over the seeds."""
    columns = {"abs_rel": ("AbsRel, %", 100), "boundary_f1": ("boundary F1, %", 100), "training": ("training, s", 1)}
    panels, spreads = (
        {
            heading: {", ".join(row): factor * values[key][part] for row, values in measured.items()}
            for key, (heading, factor) in columns.items()
        }
        for part in (0, 1)
    )
    title = f"Recipes on the rendered rooms, {STEPS} steps of {BATCH}, protocol marigold with prefit"
    bars(path, panels, title, spreads)


def label(sampled: tuple[int, int]) -> str:
    """Steps x members, as the table and the folders name them."""
    return f"{sampled[0]}x{sampled[1]}"


def place(name: str, seed: int) -> Path:
    """The run folder of a row at a seed."""
    return FOLDER / f"{name.replace(', ', '-').replace(' + ', '-')}-{seed}"
