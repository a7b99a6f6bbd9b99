"""Seconds and memory per picture, ours beside diffusers' pipeline on the same weights and latents."""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DDIMScheduler, MarigoldDepthPipeline

from benchmarks.timing import peak_memory
from marigold.miniature.random_base import SD2_SCHEDULER, SIZES, build_components, build_sd2_sized
from marigold.model.pipeline import DepthSettings, MarigoldDepth
from marigold.model.recipe import Switches
from marigold.precision import PRECISIONS

GRID = ((1, 1), (4, 1), (1, 10), (50, 10))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py infer", description=__doc__)
    parser.add_argument("--checkpoint", help="a Marigold folder; without it, random weights of --model")
    parser.add_argument("--model", choices=[*SIZES, "sd2"], default="tiny", help="architecture of the random weights")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--grid", nargs="+", default=[f"{a}x{b}" for a, b in GRID], metavar="STEPSxENSEMBLE")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch threads, for both sides")
    parser.add_argument("--peak-tflops", type=float, help="the hardware's peak, to state the share that is reached")
    parser.add_argument("--skip-diffusers", action="store_true")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _model(options.checkpoint, options.model, PRECISIONS[options.precision]).to(device)
    height, width = options.size
    image = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    where = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {options.threads} thread(s)"
    print(
        f"{where}, {options.precision}, {options.checkpoint or options.model}, {height}x{width}; median of "
        f"{options.repetitions} interleaved runs; processor seconds leave out what other programs took"
    )
    print(
        f"{'steps x members':>16s}{'ours s':>10s}{'diffusers s':>13s}{'ratio':>7s}{'cpu ratio':>11s}"
        f"{'ours MiB':>10s}{'diffusers MiB':>15s}{'share of peak':>15s}"
    )
    report = {}
    for entry in options.grid:
        steps, members = (int(part) for part in entry.split("x"))
        report[entry] = _row(model, image, steps, members, options)
    if options.output:
        options.output.write_text(json.dumps({"device": where, "grid": report}, indent=1))


def _model(checkpoint: str | None, name: str, dtype: torch.dtype) -> MarigoldDepth:
    if checkpoint:
        return MarigoldDepth.from_pretrained(checkpoint, torch_dtype=dtype)
    base = build_sd2_sized(in_channels=8) if name == "sd2" else build_components(0, *SIZES[name], in_channels=8)
    config = {**SD2_SCHEDULER, "timestep_spacing": "trailing"}
    if dtype != torch.float32:
        for module in (base.unet, base.vae, base.text_encoder):
            module.to(dtype)  # type: ignore[arg-type]
    return MarigoldDepth(replace(base, scheduler_config=config), DepthSettings(Switches(), True, True, 1, 0))


def _row(model: MarigoldDepth, image: torch.Tensor, steps: int, members: int, options: argparse.Namespace) -> dict:
    h, w = (-(-side // 8) for side in image.shape[-2:])
    latents = torch.randn(members, 4, h, w, generator=torch.Generator().manual_seed(1)).to(image.device)
    pipeline = _diffusers(model)

    def ours() -> torch.Tensor:
        return model(image, steps=steps, ensemble_size=members, processing_resolution=0, latents=latents).depth

    def theirs() -> torch.Tensor:
        return pipeline(  # type: ignore[operator]
            image.to(model.backbone.unet.dtype),
            num_inference_steps=steps,
            ensemble_size=members,
            processing_resolution=0,
            latents=latents.to(model.backbone.unet.dtype),
            output_type="pt",
            output_uncertainty=members > 1,
        ).prediction

    sides: dict[str, Callable[[], object]] = (
        {"ours": ours} if options.skip_diffusers else {"ours": ours, "diffusers": theirs}
    )
    costs = _interleaved(sides, options.repetitions)
    memory = {name: _peak(function, image.device) for name, function in sides.items()}
    share = ""
    if options.peak_tflops:
        share = f"{_flops(ours) / costs['ours'][0] / 1e12 / options.peak_tflops:.0%}"
    mine = costs["ours"]
    other = costs.get("diffusers", (float("nan"), float("nan")))
    print(
        f"{steps:>8d} x {members:<5d}{mine[0]:10.3f}{other[0]:13.3f}{other[0] / mine[0]:7.2f}"
        f"{other[1] / mine[1]:11.2f}{memory['ours']:10.0f}{memory.get('diffusers', float('nan')):15.0f}{share:>15s}",
        flush=True,
    )
    return {"seconds": {k: c[0] for k, c in costs.items()}, "cpu": {k: c[1] for k, c in costs.items()}, "MiB": memory}


def _diffusers(model: MarigoldDepth) -> MarigoldDepthPipeline:
    parts = model.backbone
    scheduler = DDIMScheduler.from_config(parts.scheduler_config)
    pipeline = MarigoldDepthPipeline(
        parts.unet, parts.vae, scheduler, parts.text_encoder, parts.tokenizer, prediction_type="depth"
    )
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[attr-defined]
    return pipeline


def _interleaved(sides: dict[str, Callable[[], object]], repetitions: int) -> dict[str, tuple[float, float]]:
    """Median seconds on the clock and of processor; the sides take turns, so that a busy machine hits both."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for function in sides.values():
        function()  # warm-up
    for _ in range(repetitions):
        for name, function in sides.items():
            _wait()
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            _wait()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: (statistics.median(wall for wall, _ in runs), statistics.median(cpu for _, cpu in runs))
        for name, runs in times.items()
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak(function: Callable[[], object], device: torch.device) -> float:
    """MiB at the peak of a call beyond what was there before, the weights that is."""
    if device.type != "cuda":
        return peak_memory(function)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _flops(function: Callable[[], object]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


if __name__ == "__main__":
    main(sys.argv[1:])
