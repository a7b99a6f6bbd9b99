"""Photos and depth maps to and from latents, always multiplied by the VAE's scaling factor."""

import torch
from diffusers.models import AutoencoderKL
from jaxtyping import Float
from torch import Tensor


@torch.no_grad()
def encode_image(vae: AutoencoderKL, image_norm: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 4 h w"]:
    """Encode photos in [-1, 1] to the posterior's mean, in the VAE's precision.

    H and W are multiples of 8; h = H / 8. Raises ValueError if they are not.
    """
    height, width = image_norm.shape[-2:]
    if height % 8 or width % 8:
        raise ValueError(f"the VAE takes sides that are multiples of 8, got {height} x {width}; pad first")
    # A sample of the posterior would add noise to the condition; the mean is what the reference trains on.
    mean = vae.encode(image_norm.to(vae.device, vae.dtype)).latent_dist.mode()
    return mean * vae.config["scaling_factor"]


def encode_depth(vae: AutoencoderKL, depth_norm: Float[Tensor, "B 1 H W"]) -> Float[Tensor, "B 4 h w"]:
    """Encode normalised depth in [-1, 1] as a grey picture; sizes and errors as in `encode_image`."""
    return encode_image(vae, depth_norm.expand(-1, 3, -1, -1))


@torch.no_grad()
def decode_depth(vae: AutoencoderKL, depth_latent: Float[Tensor, "B 4 h w"]) -> Float[Tensor, "B 1 H W"]:
    """Decode to normalised depth: the mean of the three channels, clipped to [-1, 1], in float32.

    A value that is not finite stays so, for the caller to see.
    """
    picture = vae.decode(depth_latent.to(vae.device, vae.dtype) / vae.config["scaling_factor"]).sample
    return picture.float().mean(dim=1, keepdim=True).clip(-1, 1)
