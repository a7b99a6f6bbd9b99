"""Known points of a depth map, sampled in the pattern of a sensor."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.evaluation.errors import EvaluationError

PATTERNS = ("random", "lines", "grid")
_SHRINK = 0.97  # factor on the pitch, repeated until enough lattice points are valid


@dataclass(frozen=True)
class DrawnPoints:
    """`points` in configs/eval.yaml: number and pattern of the pixels with known depth; 0 is an ordinary evaluation.

    `pattern`: "random"; "lines", evenly along sqrt(N) / 2 rows (at least 2), like a laser scanner; or "grid", a square
    grid without its invalid places. The seed shifts rows and grid.
    """

    count: int
    seed: int
    pattern: str

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise EvaluationError(f"points.pattern={self.pattern}: expected one of {', '.join(PATTERNS)}")
        if self.count < 0 or self.count == 1:
            raise EvaluationError(f"points.count={self.count}: scale and shift need 2 or more; 0 draws none")

    @property
    def name(self) -> str:
        """Suffix of the protocol's name, so that no table mixes results for different points."""
        return f"+{self.count}-{self.pattern}-points-seed{self.seed}"

    def draw(self, valid: Bool[Tensor, "1 H W"], name: str) -> Float[Tensor, "N 2"]:
        """Draw N = `count` valid pixels: x, y with the first pixel's centre at (0, 0), a function of (name, seed).

        Raises EvaluationError, naming the sample, if it has fewer valid pixels.
        """
        known = int(valid.count_nonzero())
        if self.count > known:
            raise EvaluationError(f"points.count={self.count}: {name} has {known} pixels with depth")
        # Not hash(), which Python salts per process.
        generator = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        mask = valid[0].cpu().numpy()
        if self.pattern == "random":
            y, x = mask.nonzero()
            picked = generator.choice(len(y), self.count, replace=False)
        else:
            y, x = self._on_a_lattice(mask, generator.random(2))
            picked = np.linspace(0, len(y) - 1, self.count).round().astype(int)
        return torch.from_numpy(np.stack([x[picked], y[picked]], 1)).float()

    def _on_a_lattice(self, mask: np.ndarray, phase: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and columns of at least `count` valid pixels on lines or a grid."""
        height, width = mask.shape
        pitch = [height / max(2, round(self.count**0.5 / 2)), 1.0]
        if self.pattern == "grid":
            pitch = [(height * width / self.count) ** 0.5] * 2
        while True:
            rows, columns = (
                np.arange(share * length, size, length).astype(int)
                for share, length, size in zip(phase, pitch, mask.shape, strict=True)
            )
            y, x = mask[np.ix_(rows, columns)].nonzero()
            if len(y) >= self.count:
                return rows[y], columns[x]
            # Terminates: at a pitch of 1 every pixel is on the lattice, as the phase is below 1.
            pitch = [max(1.0, length * _SHRINK) for length in pitch]
