"""The recipes side by side on the rendered rooms: the same samples, rate and base, several seeds, one table.

`python scripts/benchmark.py study` trains and evaluates what is not there yet in RUNS/study and prints the table; the
same command again goes through what is missing, run by run. It needs the rooms, make data, and the extra `samples`.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from marigold.cli import launch
from marigold.config import installed
from marigold.evaluation.result import Result
from marigold.evaluation.rows import align
from marigold.evaluation_set import named_protocol, open_set
from marigold.files import write_atomically
from marigold.model.pipeline import MarigoldDepth
from marigold.visualization import bars

encoding: Any  # a worker's lock: one run at a time encodes

STEPS, BATCH, RATE = 300, 32, 1.6e-3  # 9,600 samples; the quickstart's rate, tuned for none of the recipes
AUGMENTED = "recipe.augmentation={variants:3,crop:0.6,photometric:0.8}"
PROTOCOLS = ("marigold", "disparity", "sqrt_disparity", "log")


@dataclass(frozen=True)
class Row:
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
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[2024, 2025, 2026])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("MARIGOLD_RUNS", "runs"), "study"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--report", type=Path, help="write the table as Markdown, and the plot beside it")
    parser.add_argument("--limit", type=int, help="evaluate so many rooms only")
    options = parser.parse_args(argv)
    options.folder = options.folder.absolute()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, spawn, start_worker, (spawn.Lock(),)) as pool:
        runs = [(name, seed, options) for seed in options.seeds for name in options.rows]
        list(pool.map(one_run, *zip(*runs, strict=True)))
        if (place("one_step, depth", options.seeds[0], options) / "final").is_dir():
            pool.submit(control, options).result()
    rows = summary(options)
    text = table(rows, options)
    print(text)
    if options.report:
        write_atomically(options.report, text + "\n")
        plot(rows, options.report.with_suffix(".png"), f"{options.steps} steps of {BATCH}")


def plot(rows: Sequence[dict[str, Any]], path: Path, length: str) -> None:
    """Error, edges and cost of each row, side by side, with whiskers of one standard deviation over the seeds."""
    columns = {"common": ("AbsRel, %", 100), "boundary_f1": ("boundary F1, %", 100), "training": ("training, s", 1)}
    panels, spreads = (
        {
            heading: {f"{row['recipe']}, {row['sampled']}": factor * row[key][part] for row in rows}
            for key, (heading, factor) in columns.items()
        }
        for part in (0, 1)
    )
    bars(path, panels, f"Recipes on the rendered rooms, {length}, protocol marigold with prefit", spreads)


def start_worker(lock: Any) -> None:
    """Run in every worker first: one thread, and one lock for who encodes, as caches are shared."""
    global encoding
    encoding = lock
    torch.set_num_threads(1)


def verb(name: str, *words: str) -> float:
    """A command of the README, in this process; returns its processor time in seconds."""
    started, sys.argv = time.process_time(), [name, *words, "device=cpu"]
    try:
        launch(name)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"failed: {name} {' '.join(words)}") from end
    return time.process_time() - started


def one_run(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train and evaluate one row at one seed; what is there already is left alone."""
    row, folder = ROWS[name], place(name, seed, options)
    first = folder.with_name(f"{folder.name}_first") if row.sharpened else folder
    steps = options.steps * 2 // 3 if row.sharpened else options.steps
    train(first, steps, RATE, seed, options, *row.train)
    if row.sharpened:
        stage = ("recipe=sharpen", f"model.base={first / 'final'}")
        train(folder, options.steps - steps, RATE / 10, seed, options, *stage)
    for pair in row.sampled:
        evaluate(folder, pair, "own", options, "dataset=rooms")
        evaluate(folder, pair, "common", options, "dataset=rooms", "protocol.prefit=true")
        small = "sampler.processing_resolution=128"
        evaluate(folder, pair, "motorcycle", options, "dataset=motorcycle", "protocol.prefit=true", small)
        if not (speed := folder / label(pair) / "seconds.json").is_file():
            write_atomically(speed, json.dumps(seconds_per_image(folder / "final", *pair)))


def train(folder: Path, steps: int, rate: float, seed: int, options: argparse.Namespace, *overrides: str) -> None:
    """One run of `steps` batches, with the processor time of training in seconds.json."""
    if (folder / "seconds.json").is_file():
        return
    if folder.is_dir():  # interrupted: the time of what is left would not be that of the run
        shutil.rmtree(folder)
    length = [f"train.{key}={steps}" for key in ("steps", "decay_steps", "checkpoint_every", "validate_every")]
    words = [
        "+exp=quickstart",
        "data=rooms",
        *overrides,
        *length,
        f"train.lr={rate}",
        f"train.warmup_steps={steps // 15}",
    ]
    words += [
        "train.final_ratio=0.02",
        f"train.effective_batch={BATCH}",
        f"train.seed={seed}",
        "validation.panel=0",
    ]
    words += [f"run_dir={folder}", f"cache.folder={options.folder / 'latents'}"]
    with encoding:
        verb("cache-latents", *words)
    write_atomically(folder / "seconds.json", json.dumps(verb("train", *words)))


def evaluate(folder: Path, sampled: tuple[int, int], part: str, options: argparse.Namespace, *words: str) -> None:
    """One evaluation, in `folder`/SAMPLED/`part`."""
    output = folder / label(sampled) / part
    if (output / "results.json").is_file():
        return
    limit = [f"limit={options.limit}"] if options.limit and part != "motorcycle" else []
    how = [f"sampler.steps={sampled[0]}", f"sampler.ensemble_size={sampled[1]}", "panel.worst=0", "panel.median=0"]
    verb("eval", *words, f"checkpoint={folder / 'final'}", f"output={output}", *how, *limit)


def seconds_per_image(checkpoint: Path, steps: int, members: int) -> float:
    """Processor time to predict one 96x128 image, median of nine."""
    model, image, times = MarigoldDepth.from_pretrained(checkpoint), torch.rand(1, 3, 96, 128), []
    for _ in range(10):
        started = time.process_time()
        model(image, steps=steps, ensemble_size=members)
        times.append(time.process_time() - started)
    return statistics.median(times[1:])


def control(options: argparse.Namespace) -> None:
    """One model's depth in metres, fitted in each of the four quantities: what the fit alone is worth."""
    stored = options.folder / "control"
    if not stored.is_dir():
        write_metric(place("one_step, depth", options.seeds[0], options) / "final", stored, options.limit)
    for protocol in PROTOCOLS:
        if not (output := options.folder / f"control_{protocol}" / "results.json").is_file():
            given = ["dataset=rooms", f"predictions={stored}", "space=metric_depth", f"protocol={protocol}"]
            limit = [f"limit={options.limit}"] if options.limit else []
            verb("eval", *given, f"output={output.parent}", "panel.worst=0", "panel.median=0", *limit)


def write_metric(checkpoint: Path, folder: Path, limit: int | None) -> None:
    """The checkpoint's depth of every room in metres, by the fit of protocol marigold."""
    model = MarigoldDepth.from_pretrained(checkpoint)
    with initialize_config_dir(str(installed("configs")), version_base="1.3"):
        config = compose("eval", ["dataset=rooms"])
        chosen = open_set(config, limit, named_protocol(config, "marigold"))
    partial = folder.with_name(f"{folder.name}.partial")
    for index in range(len(chosen.samples)):
        sample = chosen.protocol.shown(chosen.samples[index])
        depth = align(lambda one: model(one.image[None]), sample, chosen.protocol).depth[0, 0]
        path = (partial / sample.name).with_suffix(".npy")
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, depth.numpy())
    partial.rename(folder)


def summary(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of the table per recipe and way of sampling, of the seeds that are there."""
    rows = []
    for name in options.rows:
        for pair in ROWS[name].sampled:
            folders = [place(name, seed, options) for seed in options.seeds]
            done = [folder for folder in folders if (folder / label(pair) / "seconds.json").is_file()]
            if done:
                rows.append(
                    {"recipe": name, "sampled": label(pair), "seeds": len(done), **measured(done, label(pair))}
                )
    return rows


def measured(folders: Sequence[Path], sampled: str) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation, over the runs in `folders`, of each column."""

    def metric(part: str, key: str) -> tuple[float, float]:
        results = [Result.from_json(folder / sampled / part / "results.json") for folder in folders]
        return spread([result.metrics[key].mean for result in results])

    def seconds(folder: Path) -> float:
        return float(json.loads((folder / "seconds.json").read_text()))

    stages = [[folder, *folder.parent.glob(f"{folder.name}_first")] for folder in folders]
    return {
        "own": metric("own", "abs_rel"),
        "common": metric("common", "abs_rel"),
        "delta1": metric("common", "delta1"),
        "boundary_f1": metric("common", "boundary_f1"),
        "motorcycle": metric("motorcycle", "abs_rel"),
        "image": spread([seconds(folder / sampled) for folder in folders]),
        "training": spread([sum(map(seconds, stage)) for stage in stages]),
    }


def table(rows: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """Mean and standard deviation over the seeds, in Markdown."""
    headings = (
        "recipe | steps x members | seeds | AbsRel, own protocol | AbsRel | delta1 | boundary F1 | motorcycle | "
        "s / image | training, s"
    )
    lines = [f"| {headings} |", "|---" * len(headings.split("|")) + "|"]
    for row in rows:
        parts = [
            f"{row[key][0]:.4f} ± {row[key][1]:.4f}"
            for key in ("own", "common", "delta1", "boundary_f1", "motorcycle")
        ]
        parts += [f"{row['image'][0]:.3f}", f"{row['training'][0]:.0f}"]
        lines.append(f"| {row['recipe']} | {row['sampled']} | {row['seeds']} | {' | '.join(parts)} |")
    fitted = [
        f"{protocol} {Result.from_json(file).metrics['abs_rel'].mean:.4f}"
        for protocol in PROTOCOLS
        if (file := options.folder / f"control_{protocol}" / "results.json").is_file()
    ]
    if fitted:
        lines += ["", f"One model's metres under the fit of each protocol, AbsRel: {', '.join(fitted)}."]
    return "\n".join(lines)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation, 0 of one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def label(sampled: tuple[int, int]) -> str:
    """Steps x members, as the table and the folders name them."""
    return f"{sampled[0]}x{sampled[1]}"


def place(name: str, seed: int, options: argparse.Namespace) -> Path:
    """The run folder of a row at a seed."""
    return Path(options.folder, f"{name.replace(', ', '-').replace(' + ', '-')}-{seed}")
