"""The valid pixels of two maps, a piece at a time, so that 24 megapixels need no 24 million row copy."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

# Few enough pixels that the dozen float64 temporaries of a piece stay in the processor's cache.
_PIXELS = 2**14


def valid_pieces(
    pred: Float[Tensor, "1 H W"], target: Float[Tensor, "1 H W"], valid: Bool[Tensor, "1 H W"]
) -> Iterator[tuple[Float64[np.ndarray, "N"], Float64[np.ndarray, "N"]]]:
    """Yield the valid pixels of both maps in float64, in order, leaving out pieces without any.

    In numpy, whose logarithm, comparisons and selection take a third of the time of torch's on a CPU; maps on
    another device are copied here, which costs less than what is done with them.
    """
    pred_pixels, target_pixels = _array(pred), _array(target)
    mask = valid.cpu().numpy().reshape(-1)
    for start in range(0, mask.size, _PIXELS):
        piece = slice(start, start + _PIXELS)
        if mask[piece].all():
            yield pred_pixels[piece].astype(np.float64), target_pixels[piece].astype(np.float64)
            continue
        kept = np.flatnonzero(mask[piece])  # selecting by index costs the same for every pattern of the mask
        if kept.size:
            yield (
                pred_pixels[piece].take(kept).astype(np.float64),
                target_pixels[piece].take(kept).astype(np.float64),
            )


def _array(depth: Float[Tensor, "1 H W"]) -> Float[np.ndarray, "N"]:
    depth = depth.detach().cpu()
    # numpy has no bfloat16
    return (depth.float() if depth.dtype == torch.bfloat16 else depth).numpy().reshape(-1)
