"""From a picture's size to the one that the model sees, and back."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from marigold.model.backbone import VAE_FACTOR


def processing_size(height: int, width: int, longest: int) -> tuple[int, int]:
    """Height and width after resizing so that the longest edge is `longest` (0: unchanged), rounded down.

    The shorter edge of an extreme aspect ratio keeps at least one pixel.
    """
    if longest == 0:
        return height, width
    edge = max(height, width)
    return max(1, height * longest // edge), max(1, width * longest // edge)


def resize(values: Float[Tensor, "B C H W"], size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """Resize bilinearly, with an antialiasing filter where it shrinks."""
    if values.shape[-2:] == size:
        return values
    return F.interpolate(values, size, mode="bilinear", antialias=True)


def pad_to_latent(image_norm: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 h w"]:
    """Repeat the last row and column until both sides are multiples of 8."""
    height, width = image_norm.shape[-2:]
    return F.pad(image_norm, (0, -width % VAE_FACTOR, 0, -height % VAE_FACTOR), mode="replicate")
