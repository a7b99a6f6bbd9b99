"""Known points of a depth map, drawn as a sensor might give them."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.evaluation.errors import EvaluationError

PATTERNS = ("random", "lines", "grid")
_SHRINK = 0.97  # of the pitch, until enough of its places are valid


@dataclass(frozen=True)
class DrawnPoints:
    """`points` in configs/eval.yaml: how many pixels' depth is known, 0 for an ordinary evaluation, and which.

    `pattern` is "random"; "lines", evenly along sqrt(N) / 2 rows, at least 2, as a scanner sees them; or "grid", on
    a square grid whose places without depth stay empty. The seed shifts rows and grid.
    """

    count: int
    seed: int
    pattern: str

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise EvaluationError(f"points.pattern={self.pattern}: expected one of {', '.join(PATTERNS)}")
        if self.count < 0 or self.count == 1:
            raise EvaluationError(f"points.count={self.count}: scale and shift need 2 or more; 0: none are drawn")

    @property
    def name(self) -> str:
        """Suffix of the protocol's name, so that no table mixes results for different points."""
        return f"+{self.count}-{self.pattern}-points-seed{self.seed}"

    def draw(self, valid: Bool[Tensor, "1 H W"], name: str) -> Float[Tensor, "N 2"]:
        """N = `count` of the valid pixels: x, y, the first pixel's centre at (0, 0), a function of (name, seed) alone.

        Raises EvaluationError, naming the sample, for fewer valid pixels than points.
        """
        known = int(valid.count_nonzero())
        if self.count > known:
            raise EvaluationError(f"points.count={self.count}: {name} has {known} pixels with depth")
        # Not by hash(), which Python salts anew in every process.
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
            # It ends: at a pitch of 1 every pixel is a place, as the phase is below 1.
            pitch = [max(1.0, length * _SHRINK) for length in pitch]
