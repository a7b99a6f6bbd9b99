"""Training and inference with a full-size model of random weights: ours beside a plain loop and diffusers, in one run.

Rows are measured one by one, the most important first, and appended to OUTPUT (JSON lines) at once; before one that
would not fit into --seconds it stops, and the same command again resumes there. --report makes OUTPUT's .json and
.md of the rows. Batches are random and lie in memory: no disk is measured.

The plain loop does at each step what the method's first public code did: float32, both VAE encodings, 16 micro-batches
of 2, `.item()` after each, `empty_cache()` and an unfused Adam.
"""

import argparse
import gc
import json
import re
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, MarigoldDepthPipeline
from torch import nn

from benchmarks.memory import flops, numberless
from benchmarks.models import make_batch, make_model, make_objective, read
from marigold.data.mixture import Mixture, MixtureDataset
from marigold.inputs import Settings
from marigold.model.latents import decode_depth, encode_image
from marigold.model.recipe import Switches
from marigold.precision import PRECISIONS
from marigold.training.loop import Trainer
from marigold.training.settings import make_accelerator

SHOWN = {False: (576, 768), True: (96, 128)}  # height and width in inference; True is tiny
BATCH = 32
Figures = dict[str, Any]


class Bench(NamedTuple):
    """On what, and for how many seconds at least, is measured."""

    device: torch.device
    tiny: bool
    least: float

    def time(self, function: Callable[[], object]) -> float:
        """Seconds per call."""
        started, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - started < self.least:
            function()
            calls += 1
        self.wait()
        return (time.perf_counter() - started) / calls

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def top_ten(self, function: Callable[[], object]) -> Figures:
        """The ten operations that take the most time, and their shares of it."""
        with torch.profiler.profile(acc_events=True) as profile:
            function()
            self.wait()
        key = f"self_{'device' if self.device.type == 'cuda' else 'cpu'}_time_total"
        # Kernels are listed beside the operations that start them.
        events = [event for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CPU]
        costs = sorted(((getattr(event, key), event.key) for event in events), reverse=True)
        return {"top": [(name, cost / sum(cost for cost, _ in costs)) for cost, name in costs[:10]]}


class InMemory:
    """A data set whose every micro-batch is the same one."""

    names: Sequence[str] = ("random",) * 64

    def __init__(self, settings: Settings, tiny: bool) -> None:
        self.made = make_batch(settings.train.micro_batch, settings.cache.enabled, tiny)

    def batch(self, indices: Sequence[int], flips: Sequence[bool], variants: Sequence[int]) -> Any:
        return self.made


def matrix_peak(*, bench: Bench) -> Figures:
    """What the card reaches in a large bfloat16 product."""
    side = 256 if bench.tiny else 8192
    one, two = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    bench.time(lambda: one @ two)
    return {"tflops": 2 * side**3 / bench.time(lambda: one @ two) / 1e12}


def train(*overrides: str, bench: Bench, precision: str = "auto", look: bool = False) -> Figures:
    """Our loop; `look`: where a step of it spends its time."""
    settings = read("train.workers=0", *overrides)
    base, objective = make_objective(settings, bench.tiny, bench.device)
    mixture = Mixture([64], [1.0], settings.train.micro_batch, flip_probability=0.5, seed=0)
    data: MixtureDataset[Any] = MixtureDataset(mixture, [InMemory(settings, bench.tiny)])
    trainer = Trainer(settings.train, base.unet, data, objective, make_accelerator(precision, bench.device.type))
    steps = trainer.steps(0)
    next(steps)  # compiles, and makes the optimiser's state
    trainer.take_metrics(1)
    if look:
        return bench.top_ten(lambda: next(steps))
    bench.time(lambda: next(steps))
    metrics = trainer.take_metrics(2)
    return {"images_per_second": metrics["images_per_second"], "waiting": metrics["data_wait_share"]}


def plain_loop(*, bench: Bench) -> Figures:
    """The same objective and batches, so that only the loop differs."""
    base, objective = make_objective(read(), bench.tiny, bench.device)
    torch_defaults()
    batch = make_batch(2, False, bench.tiny)
    optimizer = torch.optim.Adam(base.unet.parameters(), lr=3e-5, foreach=False, fused=False)

    def step() -> None:
        for g in range(BATCH // 2):
            loss = objective(base.unet, batch, g) / (BATCH // 2)
            loss.backward()
            loss.item()
        optimizer.step()
        optimizer.zero_grad()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()

    step()
    return {"images_per_second": BATCH / bench.time(step)}


def infer(
    side: str, steps: int, members: int, precision: str, *, bench: Bench, compiled: bool = False, look: bool = False
) -> Figures:
    """An image by `side`, ours or diffusers, with the same weights and latents."""
    torch_defaults()
    dtype = PRECISIONS[precision]
    with torch.device(bench.device):
        model = make_model(Switches(), bench.tiny)
        image = torch.rand(1, 3, *SHOWN[bench.tiny])
        latents = torch.randn(members, 4, *(length // 8 for length in SHOWN[bench.tiny]))
    base = model.backbone
    parts: tuple[nn.Module, ...] = (base.unet, base.vae, base.text_encoder)
    for module in parts:
        nn.Module.to(module, dtype)
    if compiled:
        base.unet.compile()
    scheduler = DDIMScheduler.from_config(base.scheduler_config)
    pipeline: Any = MarigoldDepthPipeline(*parts[:2], scheduler, parts[2], base.tokenizer, prediction_type="depth")
    pipeline.set_progress_bar_config(disable=True)

    def call(count: int) -> object:
        same: dict[str, Any] = {"ensemble_size": members, "processing_resolution": 0}
        if side == "ours":
            return model(image, steps=count, latents=latents, **same)
        same |= {"output_type": "pt", "output_uncertainty": members > 1}
        return pipeline(image.to(dtype), num_inference_steps=count, latents=latents.to(dtype), **same)

    call(min(steps, 2))  # warms up; two timesteps, so that what is compiled takes any
    if look:
        return bench.top_ten(lambda: call(steps))
    return {"seconds": bench.time(lambda: call(steps))}


def torch_defaults() -> None:
    """What `performance.tf32` of another row changed."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


CACHED, EIGHT, PLAIN = "cache.enabled=true", "train.micro_batch=8", "train, plain loop"
TWO = "train.micro_batch=2"
RECIPES = ("one_step", "depthmaster", "lotus_d", "lotus_g", "e2e_ft", "genpercept")
OURS = "train, latents, 4 x 8"
OPTIONS = {
    "compile": "performance.compile=true",
    "channels-last": "performance.channels_last=true",
    "checkpointing": "performance.gradient_checkpointing=true",
    "8-bit Adam": "train.optimizer=adam8bit",
    "moving average": "train.ema_decay=0.999",
}


def grid(precision: str, *sides: str, compiled: bool = False) -> dict[str, partial[Figures]]:
    """Inference in steps x members."""
    return {
        f"infer, {steps} x {members}, {side}, {precision}{', compiled' * compiled}": partial(
            infer, side, steps, members, precision, compiled=compiled
        )
        for steps, members in ((1, 1), (50, 10), (4, 1), (1, 10))
        for side in sides
    }


# The most important first.
ROWS: dict[str, partial[Figures]] = {
    "peak": partial(matrix_peak),
    PLAIN: partial(plain_loop),
    OURS: partial(train, CACHED, EIGHT),
    "train, images, 16 x 2": partial(train, TWO),
    "train, images, 4 x 8": partial(train, EIGHT),
    **grid("bfloat16", "ours", "diffusers"),
    **{
        f"train, latents, {BATCH // n} x {n}": partial(train, CACHED, f"train.micro_batch={n}") for n in (2, 4, 16, 32)
    },
    "top, training": partial(train, CACHED, EIGHT, "train.effective_batch=8", look=True),
    "top, inference": partial(infer, "ours", 4, 1, "bfloat16", look=True),
    **{f"{OURS}, {name}": partial(train, CACHED, EIGHT, option) for name, option in OPTIONS.items()},
    f"{OURS}, float32": partial(train, CACHED, EIGHT, precision="no"),
    **{f"train, {name}, cached, 16 x 2": partial(train, CACHED, TWO, f"recipe={name}") for name in RECIPES},
    **grid("float32", "ours", "diffusers"),
    **grid("bfloat16", "ours", compiled=True),
}
SLOW = {"compile": 180, "diffusers": 90, "50 x 10": 90, "plain": 60}  # seconds that a row may take; others: 40


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py gpu", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; rows that are there are not repeated")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop before a row that would not fit")
    parser.add_argument("--only", default="", help="rows whose name this regular expression finds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on tiny pictures")
    parser.add_argument("--least", type=float, default=5, help="seconds for which a row is measured")
    parser.add_argument("--report", action="store_true", help="measure nothing; write OUTPUT's .json and .md")
    options = parser.parse_args(argv)
    started = time.perf_counter()
    rows = [json.loads(line) for line in options.output.read_text().splitlines()] if options.output.exists() else []
    if options.report:
        report(options.output, rows, options.tiny)
        return
    bench = Bench(torch.device(options.device), options.tiny, options.least)
    card = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
    where = f"{card}, torch {torch.__version__}{', tiny' * bench.tiny}"
    done = {row["name"] for row in rows if row["where"] == where}
    for name in (name for name in ROWS if name not in done and re.search(options.only, name)):
        seconds = max([40, *(seconds for part, seconds in SLOW.items() if part in name)])
        if time.perf_counter() - started + seconds > options.seconds:
            print(f"no time is left for: {name}; the same command again resumes there")
            return
        row = {"name": name, "where": where, **attempt(bench, ROWS[name])}
        with options.output.open("a") as file:
            file.write(f"{json.dumps(row)}\n")
        print(row, flush=True)


def attempt(bench: Bench, measure: partial[Figures]) -> Figures:
    """A row's measurements and its peak of memory; of one that failed, why: the rest continues."""
    on_gpu = bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the process's high-water mark
    try:
        figures = measure(bench=bench)
    except (RuntimeError, ValueError) as error:
        full = torch.OutOfMemoryError in (type(error), type(error.__cause__))
        figures = {"failed": "out of memory" if full else f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    # Outside of the handler, whose traceback keeps the failed row's tensors alive.
    torch.compiler.reset()
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        figures["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    else:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        figures["peak_gb"] = int(status["VmHWM"].split()[0]) * 1024 / 1e9  # of the whole process
    return figures


COLUMNS = {"speed": "{}", "ratio": "{:.2f}", "tflops": "{:.1f}", "of_peak": "{:.0%}", "peak_gb": "{:.2f}"}
COLUMNS |= {"waiting": "{:.0%}", "failed": "{}"}
HEAD = "| what | speed | to what it replaces | TFLOP/s | of the bf16 peak | peak GB | waiting for data | failed |"


def report(output: Path, rows: list[Figures], tiny: bool) -> None:
    """Write the rows, with what follows from them, as one JSON and one Markdown file."""
    text = []
    for where in dict.fromkeys(row["where"] for row in rows):
        mine = {row["name"]: row for row in rows if row["where"] == where}
        text += [f"\n## {where}\n", HEAD, "|---" * HEAD.count(" | ") + "|---|"]
        for name, row in mine.items():
            derive(name, row, mine, tiny)
            cells = [form.format(row[key]) if key in row else "" for key, form in COLUMNS.items()]
            text.append(f"| {name} | {' | '.join(cells)} |")
        looks = {name: row["top"] for name, row in mine.items() if "top" in row}
        text += [f"\n{name}: " + ", ".join(f"{op} {share:.0%}" for op, share in top) for name, top in looks.items()]
    output.with_suffix(".md").write_text("\n".join([*text, ""]))
    output.with_suffix(".json").write_text(json.dumps(rows, indent=1))


def derive(name: str, row: Figures, mine: dict[str, Figures], tiny: bool) -> None:
    """Add speed, its ratio to what is replaced, operations per second and their share of the measured peak."""
    arguments, beside = ROWS[name].args, None
    if "images_per_second" in row:
        speed, plain = row["images_per_second"], mine.get(PLAIN, {}).get("images_per_second")
        recipe = next((one for one in arguments if one.startswith("recipe=")), "recipe=marigold")
        row["speed"], beside = f"{speed:.2f} images/s", plain and speed / plain
        row["tflops"] = speed * training_flops(recipe, CACHED in arguments, tiny) / 1e12
    if "seconds" in row:
        _, steps, members, precision = arguments
        other = mine.get(f"infer, {steps} x {members}, diffusers, {precision}", {}).get("seconds")
        encode, unet, decode = inference_flops(tiny)
        row["speed"], beside = f"{row['seconds']:.3f} s", other and other / row["seconds"]
        row["tflops"] = (encode + members * (steps * unet + decode)) / row["seconds"] / 1e12
    if beside:
        row["ratio"] = beside
    if "tflops" in row and "tflops" in mine.get("peak", {}):
        row["of_peak"] = row["tflops"] / mine["peak"]["tflops"]


@cache
def training_flops(recipe: str, cached: bool, tiny: bool) -> int:
    """Operations of one sample, forward and backward, without what checkpointing computes twice."""
    settings = numberless(read(recipe, f"cache.enabled={str(cached).lower()}"))
    with flops() as counter:
        base, objective = make_objective(settings, tiny, torch.device("cpu"))
        base.vae.disable_gradient_checkpointing()
        objective(base.unet, make_batch(1, cached, tiny), 0).backward()
    return counter.get_total_flops()


@cache
def inference_flops(tiny: bool) -> tuple[int, int, int]:
    """Operations of the encoder, of the U-Net once and of the decoder, for one image."""
    height, width = SHOWN[tiny]
    latent = torch.Size((height // 8, width // 8))
    with flops() as counter, torch.no_grad():
        base = make_model(Switches(), tiny).backbone
        encode_image(base.vae, torch.zeros(1, 3, height, width))
        encode = counter.get_total_flops()
        base.unet(
            torch.zeros(1, 8, *latent), torch.ones(1), torch.zeros(1, 2, base.unet.config["cross_attention_dim"])
        )
        unet = counter.get_total_flops() - encode
        decode_depth(base.vae, torch.zeros(1, 4, *latent))
        return encode, unet, counter.get_total_flops() - encode - unet
