"""Images and depth maps to latents and back: sizes, padding, the VAE, and batches that fit into memory."""

import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from marigold.model.backbone import VAE_FACTOR

logger = logging.getLogger(__name__)

# On a CPU larger batches are no faster, and memory stays small.
CPU_PIXELS = 2**20
# Full-resolution activations of the decoder alive at once; a generous estimate, in_batches handles OOM.
LIVE_ACTIVATIONS = 6


@torch.no_grad()
def encode_image(vae: AutoencoderKL, image_norm: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 4 h w"]:
    """Encode images in [-1, 1] to the posterior's mean, in the VAE's precision.

    H and W are multiples of 8; h = H / 8. Raises ValueError if they are not.
    """
    height, width = image_norm.shape[-2:]
    if height % 8 or width % 8:
        raise ValueError(f"the VAE takes sides that are multiples of 8, got {height} x {width}; pad first")
    # A sample of the posterior would add noise to the condition; the mean is what the reference trains on.
    mean = vae.encode(image_norm.to(vae.device, vae.dtype, non_blocking=True)).latent_dist.mode()
    return mean * vae.config["scaling_factor"]


def encode_depth(vae: AutoencoderKL, depth_norm: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 4 h w"]:
    """Encode normalised depth in [-1, 1] as a grey image; sizes and errors as in `encode_image`."""
    return encode_image(vae, depth_norm.to(vae.device, non_blocking=True).expand(-1, 3, -1, -1))


def decode_depth(
    vae: AutoencoderKL, depth_latent: Float[Tensor, "B 4 h w"], *, clipped: bool = True
) -> Float[Tensor, "B 1 H W"]:
    """Decode to normalised depth: the mean of the three channels, clipped to [-1, 1], in float32.

    Non-finite values are passed on to the caller. Gradients flow except where values are clipped.
    """
    decoded = vae.decode(depth_latent.to(vae.device, vae.dtype) / vae.config["scaling_factor"]).sample
    depth = decoded.float().mean(dim=1, keepdim=True)
    return depth.clip(-1, 1) if clipped else depth


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


class OutOfMemoryError(ValueError):
    """Raised if not even one member fits into the device's memory; the message suggests remedies."""


def choose_batch_size(pixels: int, channels: int, dtype: torch.dtype, device: torch.device) -> int:
    """Estimate how many images of `pixels` the decoder can take at once, at least 1.

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
            logger.warning("out of memory with %d members at once; continuing with %d", size, batch_size)
            torch.cuda.empty_cache()
            continue
        done += size
    return torch.cat(parts)
