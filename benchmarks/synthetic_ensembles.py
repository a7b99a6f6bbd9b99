"""Ensembles with a known clean map: a scene of floor, walls and objects, seen by members that err in six ways."""

import numpy as np
import torch
from torch import Tensor

KINDS = ("pixel_noise", "low_frequency", "uneven", "clipping", "one_outlier", "three_outliers")
OUTLIERS = {"one_outlier": {3}, "three_outliers": {1, 4, 7}}


def make_ensemble(kind: str, seed: int, size: tuple[int, int], count: int = 10) -> tuple[Tensor, Tensor]:
    """Return members (count, 1, H, W) in [0, 1], each under its own scale and shift, and the clean metres."""
    generator = np.random.default_rng((seed, KINDS.index(kind)))
    metres = _scene(generator, size)
    members = []
    for index in range(count):
        outlier = index in OUTLIERS.get(kind, ())
        member = _unit(_scene(generator, size) if outlier else metres)
        member = _with_error(member, kind, index, generator)
        scale = generator.uniform(0.7, 1.0)
        members.append(np.clip(scale * member + generator.uniform(0, 1 - scale), 0, 1))
    stacked = torch.from_numpy(np.stack(members)[:, None]).float()
    return stacked, torch.from_numpy(metres)[None, None].float()


def _with_error(member: np.ndarray, kind: str, index: int, generator: np.random.Generator) -> np.ndarray:
    noise = generator.standard_normal(member.shape)
    if kind == "pixel_noise":
        return member + 0.05 * noise
    member = member + 0.01 * noise
    if kind == "clipping":
        low, high = np.quantile(member, [generator.uniform(0, 0.15), 1 - generator.uniform(0, 0.15)])
        return np.clip((member + 0.02 * _smooth(generator, member.shape) - low) / (high - low), 0, 1)
    amplitude = 0.01 * (1 + index) if kind == "uneven" else 0.04
    return member + amplitude * _smooth(generator, member.shape)


def _scene(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Depth in [1, 10] m: a floor that runs into a back wall, two side walls, twelve boxes and balls."""
    y, x = np.mgrid[0 : 1 : size[0] * 1j, 0 : 1 : size[1] * 1j]
    depth = np.minimum(9.0, 1.5 / (0.15 + np.clip(y - 0.25, 0, 1)))
    depth = np.minimum(depth, 5 + 6 * np.abs(x - generator.uniform(0.2, 0.8)) * generator.uniform(0.5, 1.5))
    for _ in range(12):
        center, radius = generator.uniform(0, 1, 2), generator.uniform(0.04, 0.2, 2)
        right, down = (x - center[0]) / radius[0], (y - center[1]) / radius[1]
        nearest = generator.uniform(1.5, 7)
        if generator.random() < 0.5:
            inside, surface = np.maximum(abs(right), abs(down)) < 1, nearest + generator.uniform(-0.5, 0.5) * right
        else:
            squared = right**2 + down**2
            inside, surface = squared < 1, nearest - 0.4 * np.sqrt(np.clip(1 - squared, 0, 1))
        depth = np.where(inside & (surface < depth), surface, depth)
    return np.clip(depth, 1, 10)


def _smooth(generator: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    coarse = torch.from_numpy(generator.standard_normal((1, 1, 6, 8))).float()
    return torch.nn.functional.interpolate(coarse, size=size, mode="bicubic", align_corners=False)[0, 0].numpy()


def _unit(depth: np.ndarray) -> np.ndarray:
    return (depth - depth.min()) / np.ptp(depth)
