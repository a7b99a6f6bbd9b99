"""The recipes side by side on the rendered rooms: the same samples, rate and base, several seeds, one table.

`python scripts/benchmark.py study` trains and evaluates what is not there yet in RUNS/study and writes the table; the
same command again resumes. It needs the rooms: make data.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from hydra import compose, initialize_config_dir

from marigold.config import installed
from marigold.evaluation.result import Result
from marigold.evaluation.rows import align
from marigold.evaluation_set import named_protocol, open_set
from marigold.model.pipeline import MarigoldDepth

ROOT = Path(__file__).resolve().parents[1]
STEPS, BATCH, RATE = 300, 32, 1.6e-3  # 9,600 samples; the quickstart's rate, tuned for none of the recipes
ENCODING = Lock()  # caches are shared: one run at a time encodes
AUGMENTED = "recipe.augmentation={variants:3,crop:0.6,photometric:0.8}"


@dataclass(frozen=True)
class Row:
    """One way of training: what the command line says, with how many members it is sampled, and whether its last third
    of the samples goes to recipe=sharpen."""

    train: tuple[str, ...]
    members: tuple[int, ...] = (1,)
    sharpened: bool = False


ROWS = {
    "marigold_few_step": Row(("recipe=marigold_few_step",), members=(1, 5)),
    "marigold": Row(("recipe=marigold",)),
    "e2e_ft": Row(("recipe=e2e_ft",)),
    "lotus_d": Row(("recipe=lotus_d",)),
    **{
        f"one_step, {mapping}": Row(("recipe=one_step", f"recipe.mapping={mapping}"))
        for mapping in ("depth", "disparity", "sqrt_disparity", "log_depth")
    },
    "one_step, augmented": Row(("recipe=one_step", AUGMENTED)),
    "one_step + sharpen": Row(("recipe=one_step",), sharpened=True),
}


COLUMNS = (
    "recipe",
    "steps x members",
    "seeds",
    "AbsRel, own protocol",
    "AbsRel, marigold+prefit",
    "delta1, the same",
    "boundary F1, the same",
    "motorcycle at 128 px",
    "training, s",
)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py study", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[2024, 2025, 2026])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--folder", type=Path, default=Path(os.environ.get("MARIGOLD_RUNS", "runs"), "study"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on one thread")
    parser.add_argument("--report", type=Path, help="write the table as Markdown")
    parser.add_argument("--limit", type=int, help="evaluate so many rooms only")
    options = parser.parse_args(argv)
    with ThreadPoolExecutor(options.jobs) as pool:
        jobs = [(name, seed) for seed in options.seeds for name in options.rows]
        list(pool.map(lambda job: one_run(job[0], job[1], options), jobs))
    control(options)
    text = table(options)
    print(text)
    if options.report:
        options.report.write_text(text + "\n")


def one_run(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train and evaluate one row at one seed; what is there already is left alone."""
    row, folder = ROWS[name], place(name, seed, options)
    cache = [f"cache.folder={options.folder / 'latents'}"]
    final, steps = folder / "final", options.steps * 2 // 3 if row.sharpened else options.steps
    started = time.monotonic()
    first = folder.with_name(f"{folder.name}_first") if row.sharpened else folder
    if not (first / "final").is_dir():
        arguments = ["+exp=quickstart", *row.train, *cache, *length(steps, seed)]
        with ENCODING:
            command("cache_latents.py", *arguments, "device=cpu")
        started = time.monotonic()
        command("train.py", *arguments, f"train.lr={RATE}", f"run_dir={first}", "device=cpu")
    if row.sharpened and not final.is_dir():
        arguments = ["+exp=quickstart", "recipe=sharpen", f"model.base={first / 'final'}", *cache]
        arguments += length(options.steps - steps, seed)
        with ENCODING:
            command("cache_latents.py", *arguments, "device=cpu")
        command("train.py", *arguments, f"train.lr={RATE / 10}", f"run_dir={folder}", "device=cpu")
    if not (folder / "seconds.json").is_file():
        (folder / "seconds.json").write_text(json.dumps(time.monotonic() - started))
    for members in row.members:
        for ending, more in (("own", ()), ("common", ("protocol.prefit=true",))):
            evaluate(folder, f"{members}_{ending}", "rooms", members, options, *more)
        evaluate(
            folder,
            f"{members}_motorcycle",
            "motorcycle",
            members,
            options,
            "protocol.prefit=true",
            "sampler.processing_resolution=128",
        )


def length(steps: int, seed: int) -> list[str]:
    """Overrides for so many steps of BATCH samples."""
    pace = [f"train.warmup_steps={steps // 15}", f"train.checkpoint_every={steps}", f"train.validate_every={steps}"]
    return [f"train.steps={steps}", f"train.decay_steps={steps}", f"train.seed={seed}", "validation.panel=0", *pace]


def evaluate(folder: Path, name: str, data: str, members: int, options: argparse.Namespace, *more: str) -> None:
    """One evaluation in `folder`/NAME."""
    if (folder / name / "results.json").is_file():
        return
    limit = [f"limit={options.limit}"] if options.limit and data == "rooms" else []
    sampled = [f"sampler.ensemble_size={members}"] if members > 1 else []
    panel = ["panel.worst=0", "panel.median=0", "device=cpu"]
    target = [f"checkpoint={folder / 'final'}", f"output={folder / name}"]
    command("eval.py", f"dataset={data}", *target, *sampled, *limit, *panel, *more)


def control(options: argparse.Namespace) -> None:
    """One model's depth in metres, fitted in each of the four quantities: what the fit alone is worth."""
    source = place("one_step, depth", options.seeds[0], options)
    stored = options.folder / "control"
    if not (source / "final").is_dir():
        return
    if not stored.is_dir():
        write_metric(source / "final", stored, options.limit)
    for protocol in ("marigold", "disparity", "sqrt_disparity", "log"):
        if not (stored.with_name(f"control_{protocol}") / "results.json").is_file():
            limit = [f"limit={options.limit}"] if options.limit else []
            given = [f"predictions={stored}", "space=metric_depth", f"protocol={protocol}"]
            output = f"output={stored.with_name(f'control_{protocol}')}"
            command(
                "eval.py", "dataset=rooms", *given, output, "panel.worst=0", "panel.median=0", "device=cpu", *limit
            )


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


def table(options: argparse.Namespace) -> str:
    """Mean and standard deviation over the seeds that are there."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for name in options.rows:
        for members in ROWS[name].members:
            folders = [place(name, seed, options) for seed in options.seeds]
            done = [folder for folder in folders if (folder / f"{members}_motorcycle/results.json").is_file()]
            if done:
                own, common, cycle = (
                    [Result.from_json(folder / f"{members}_{part}/results.json") for folder in done]
                    for part in ("own", "common", "motorcycle")
                )
                seconds = [json.loads((folder / "seconds.json").read_text()) for folder in done]
                cells = [
                    spread([one.metrics["abs_rel"].mean for one in own]),
                    spread([one.metrics["abs_rel"].mean for one in common]),
                    spread([one.metrics["delta1"].mean for one in common]),
                    spread([one.metrics["boundary_f1"].mean for one in common]),
                    spread([one.metrics["abs_rel"].mean for one in cycle]),
                    f"{statistics.mean(seconds):.0f}",
                ]
                lines.append(f"| {name} | 1 x {members} | {len(done)} | " + " | ".join(cells) + " |")
    fitted = [
        f"{protocol} {Result.from_json(file).metrics['abs_rel'].mean:.4f}"
        for protocol in ("marigold", "disparity", "sqrt_disparity", "log")
        if (file := options.folder / f"control_{protocol}/results.json").is_file()
    ]
    return "\n".join([*lines, "", f"One model's metres under each fit, AbsRel: {', '.join(fitted)}"])


def spread(values: Sequence[float]) -> str:
    """Mean and sample standard deviation."""
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def place(name: str, seed: int, options: argparse.Namespace) -> Path:
    """The run folder of a row at a seed."""
    return options.folder / f"{name.replace(', ', '-').replace(' + ', '-')}-{seed}"


def command(script: str, *arguments: str) -> None:
    """A command of the README, on one thread; its output is shown if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, str(ROOT / "scripts" / script), *arguments]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
