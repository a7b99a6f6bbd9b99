"""Alignment and the ten metrics beside numpy's lstsq and one loop per metric: time, memory, difference."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import measure, peak_memory
from marigold.depth.alignment import apply_affine, fit_affine
from marigold.depth.metrics import compute_metrics

# Height, width (the last are ETH3D's), share of valid pixels, repetitions.
CASES = {
    "480x640, all valid": (480, 640, 1.0, 31),
    "480x640, 75 % valid": (480, 640, 0.75, 31),
    "4032x6048, all valid": (4032, 6048, 1.0, 1),
    "4032x6048, 75 % valid": (4032, 6048, 0.75, 1),
}
NEAREST = 1e-6


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py eval", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="torch threads; start with OMP_NUM_THREADS the same")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    report = {}
    for name, (height, width, share, repetitions) in CASES.items():
        maps = _maps(height, width, share)
        ours, plain = measure(lambda: _ours(*maps), repetitions), measure(lambda: _plain(*maps), repetitions)  # noqa: B023
        largest = max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(ours.result, plain.result, strict=True))
        memory = [peak_memory(lambda: side(*maps)) for side in (_ours, _plain)]  # noqa: B023
        print(
            f"{name}: ours {ours.wall:.4f} s, {1 / ours.wall:.1f} images/s, peak {memory[0]:.0f} MiB; "
            f"numpy {plain.wall:.4f} s, {1 / plain.wall:.1f} images/s, peak {memory[1]:.0f} MiB: "
            f"{plain.wall / ours.wall:.1f}x on the clock, {plain.cpu / ours.cpu:.1f}x in processor time, "
            f"{memory[0] / max(memory[1], 1):.2f} of the memory; "
            f"metrics agree to {largest:.1e}",
            flush=True,
        )
        report[name] = {
            "ours_s": ours.wall,
            "numpy_s": plain.wall,
            "ours_cpu_s": ours.cpu,
            "numpy_cpu_s": plain.cpu,
            "ours_mib": memory[0],
            "numpy_mib": memory[1],
        }
    if options.output:
        options.output.write_text(json.dumps(report, indent=1))


def _maps(height: int, width: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pred = torch.rand(1, 1, height, width, generator=generator)
    target = (8 * pred + 1).mul_(torch.rand(pred.shape, generator=generator).mul_(0.4).add_(0.8))
    # Holes as a sensor leaves them: in runs, not pixel by pixel.
    valid = torch.rand(1, 1, height, width // 16, generator=generator).repeat_interleave(16, dim=3) < share
    return pred, target.mul_(valid), valid


def _ours(pred: Tensor, target: Tensor, valid: Tensor) -> list[float]:
    aligned = apply_affine(pred, fit_affine(pred, target, valid)).clamp_(min=NEAREST)
    return [value.item() for value in compute_metrics(aligned, target, valid).values()]


def _plain(pred: Tensor, target: Tensor, valid: Tensor) -> list[float]:
    """What evaluation scripts usually do: a two-column matrix, then every metric by itself on the masked arrays."""
    predicted, truth, known = (tensor[0, 0].numpy() for tensor in (pred, target, valid))
    matrix = np.stack([predicted[known], np.ones_like(predicted[known])], axis=1)
    scale, shift = np.linalg.lstsq(matrix, truth[known], rcond=None)[0]
    aligned = np.clip(predicted * scale + shift, NEAREST, None)

    def log_error(p: np.ndarray, g: np.ndarray) -> np.ndarray:
        return np.log(p) - np.log(g)

    metrics = [
        lambda p, g: np.mean(np.abs(p - g) / g),
        lambda p, g: np.mean((p - g) ** 2 / g),
        lambda p, g: np.sqrt(np.mean((p - g) ** 2)),
        lambda p, g: np.sqrt(np.mean(log_error(p, g) ** 2)),
        lambda p, g: np.mean(np.abs(np.log10(p) - np.log10(g))),
        lambda p, g: np.mean(np.maximum(p / g, g / p) < 1.25),
        lambda p, g: np.mean(np.maximum(p / g, g / p) < 1.25**2),
        lambda p, g: np.mean(np.maximum(p / g, g / p) < 1.25**3),
        lambda p, g: np.sqrt(np.mean((1 / p - 1 / g) ** 2)),
        lambda p, g: 100 * np.sqrt(np.mean(log_error(p, g) ** 2) - np.mean(log_error(p, g)) ** 2),
    ]
    return [float(metric(aligned[known], truth[known])) for metric in metrics]
