"""Images per second and peak memory of training, per setting, beside a plain loop on the same U-Net.

The plain loop does at each step what the method's first public code did: float32, both VAE encodings, 16
micro-batches of 2, `.item()` after each, `empty_cache()` and an unfused Adam. Every setting runs in a process
of its own, so that its peak memory is its own.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from marigold.cache_latents import run as cache_latents
from marigold.config import build
from marigold.inputs import Settings, load_inputs, mixture_dataset
from marigold.miniature.rooms import write_rooms
from marigold.miniature.rooms.write import RoomsSize
from marigold.model.backbone import empty_prompt_embedding
from marigold.model.diffusion import Diffusion
from marigold.train import run
from marigold.training.objective import Objective

ROOT = Path(__file__).resolve().parents[1]
BATCH = 32
PLAIN = "plain loop"
# name -> overrides; every setting takes steps of 32 samples.
SETTINGS: dict[str, tuple[str, ...]] = {
    PLAIN: (),
    "pictures, 16 x 2": ("cache.enabled=false", "train.micro_batch=2"),
    "pictures, 4 x 8": ("cache.enabled=false", "train.micro_batch=8"),
    "cached, 16 x 2": ("cache.enabled=true", "train.micro_batch=2"),
    "cached, 4 x 8": ("cache.enabled=true", "train.micro_batch=8"),
    "cached, 1 x 32": ("cache.enabled=true", "train.micro_batch=32"),
    "cached, 4 x 8, float32": ("cache.enabled=true", "train.micro_batch=8", "precision=no"),
    "cached, 4 x 8, checkpointing": (
        "cache.enabled=true",
        "train.micro_batch=8",
        "performance.gradient_checkpointing=true",
    ),
    "cached, 4 x 8, channels-last": ("cache.enabled=true", "train.micro_batch=8", "performance.channels_last=true"),
    "cached, 4 x 8, average": ("cache.enabled=true", "train.micro_batch=8", "train.ema_decay=0.999"),
    "cached, 4 x 8, compile": ("cache.enabled=true", "train.micro_batch=8", "performance.compile=true"),
    "cached, 4 x 8, 8-bit Adam": ("cache.enabled=true", "train.micro_batch=8", "train.optimizer=adam8bit"),
}
OPTIONAL = ("cached, 4 x 8, compile", "cached, 4 x 8, 8-bit Adam")


class Figures(NamedTuple):
    """Training images per second and the process's peak memory in MiB (of the GPU where there is one)."""

    images_per_second: float
    peak_mib: float


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py train", description=__doc__)
    parser.add_argument("--model", choices=["tiny", "sd2_random"], default="tiny")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--steps", type=int, default=4, help="timed steps of 32 samples per round")
    parser.add_argument("--rounds", type=int, default=2, help="all settings are run in turn this many times")
    parser.add_argument("--only", nargs="+", choices=SETTINGS, help="these settings; the plain loop is always run")
    parser.add_argument("--all", action="store_true", help=f"also {' and '.join(OPTIONAL)}")
    parser.add_argument("--peak-tflops", type=float, help="the hardware's matrix peak, to state the share reached")
    parser.add_argument("--step-tflop", type=float, default=2.89, help="of one training sample; 2.89 is SD2, 480x640")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(argv)
    chosen = options.only or [name for name in SETTINGS if options.all or name not in OPTIONAL]
    chosen = [PLAIN, *(name for name in chosen if name != PLAIN)]
    measured: dict[str, list[Figures]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as made:
        _prepare(Path(made), options.model, tuple(options.size))
        for _ in range(options.rounds):
            for name in chosen:
                job = (Path(made), options.model, tuple(options.size), name, options.steps)
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    measured[name].append(pool.submit(_measure, *job).result())
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} thread(s)"
    print(
        f"\n{where}, {options.model}, {options.size[0]}x{options.size[1]}, steps of {BATCH}; the better of "
        f"{options.rounds} rounds\n{'setting':32s}{'images/s':>10s}{'ratio':>8s}{'peak MiB':>10s}"
        f"{'share of peak':>15s}"
    )
    best = {name: max(figures) for name, figures in measured.items()}
    for name, figures in best.items():
        ratio = figures.images_per_second / best[PLAIN].images_per_second
        share = ""
        if options.peak_tflops:
            share = f"{figures.images_per_second * options.step_tflop / options.peak_tflops:.0%}"
        print(f"{name:32s}{figures.images_per_second:10.2f}{ratio:8.2f}{figures.peak_mib:10.0f}{share:>15s}")
    if options.output:
        options.output.write_text(json.dumps({"device": where, "figures": best}, indent=1))


def _overrides(folder: Path, model: str, size: tuple[int, ...]) -> list[str]:
    return [
        "+exp=quickstart",
        f"model={model}",
        f"paths.data={folder / 'data'}",
        f"data.hypersim.transform.size=[{size[0]},{size[1]}]",
        "data.hypersim.weight=1.0",
        "data.vkitti.weight=0.0",
        "cache.dtype=float16",
        f"train.effective_batch={BATCH}",
        "validation.panel=0",
        "data.hypersim.held_out.limit=1",
    ]


def _compose(overrides: list[str]) -> Any:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose("train", overrides)


def _prepare(folder: Path, model: str, size: tuple[int, ...]) -> None:
    """Rooms and their cached latents: few, as only speed is looked at."""
    rooms = folder / "data/rooms"
    write_rooms(out=str(rooms), workers=1, size=RoomsSize(16, 1, 1, 1, 1, 2, (96, 128), (72, 200), seed=2024))
    node = OmegaConf.load(ROOT / "configs/prepare/hypersim.yaml")
    paths = {"raw": str(rooms / "hypersim_raw"), "out": str(rooms / "hypersim"), "official": None}
    settings: Any = OmegaConf.merge(node, paths, {"workers": 1, "dry_run": False, "max_broken": 0.0})
    build(settings, "prepare")
    with torch.no_grad():
        cache_latents(_compose([*_overrides(folder, model, size), "train.micro_batch=8"]))


def _measure(folder: Path, model: str, size: tuple[int, ...], name: str, steps: int) -> Figures:
    base = _overrides(folder, model, size)
    speed = _plain(base, steps) if name == PLAIN else _ours(folder, [*base, *SETTINGS[name]], steps)
    if torch.cuda.is_available():
        return Figures(speed, torch.cuda.max_memory_allocated() / 2**20)
    return Figures(speed, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _ours(folder: Path, overrides: list[str], steps: int) -> float:
    """The project's own loop; the first step warms up."""
    run_dir = Path(tempfile.mkdtemp(dir=folder))
    length = [f"train.steps={steps + 1}", "train.log_every=1", "train.checkpoint_every=1000000"]
    run(_compose([*overrides, *length, f"run_dir={run_dir}", "train.validate_every=1000000"]))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["images_per_second"] for line in lines if "images_per_second" in line]
    return statistics.harmonic_mean(speeds[1:])


def _plain(overrides: list[str], steps: int) -> float:
    """The plain loop, with this project's objective and data so that only the loop differs."""
    config = _compose([*overrides, "cache.enabled=false", "train.micro_batch=2"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings.read(config)
    sets, backbone = load_inputs(config, settings, [], files=True)
    assert backbone is not None
    for module in (backbone.unet, backbone.vae):
        module.to(device)  # type: ignore[arg-type]
    unet, vae = backbone.unet.train(), backbone.vae
    prompt = empty_prompt_embedding(backbone.text_encoder, backbone.tokenizer).to(device)
    objective = Objective(
        settings.recipe,
        Diffusion.from_config(backbone.scheduler_config),
        prompt,
        vae,
        config.train.seed,
    )
    data = mixture_dataset(settings, sets, backbone)
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-5, foreach=False, fused=False)
    accumulation = BATCH // 2
    seconds = []
    for step in range(steps + 1):
        start = time.perf_counter()
        for k in range(accumulation):
            g = step * accumulation + k
            loss = objective(unet, _moved(data[g], device), g) / accumulation
            loss.backward()
            loss.item()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return BATCH / statistics.mean(seconds[1:])


def _moved(batch: Any, device: torch.device) -> Any:
    parts = (part.to(device) for part in (batch.image_norm, batch.depth_norm, batch.valid, batch.half_range))
    return type(batch)(batch.names, *parts)
