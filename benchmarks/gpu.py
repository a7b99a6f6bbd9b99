"""Training and inference with a full-size model of random weights: ours beside a plain loop and diffusers, in one run.

Rows are measured one by one, the most important first, and appended to OUTPUT (JSON lines) at once; before one that
may not fit into --seconds it stops, and the same command again resumes there. --report prints the table of OUTPUT.
Batches are random and in memory: no disk is measured.

The plain loop does at each step what the method's first public code did: float32, both VAE encodings, 16 micro-batches
of 2, `.item()` after each, `empty_cache()` and an unfused Adam.
"""

import argparse
import gc
import re
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, MarigoldDepthPipeline
from torch import nn

from benchmarks.memory import flops, numberless
from benchmarks.models import make_batch, make_model, make_objective, read
from benchmarks.timing import add_rows, read_rows, table
from marigold.data.mixture import Mixture, MixtureDataset
from marigold.model.latents import decode_depth, encode_image
from marigold.model.recipe import Switches
from marigold.precision import PRECISIONS
from marigold.training.loop import Trainer
from marigold.training.settings import make_accelerator

SHOWN = {False: (576, 768), True: (96, 128)}  # height and width in inference; True is tiny
BATCH = 32
LEAST = 5  # seconds for which a row is measured
Measured = dict[str, Any]


class Bench(NamedTuple):
    """The device of a measurement, and whether model and images are tiny."""

    device: torch.device
    tiny: bool

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def time(self, function: Callable[[], object]) -> float:
        """Seconds per call."""
        started, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - started < LEAST:
            function()
            calls += 1
        if self.on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / calls


def matrix_peak(*, bench: Bench) -> Measured:
    """Operations per second of the card in a large bfloat16 product."""
    # 8192 is large enough to reach a card's peak; n^2 sums of n products and as many additions are 2 n^3 operations.
    side = 256 if bench.tiny else 8192
    one, two = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    bench.time(lambda: one @ two)
    return {"tflops": 2 * side**3 / bench.time(lambda: one @ two) / 1e12}


def train(*overrides: str, bench: Bench, precision: str = "auto") -> Measured:
    """Our loop, on the same micro-batch again and again."""
    settings = read("train.workers=0", *overrides)
    base, objective = make_objective(settings, bench.tiny, bench.device)
    batch = make_batch(settings.train.micro_batch, settings.cache.enabled, bench.tiny)
    source: Any = SimpleNamespace(names=["random"] * 64, batch=lambda *_: batch)
    mixture = Mixture([64], [1.0], settings.train.micro_batch, flip_probability=0.5, seed=0)
    accelerator = make_accelerator(precision, bench.device.type)
    # The loop itself, with its accumulation and clipping, so that nothing of a real step is left out.
    trainer = Trainer(settings.train, base.unet, MixtureDataset(mixture, [source]), objective, accelerator)
    steps = trainer.steps(0)
    next(steps)  # compiles, and makes the optimiser's state
    trainer.take_metrics(1)
    bench.time(lambda: next(steps))
    return {"images_per_second": trainer.take_metrics(2)["images_per_second"]}


def plain_loop(*, bench: Bench) -> Measured:
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
        if bench.on_gpu:
            torch.cuda.empty_cache()

    step()
    return {"images_per_second": BATCH / bench.time(step)}


def infer(side: str, steps: int, members: int, precision: str, *, bench: Bench) -> Measured:
    """An image by `side`, ours or diffusers, with the same weights and latents."""
    torch_defaults()
    dtype = PRECISIONS[precision]
    with torch.device(bench.device):
        model = make_model(Switches(), bench.tiny)
        image = torch.rand(1, 3, *SHOWN[bench.tiny])
        latents = torch.randn(members, 4, *(length // 8 for length in SHOWN[bench.tiny]))
    base = model.backbone
    # Both sides hold the same modules, so they have the same weights and the memory of one model.
    parts: tuple[nn.Module, ...] = (base.unet, base.vae, base.text_encoder)
    for module in parts:
        nn.Module.to(module, dtype)
    scheduler = DDIMScheduler.from_config(base.scheduler_config)
    pipeline: Any = MarigoldDepthPipeline(*parts[:2], scheduler, parts[2], base.tokenizer, prediction_type="depth")
    pipeline.set_progress_bar_config(disable=True)

    def call(count: int) -> object:
        same: dict[str, Any] = {"ensemble_size": members, "processing_resolution": 0}
        if side == "ours":
            return model(image, steps=count, latents=latents, **same)
        same |= {"output_type": "pt", "output_uncertainty": members > 1}
        return pipeline(image.to(dtype), num_inference_steps=count, latents=latents.to(dtype), **same)

    call(1)  # warms up
    return {"seconds": bench.time(lambda: call(steps))}


def torch_defaults() -> None:
    """Undo the `performance.tf32` of another row."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


CACHED, TWO, EIGHT = "cache.enabled=true", "train.micro_batch=2", "train.micro_batch=8"
PLAIN, OURS = "train, plain loop", "train, latents, 4 x 8"
RECIPES = ("one_step", "depthmaster", "lotus_d", "lotus_g", "e2e_ft", "genpercept")
OPTIONS = ("compile", "channels_last", "gradient_checkpointing")


def grid(precision: str) -> dict[str, partial[Measured]]:
    """Inference in steps x members."""
    return {
        f"infer, {steps} x {members}, {side}, {precision}": partial(infer, side, steps, members, precision)
        for steps, members in ((1, 1), (50, 10), (4, 1), (1, 10))
        for side in ("ours", "diffusers")
    }


# The most important first.
ROWS: dict[str, partial[Measured]] = {
    "peak": partial(matrix_peak),
    PLAIN: partial(plain_loop),
    OURS: partial(train, CACHED, EIGHT),
    "train, images, 16 x 2": partial(train, TWO),
    "train, images, 4 x 8": partial(train, EIGHT),
    **grid("bfloat16"),
    **{
        f"train, latents, {BATCH // n} x {n}": partial(train, CACHED, f"train.micro_batch={n}") for n in (2, 4, 16, 32)
    },
    **{f"{OURS}, {name}": partial(train, CACHED, EIGHT, f"performance.{name}=true") for name in OPTIONS},
    f"{OURS}, float32": partial(train, CACHED, EIGHT, precision="no"),
    **{f"train, {name}, cached, 16 x 2": partial(train, CACHED, TWO, f"recipe={name}") for name in RECIPES},
    **grid("float32"),
}
SLOWEST = {False: 90, True: 180}  # seconds that a row may take; True: what is compiled


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py gpu", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="JSON lines; rows that are there are not repeated")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop before a row that may not fit")
    parser.add_argument("--only", default="", help="rows whose name this regular expression finds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on tiny images")
    parser.add_argument("--report", action="store_true", help="measure nothing; print OUTPUT as tables")
    options = parser.parse_args(argv)
    started, rows = time.perf_counter(), read_rows(options.output)
    if options.report:
        print(report(rows, options.tiny))
        return
    bench = Bench(torch.device(options.device), options.tiny)
    card = torch.cuda.get_device_name() if bench.on_gpu else "CPU"
    where = f"{card}, torch {torch.__version__}{', tiny' * bench.tiny}"
    done = {row["name"] for row in rows if row["where"] == where}
    for name in (name for name in ROWS if name not in done and re.search(options.only, name)):
        if time.perf_counter() - started + SLOWEST["compile" in name] > options.seconds:
            print(f"no time is left for: {name}; the same command again resumes there")
            return
        row = {"name": name, "where": where, **attempt(bench, ROWS[name])}
        add_rows(options.output, [row])
        print(row, flush=True)


def attempt(bench: Bench, measure: partial[Measured]) -> Measured:
    """A row's measurements and its peak memory, or the reason why it failed: the rest continues."""
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: resets the process's high-water mark
    try:
        found = measure(bench=bench)
    except (RuntimeError, ValueError) as error:
        full = torch.OutOfMemoryError in (type(error), type(error.__cause__))
        found = {"failed": "out of memory" if full else f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    # Outside of the handler, whose traceback keeps the failed row's tensors alive.
    torch.compiler.reset()
    gc.collect()
    if bench.on_gpu:
        torch.cuda.empty_cache()
        return {**found, "peak_gb": torch.cuda.max_memory_allocated() / 1e9}
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {**found, "peak_gb": int(status["VmHWM"].split()[0]) * 1024 / 1e9}  # of the whole process


HEAD = ("what", "speed", "to what it replaces", "of the bf16 peak", "peak GB")


def report(rows: list[Measured], tiny: bool) -> str:
    """The rows of each card as a table."""
    text = []
    for where in dict.fromkeys(row["where"] for row in rows):
        mine = {row["name"]: row for row in rows if row["where"] == where}
        text += [f"## {where}", table(HEAD, [cells(row, mine, tiny) for row in mine.values()])]
    return "\n\n".join(text)


def cells(row: Measured, mine: dict[str, Measured], tiny: bool) -> list[str]:
    """A row of the report; `mine` has the rows that it is compared with."""
    arguments, speed, ratio, tflops = ROWS[row["name"]].args, row.get("failed", ""), None, row.get("tflops")
    if found := row.get("images_per_second"):
        recipe = next((one for one in arguments if one.startswith("recipe=")), "recipe=marigold")
        plain = mine.get(PLAIN, {}).get("images_per_second")
        speed, ratio = f"{found:.2f} images/s", plain and found / plain
        tflops = found * training_flops(recipe, CACHED in arguments, tiny) / 1e12
    if seconds := row.get("seconds"):
        _, steps, members, precision = arguments
        other = mine.get(f"infer, {steps} x {members}, diffusers, {precision}", {}).get("seconds")
        speed, ratio = f"{seconds:.3f} s", other and other / seconds
        encode, unet, decode = inference_flops(tiny)
        tflops = (encode + members * (steps * unet + decode)) / seconds / 1e12
    peak = mine.get("peak", {}).get("tflops")
    share = f"{tflops / peak:.0%}" if tflops and peak else ""
    return [row["name"], speed, f"{ratio:.2f}" if ratio else "", share, f"{row['peak_gb']:.2f}"]


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
        # The counter runs on: each part is what came since the one before.
        encode = counter.get_total_flops()
        base.unet(
            torch.zeros(1, 8, *latent), torch.ones(1), torch.zeros(1, 2, base.unet.config["cross_attention_dim"])
        )
        unet = counter.get_total_flops() - encode
        decode_depth(base.vae, torch.zeros(1, 4, *latent))
        return encode, unet, counter.get_total_flops() - encode - unet
