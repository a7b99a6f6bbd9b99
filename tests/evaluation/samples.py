"""What the tests of this folder share: samples, and the plainest protocol."""

import torch

from marigold.evaluation.fits import LeastSquares
from marigold.evaluation.protocol import Benchmark, Protocol
from marigold.types import DepthSample

PLAIN = Protocol("p", ("affine_depth",), LeastSquares(quantity="depth"), False, Benchmark())


def sample(seed=0, height=24, width=32):
    """Noise from 0.5 m to 9.5 m, a fifth of it unknown, and an image of noise."""
    generator = torch.Generator().manual_seed(seed)
    depth = 0.5 + 9 * torch.rand(1, height, width, generator=generator)
    valid = torch.rand(1, height, width, generator=generator) > 0.2
    return DepthSample(f"s{seed}", torch.rand(3, height, width, generator=generator), depth * valid, valid)
