"""The valid pixels of two maps, a piece at a time, so that 24 megapixels need no 24 million row copy."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Few enough pixels that a dozen float64 temporaries of a piece stay in the processor's cache.
_PIXELS_CPU = 2**15
_PIXELS_DEVICE = 2**22


def valid_pieces(
    pred: Float[Tensor, "1 H W"], target: Float[Tensor, "1 H W"], valid: Bool[Tensor, "1 H W"]
) -> Iterator[tuple[Float[Tensor, "N"], Float[Tensor, "N"]]]:
    """Yield the valid pixels of both maps in float64, in order, leaving out pieces without any."""
    size = _PIXELS_CPU if pred.device.type == "cpu" else _PIXELS_DEVICE
    for pred_piece, target_piece, mask in zip(
        pred.flatten().split(size), target.flatten().split(size), valid.flatten().split(size), strict=True
    ):
        kept = _true_indices(mask)
        if len(kept):
            yield pred_piece.index_select(0, kept).double(), target_piece.index_select(0, kept).double()


def _true_indices(mask: Bool[Tensor, "N"]) -> Tensor:
    # On the CPU numpy finds them four times as fast, and selecting by index beats selecting by mask.
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero().squeeze(1)
