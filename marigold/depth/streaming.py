"""The valid pixels of two maps, a piece at a time, so that 24 megapixels need no 24 million row copy."""

from collections.abc import Iterator

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
        kept = pred_piece.masked_select(mask)
        if kept.numel():
            yield kept.double(), target_piece.masked_select(mask).double()
