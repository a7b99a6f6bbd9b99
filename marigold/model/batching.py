"""Many members through a network that fits a few at a time, on a device of unknown free memory."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Larger batches stop being quicker on a processor well before this many pixels, and memory stays small.
CPU_PIXELS = 2**20
# Full-resolution activations of the decoder that are alive at once; measured generously, OOM is backed off.
LIVE_ACTIVATIONS = 6


class OutOfMemoryError(ValueError):
    """Not even one member fits into the device's memory; the message says what would help."""


def choose_batch_size(pixels: int, channels: int, dtype: torch.dtype, device: torch.device) -> int:
    """Estimate how many pictures of `pixels` the decoder can take at once, at least 1.

    `channels` is the width of the decoder's last level. On a GPU half of the free memory is planned for.
    """
    if device.type != "cuda":
        return max(1, CPU_PIXELS // pixels)
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int(free / 2) // (pixels * channels * dtype.itemsize * LIVE_ACTIVATIONS))


def in_batches(function: Callable[[slice], Tensor], count: int, batch_size: int) -> Tensor:
    """Concatenate `function` of consecutive slices of 0..count, with smaller slices if memory runs out.

    Raises OutOfMemoryError if a slice of one does not fit.
    """
    parts: list[Tensor] = []
    done = 0
    while done < count:
        size = min(batch_size, count - done)
        failed = False
        try:
            parts.append(function(slice(done, done + size)))
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise OutOfMemoryError(
                    "out of memory with a single member at a time; use a smaller processing_resolution or a "
                    f"half-precision torch_dtype ({str(error).splitlines()[0]})"
                ) from error
            failed = True
        # Outside of the handler, whose traceback keeps the failed call's tensors alive.
        if failed:
            batch_size = size // 2
            logger.warning("out of memory with %d members at once; going on with %d", size, batch_size)
            torch.cuda.empty_cache()
            continue
        done += size
    return torch.cat(parts)
