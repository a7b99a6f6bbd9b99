"""Known points of a depth map, drawn as a sensor might give them."""

import zlib

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.evaluation.errors import EvaluationError

PATTERNS = ("random", "lines", "grid")
_SHRINK = 0.97  # of the pitch, until enough of its places are valid


def draw_points(
    valid: Bool[Tensor, "1 H W"], count: int, pattern: str, seed: int, name: str = ""
) -> Float[Tensor, "N 2"]:
    """Draw N = `count` valid pixels: x, y with the first pixel's centre at (0, 0), a function of (name, seed) alone.

    `pattern` is "random"; "lines", evenly along sqrt(N) / 2 rows, at least 2, as a scanner sees them; or "grid", on
    a square grid whose places without depth stay empty. The seed shifts rows and grid. Raises EvaluationError, naming
    the sample, for an unknown pattern and for fewer valid pixels than points.
    """
    if pattern not in PATTERNS:
        raise EvaluationError(f"points.pattern={pattern}: expected one of {', '.join(PATTERNS)}")
    known = int(valid.count_nonzero())
    if not 1 <= count <= known:
        raise EvaluationError(f"points.count={count}: {name or 'the image'} has {known} pixels with depth")
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    mask = valid[0].cpu().numpy()
    if pattern == "random":
        y, x = mask.nonzero()
        picked = generator.choice(len(y), count, replace=False)
    else:
        y, x = _on_a_lattice(mask, count, pattern, generator.random(2))
        picked = np.linspace(0, len(y) - 1, count).round().astype(int)
    return torch.from_numpy(np.stack([x[picked], y[picked]], 1)).float()


def _on_a_lattice(mask: np.ndarray, count: int, pattern: str, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of at least `count` valid pixels on lines or a grid."""
    height, width = mask.shape
    pitch = [height / max(2, round(count**0.5 / 2)), 1.0]
    if pattern == "grid":
        pitch = [(height * width / count) ** 0.5] * 2
    while True:
        rows, columns = (
            np.arange(share * length, size, length).astype(int)
            for share, length, size in zip(phase, pitch, mask.shape, strict=True)
        )
        y, x = mask[np.ix_(rows, columns)].nonzero()
        if len(y) >= count:
            return rows[y], columns[x]
        # It ends: at a pitch of 1 every pixel is a place, as the phase is below 1.
        pitch = [max(1.0, length * _SHRINK) for length in pitch]
