"""Closed-form ensembling beside diffusers' optimiser and min-max normalisation: error and time in one run."""

import argparse
from functools import partial
from statistics import mean

import numpy as np
import torch
from diffusers import MarigoldDepthPipeline
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.timing import measure, table
from marigold.depth.alignment import apply_affine, fit_affine
from marigold.depth.ensemble import ensemble_depth
from marigold.depth.metrics import METRICS

SIZES, SEEDS = ((480, 640), (576, 768)), 4
KINDS = ("pixel_noise", "low_frequency", "uneven", "clipping", "one_outlier", "three_outliers")
OUTLIERS = {"one_outlier": {3}, "three_outliers": {1, 4, 7}}  # members that show another scene
Map = NDArray[np.float64]


def main(argv: list[str]) -> None:
    argparse.ArgumentParser(prog="benchmark.py ensemble", description=__doc__).parse_args(argv)
    torch.set_num_threads(1)
    for size in SIZES:
        print(f"\nAbsRel in % after affine alignment, ten members of {size[0]}x{size[1]}, mean of {SEEDS} seeds")
        errors = {kind: errors_of(kind, size) for kind in KINDS}
        errors["mean"] = [mean(column) for column in zip(*errors.values(), strict=True)]
        lines = [(kind, *(f"{error:.3f}" for error in found)) for kind, found in errors.items()]
        print(table(("error", *METHODS), lines))
        members, _ = make_ensemble("low_frequency", 0, size)
        ours = measure(partial(ensemble_depth, members), 7)
        theirs = measure(partial(diffusers, members, output_uncertainty=True), 1)
        print(
            f"with median and uncertainty, one thread: ours {ours.wall * 1e3:.1f} ms, diffusers {theirs.wall:.1f} s: "
            f"{theirs.wall / ours.wall:.0f}x on the clock, {theirs.cpu / ours.cpu:.0f}x in processor time",
            flush=True,
        )


def errors_of(kind: str, size: tuple[int, int]) -> list[float]:
    """Mean AbsRel in % of every method, over ensembles whose members have this kind of error."""
    ensembles = [make_ensemble(kind, seed, size) for seed in range(SEEDS)]
    return [mean(abs_rel(method(members), clean) for members, clean in ensembles) for method in METHODS.values()]


def abs_rel(depth: Tensor, clean: Tensor) -> float:
    everywhere = torch.ones_like(clean, dtype=torch.bool)
    aligned = apply_affine(depth, fit_affine(depth, clean, everywhere))
    return 100 * METRICS["abs_rel"](aligned, clean, everywhere).item()


def min_max(members: Tensor) -> Tensor:
    low, high = members.amin((1, 2, 3), keepdim=True), members.amax((1, 2, 3), keepdim=True)
    return ((members - low) / (high - low)).median(0, keepdim=True).values


diffusers = MarigoldDepthPipeline.ensemble_depth
METHODS = {
    "ours": lambda members: ensemble_depth(members).depth,
    "diffusers": lambda members: diffusers(members)[0],
    "min-max": min_max,
}


def make_ensemble(kind: str, seed: int, size: tuple[int, int], count: int = 10) -> tuple[Tensor, Tensor]:
    """Members (count, 1, H, W) in [0, 1], each under its own scale and shift, and the clean metres (1, 1, H, W)."""
    rng = np.random.default_rng((seed, KINDS.index(kind)))
    metres = scene(rng, size)
    members = []
    for index in range(count):
        shown = scene(rng, size) if index in OUTLIERS.get(kind, ()) else metres
        member = with_error((shown - shown.min()) / np.ptp(shown), kind, index, rng)
        # An affine-invariant predictor: each member has a frame of its own.
        scale = rng.uniform(0.7, 1.0)
        members.append(np.clip(scale * member + rng.uniform(0, 1 - scale), 0, 1))
    stacked = torch.from_numpy(np.stack(members)[:, None]).float()
    return stacked, torch.from_numpy(metres)[None, None].float()


def with_error(member: Map, kind: str, index: int, rng: np.random.Generator) -> Map:
    noise = rng.standard_normal(member.shape)
    if kind == "pixel_noise":
        return member + 0.05 * noise
    member = member + 0.01 * noise
    if kind == "clipping":  # a decoder's output ends at 0 and 1
        low, high = np.quantile(member, [rng.uniform(0, 0.15), 1 - rng.uniform(0, 0.15)])
        return np.clip((member + 0.02 * waves(rng, member.shape) - low) / (high - low), 0, 1)
    amplitude = 0.01 * (1 + index) if kind == "uneven" else 0.04
    return member + amplitude * waves(rng, member.shape)


def waves(rng: np.random.Generator, size: tuple[int, ...]) -> Map:
    coarse = torch.from_numpy(rng.standard_normal((1, 1, 6, 8))).float()
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)[0, 0].numpy()


def scene(rng: np.random.Generator, size: tuple[int, int]) -> Map:
    """Depth in [1, 10] m: a floor that runs into a back wall, two side walls, twelve boxes and balls."""
    y, x = np.mgrid[0 : 1 : size[0] * 1j, 0 : 1 : size[1] * 1j]
    # The floor: the disparity of a plane is linear in the row.
    depth = np.minimum(9.0, 1.5 / (0.15 + np.clip(y - 0.25, 0, 1)))
    depth = np.minimum(depth, 5 + 6 * np.abs(x - rng.uniform(0.2, 0.8)) * rng.uniform(0.5, 1.5))
    for _ in range(12):
        centre, radius = rng.uniform(0, 1, 2), rng.uniform(0.04, 0.2, 2)
        right, down = (x - centre[0]) / radius[0], (y - centre[1]) / radius[1]
        nearest = rng.uniform(1.5, 7)
        if rng.random() < 0.5:
            inside, surface = np.maximum(abs(right), abs(down)) < 1, nearest + rng.uniform(-0.5, 0.5) * right
        else:
            squared = right**2 + down**2
            inside, surface = squared < 1, nearest - 0.4 * np.sqrt(np.clip(1 - squared, 0, 1))
        depth = np.where(inside & (surface < depth), surface, depth)
    return np.clip(depth, 1, 10)
