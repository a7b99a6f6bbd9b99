"""Draw why the usual ensembling objective has no useful minimum; writes docs/images/ensembling_degeneracy.png."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from benchmarks.synthetic_ensembles import KINDS, make_ensemble

REGULARISER = 0.02  # the published weight
FINITE_DIFFERENCE = 1.5e-8  # scipy's default step
SIZE = (120, 160)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py degeneracy", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/images/ensembling_degeneracy.png"))
    options = parser.parse_args(argv)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    factors = np.logspace(-4, 0.3, 40)
    for kind in KINDS:
        members, _ = make_ensemble(kind, 0, SIZE)
        scale, shift = _start(members)
        costs = [_objective(members, factor * scale, factor * shift) for factor in factors]
        print(f"{kind:16s} cost at the start {_objective(members, scale, shift):.3f}, at factor 1e-4 {costs[0]:.4f}")
        left.loglog(factors, costs, label=kind.replace("_", " "))
    left.axhline(REGULARISER, color="grey", linestyle=":", linewidth=1)
    left.set(xlabel="all scales and shifts times this factor", ylabel="objective", title="Shrinking everything pays")
    left.legend(fontsize=7)

    members, _ = make_ensemble("low_frequency", 0, SIZE)
    steps = np.logspace(-9, -2, 60)
    right.semilogx(steps, _slopes(members, steps), label="float32 maps")
    right.semilogx(steps, _slopes(members.double(), steps), label="float64 maps")
    right.axvline(FINITE_DIFFERENCE, color="grey", linestyle=":", linewidth=1, label="scipy's step")
    right.set(
        xlabel="finite-difference step", ylabel="slope along the first scale", title="The gradient that BFGS gets"
    )
    right.legend(fontsize=7)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=110)
    print(f"wrote {options.output}")


def _start(members: Tensor) -> tuple[Tensor, Tensor]:
    low, high = members.amin((1, 2, 3)), members.amax((1, 2, 3))
    return 1 / (high - low), -low / (high - low)


def _objective(members: Tensor, scale: Tensor, shift: Tensor) -> float:
    """Sum of pairwise RMSE plus the pull of the median's ends to 0 and 1 (Ke et al., 2024, section 3.3)."""
    aligned = members.flatten(1) * scale[:, None] + shift[:, None]
    pairs = torch.combinations(torch.arange(len(aligned)))
    disagreement = sum(float((aligned[i] - aligned[j]).square().mean().sqrt()) for i, j in pairs.tolist())
    median = aligned.median(0).values
    return disagreement + REGULARISER * float(median.min().abs() + (1 - median.max()).abs())


def _slopes(members: Tensor, steps: np.ndarray) -> list[float]:
    scale, shift = _start(members)
    start, slopes = _objective(members, scale, shift), []
    for step in steps:
        moved = scale.double().clone()  # on float64 maps .double() is the same tensor
        moved[0] += step
        slopes.append((_objective(members, moved.to(members), shift) - start) / step)
    return slopes
