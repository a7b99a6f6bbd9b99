"""Closed-form ensembling beside diffusers' optimiser and min-max normalisation: error and time in one run."""

import argparse
import json
from pathlib import Path

import torch
from diffusers import MarigoldDepthPipeline
from torch import Tensor

from benchmarks.synthetic_ensembles import KINDS, make_ensemble
from benchmarks.timing import Cost, measure
from marigold.depth.alignment import apply_affine, fit_affine
from marigold.depth.ensemble import ensemble_depth
from marigold.depth.metrics import METRICS

SIZES = ((480, 640), (576, 768))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py ensemble", description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1, help="torch threads, for both sides")
    parser.add_argument("--shrink", type=int, default=1, help="divide the sizes by this for the errors")
    parser.add_argument("--skip-times", action="store_true", help="errors only")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    report = {}
    for size in SIZES:
        small = (size[0] // options.shrink, size[1] // options.shrink)
        report[f"{size[0]}x{size[1]}"] = {
            "error": _errors(small, options.seeds),
            "time": None if options.skip_times else _times(size),
        }
    if options.output:
        options.output.write_text(json.dumps(report, indent=1))


def _errors(size: tuple[int, int], seeds: int) -> dict[str, dict[str, float]]:
    print(f"\nAbsRel in % after affine alignment, ten members of {size[0]}x{size[1]}, mean of {seeds} seeds")
    print(f"{'error':16s}{'ours':>10s}{'diffusers':>12s}{'min-max':>10s}")
    methods = {"ours": _ours, "diffusers": _diffusers, "min-max": _min_max}
    table = {}
    for kind in KINDS:
        ensembles = [make_ensemble(kind, seed, size) for seed in range(seeds)]
        table[kind] = {
            name: sum(_abs_rel(method(members), clean) for members, clean in ensembles) / seeds
            for name, method in methods.items()
        }
        _print_errors(kind, table[kind])
    table["mean"] = {name: sum(row[name] for row in table.values()) / len(table) for name in methods}
    _print_errors("mean", table["mean"])
    return table


def _print_errors(kind: str, row: dict[str, float]) -> None:
    verdict = "" if row["ours"] <= row["diffusers"] else "  worse than diffusers"
    print(f"{kind:16s}{row['ours']:10.3f}{row['diffusers']:12.3f}{row['min-max']:10.3f}{verdict}", flush=True)


def _times(size: tuple[int, int]) -> dict[str, float]:
    members, _ = make_ensemble("low_frequency", 0, size)
    _ours(members)  # warm-up
    before = measure(lambda: ensemble_depth(members), 7)
    theirs = measure(lambda: MarigoldDepthPipeline.ensemble_depth(members, output_uncertainty=True), 1)
    after = measure(lambda: ensemble_depth(members), 7)
    ours = Cost((before.wall + after.wall) / 2, (before.cpu + after.cpu) / 2, None)
    print(
        f"with median and uncertainty, {torch.get_num_threads()} thread(s): ours {ours.wall * 1e3:.1f} ms, diffusers "
        f"{theirs.wall:.1f} s: {theirs.wall / ours.wall:.0f}x on the clock, "
        f"{theirs.cpu / ours.cpu:.0f}x in processor time"
    )
    return {
        "ours_s": ours.wall,
        "diffusers_s": theirs.wall,
        "ours_cpu_s": ours.cpu,
        "diffusers_cpu_s": theirs.cpu,
    }


def _ours(members: Tensor) -> Tensor:
    return ensemble_depth(members).depth


def _diffusers(members: Tensor) -> Tensor:
    return MarigoldDepthPipeline.ensemble_depth(members)[0]


def _min_max(members: Tensor) -> Tensor:
    low, high = members.amin((1, 2, 3), keepdim=True), members.amax((1, 2, 3), keepdim=True)
    return ((members - low) / (high - low)).median(0, keepdim=True).values


def _abs_rel(depth: Tensor, clean: Tensor) -> float:
    everywhere = torch.ones_like(clean, dtype=torch.bool)
    aligned = apply_affine(depth, fit_affine(depth, clean, everywhere))
    return 100 * METRICS["abs_rel"](aligned, clean, everywhere).item()
