"""Metric depth by steering the sampler towards known distances: Marigold-DC.

Source: Viola et al., Marigold-DC, ICCV 2025, section 3 and the authors' code. It takes tens of forward and
backward passes through U-Net and decoder per member; `marigold.depth.metric` is the closed form.
"""

import logging
import resource
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from marigold.depth.metric import check_points, sample
from marigold.model.backbone import LATENT_CHANNELS, VAE_FACTOR
from marigold.model.latents import decode_depth, encode_image, pad_to_latent, processing_size, resize
from marigold.model.noise import start_noise
from marigold.model.pipeline import MarigoldDepth
from marigold.types import Prediction

logger = logging.getLogger(__name__)

STEPS = 50
_LATENT_RATE, _AFFINE_RATE = 0.05, 0.005  # as published
_TINY = 1e-8


def guided(
    model: MarigoldDepth,
    image: Float[Tensor, "1 3 H W"],
    points: Float[Tensor, "N 2"],
    metres: Float[Tensor, "N"],
    *,
    steps: int = STEPS,
    ensemble_size: int = 1,
    processing_resolution: int | None = None,
    seed: int = 0,
    name: str = "image",
    shown: bool = False,
) -> Prediction:
    """Sample dense metric depth of an image in [0, 1] that meets a few known distances (planar z).

    `points` are x, y in the image's pixels, (0, 0) is the centre of the first one. Member e starts from the noise of
    (seed, e); the result is the members' median, its uncertainty their median absolute deviation, None for one member.
    `processing_resolution` as in a call of the model; `shown` draws a progress bar. Time and memory are logged. Raises
    ValueError for points that `marigold.metric_depth` refuses, and for a model that cannot be guided.
    """
    check_model(model)
    check_points(image.shape, points, metres, name)
    longest = model.settings.default_processing_resolution if processing_resolution is None else processing_resolution
    size = processing_size(image.shape[-2], image.shape[-1], longest or 0)
    places, known = points.to(model.device), metres.to(model.device, torch.float64)
    least, span = known.min(), known.max() - known.min()
    noise_shape = (LATENT_CHANNELS, -(-size[0] // VAE_FACTOR), -(-size[1] // VAE_FACTOR))
    started = time.perf_counter()

    def predicted(latent: Tensor, affine: Tensor, clipped: bool) -> Float[Tensor, "1 1 H W"]:
        # Bilinear to the image's own size; a^2 (cmax - cmin) d + b^2 cmin, d in [0, 1]
        depth = (decode_depth(model.backbone.vae, latent, clipped=clipped) + 1) / 2
        full = F.interpolate(depth[..., : size[0], : size[1]], image.shape[-2:], mode="bilinear")
        return affine[0] ** 2 * span * full + affine[1] ** 2 * least

    def loss(latent: Tensor, affine: Tensor) -> Tensor:
        # Unclipped: a value beyond the range would lose its gradient.
        found = sample(predicted(latent, affine, False)[0, 0], places)
        return F.l1_loss(found, known) + F.mse_loss(found, known)

    condition = encode_image(model.backbone.vae, pad_to_latent(resize(image.to(model.device) * 2 - 1, size)))
    members = []
    with tqdm(total=ensemble_size * steps, desc=name, leave=False, disable=not shown) as bar:
        for member in range(ensemble_size):
            start = start_noise(seed, member, noise_shape).to(model.device)
            latent, affine = _steered(model, condition, start, steps, loss, bar.update)
            with torch.no_grad():
                members.append(predicted(latent, affine, True).float())
    depth = torch.stack(members).median(0).values
    spread = (torch.stack(members) - depth).abs().median(0).values if ensemble_size > 1 else None
    _state(name, ensemble_size, steps, time.perf_counter() - started, model.device)
    return Prediction(depth, spread, "metric_depth")


def check_model(model: MarigoldDepth) -> None:
    """Raise ValueError for a model that cannot be guided."""
    if model.switches.one_pass:
        raise ValueError(
            f"guided: this model ({model.switches.noise} noise, one pass) has no intermediate latents to "
            "steer; use residual, or a checkpoint that samples from noise in several steps"
        )
    if model.space != "affine_depth":
        raise ValueError(
            f"guided: published for models of affine_depth, this one predicts {model.space}; use residual"
        )


def _steered(
    model: MarigoldDepth,
    condition: Float[Tensor, "1 4 h w"],
    start: Float[Tensor, "1 4 h w"],
    steps: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    tick: Callable[[], object],
) -> tuple[Float[Tensor, "1 4 h w"], Float[Tensor, "2"]]:
    """Run DDIM, moving latent and affine map by Adam before every step; returns the clean latent and (a, b)."""
    diffusion = model.with_spacing("trailing").diffusion
    latent = start.clone().requires_grad_()
    affine = torch.ones(2, dtype=torch.float64, device=start.device, requires_grad=True)
    # One optimiser for the whole run: its moments are carried from step to step.
    optimizer = torch.optim.Adam([{"params": [latent], "lr": _LATENT_RATE}, {"params": [affine], "lr": _AFFINE_RATE}])
    for step in diffusion.steps(steps):
        with torch.enable_grad():
            prediction = model.predict(condition, latent, step.timestep).to(latent.dtype)
            clean, noise = diffusion.separate(prediction, latent, step)
            # Not backward: the weights keep no gradients.
            latent.grad, affine.grad = torch.autograd.grad(loss(clean, affine), [latent, affine])
        # The guidance is as long as the predicted noise.
        latent.grad *= noise.detach().norm() / latent.grad.norm().clamp_min(_TINY)
        optimizer.step()
        with torch.no_grad():
            latent.copy_(diffusion.step(prediction, latent, step))  # the moved latent, the prediction before the move
        tick()
    return latent.detach(), affine.detach()


def _state(name: str, members: int, steps: int, seconds: float, device: torch.device) -> None:
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    logger.info("%s: guided, %d x %d steps, %.1f s, peak memory %.2f GB", name, members, steps, seconds, peak / 1e9)
