"""Pretraining of the tiny base: images of rooms, a VAE that reconstructs them, a U-Net that generates them.

No depth map is seen; noise schedule and v-prediction are Stable Diffusion 2's. The result is a small stand-in for the
image generator that the method starts from. `scripts/pretrain_tiny.py` runs the stages.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers.models import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from marigold.miniature.rooms.write import Rendering, RoomsSize, expose, room_views, run_scenes, street_views
from marigold.model.backbone import Backbone, empty_prompt_embedding
from marigold.model.diffusion import Diffusion


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of `configs/pretrain_tiny.yaml`; `*_weight` are the weights of the VAE's loss."""

    out: str
    work: str
    seed: int
    workers: int
    room_scenes: int
    street_scenes: int
    room_size: tuple[int, int]
    street_size: tuple[int, int]
    unet_channels: tuple[int, int, int]
    vae_channels: tuple[int, int, int, int]
    vae_steps: list[int]
    vae_batch: int
    vae_crop: int
    vae_lr: list[float]
    kl_weight: float
    gradient_weight: float
    unet_steps: list[int]
    unet_batch: int
    unet_lr: list[float]
    ema_decay: float


def render_images(config: PretrainConfig) -> dict[str, np.ndarray]:
    """Two arrays of 8-bit images (N, H, W, 3), of scenes that are in no training or test set."""
    size = RoomsSize(0, 0, 0, 0, 0, 2, config.room_size, config.street_size, seed=config.seed)
    rendered = {}
    for kind, views, count in (
        ("rooms", room_views, config.room_scenes),
        ("streets", street_views, config.street_scenes),
    ):
        file = Path(config.work) / f"{kind}.npy"
        if not file.exists():
            jobs = [functools.partial(_images_of, views, size, scene) for scene in range(count)]
            scenes = run_scenes(jobs, config.workers, f"render {kind}")
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file, np.concatenate(scenes))
        rendered[kind] = np.load(file)
    return rendered


def _images_of(views: Callable[[str, int, RoomsSize], list[Rendering]], size: RoomsSize, scene: int) -> np.ndarray:
    return np.stack([expose(view.colour) for view in views("photos", scene, size)])


def draw(rendered: dict[str, np.ndarray], batch: int, crop: int, rng: np.random.Generator) -> Tensor:
    """A batch of square crops in [-1, 1], flipped at random; every fifth batch shows streets."""
    # Whole batches of one kind, as the two differ in size.
    known = rendered["streets" if rng.random() < 0.2 else "rooms"]
    height, width = known.shape[1:3]
    crops = []
    for index in rng.integers(len(known), size=batch):
        top, left = rng.integers(height - crop + 1), rng.integers(width - crop + 1)
        crops.append(known[index, top : top + crop, left : left + crop])
    chosen = np.stack(crops)
    if rng.random() < 0.5:
        chosen = chosen[:, :, ::-1]
    return torch.from_numpy(chosen.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def vary(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Augmentation for the VAE, drawn per batch: styles that the renderer does not have."""
    # Depth maps are smooth, grey and sharp at edges: cartoons, grey images, negatives and blur teach the VAE to
    # reconstruct such images without having seen a depth map.
    if rng.random() < 0.2:
        images = cartoon(images, rng)
    if rng.random() < 0.3:
        images = images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    if rng.random() < 0.15:
        images = -images
    if rng.random() < 0.15:
        small = F.interpolate(images, scale_factor=1 / int(rng.integers(2, 9)), mode="area")
        images = F.interpolate(small, size=images.shape[-2:], mode="bilinear", align_corners=False)
    return images


def cartoon(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image cut along its levels of brightness into 2 to 5 parts, each painted with one gradient."""
    batch, _, height, width = images.shape
    levels = int(rng.integers(2, 6))
    grey = F.avg_pool2d(images.mean(dim=1, keepdim=True), 9, stride=1, padding=4, count_include_pad=False)
    # Levels of the ranks, so that all parts have the same number of pixels whatever the exposure.
    rank = grey.flatten(1).argsort(dim=1).argsort(dim=1).view_as(grey)
    part = rank * levels // (height * width)
    x, y = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height).view(-1, 1)
    paint = torch.from_numpy(rng.uniform(-1, 1, (batch, levels, 3, 3)).astype(np.float32))
    grey_only = torch.from_numpy(rng.random((batch, 1, 1, 1)) < 0.6)
    paint = torch.where(grey_only, paint[:, :, :1], paint)
    colour, across, down = ((paint[..., k])[..., None, None] for k in range(3))
    gradient = (colour + 0.7 * (across * x + down * y)).clamp(-1, 1)  # (B, levels, 3, H, W)
    return gradient.gather(1, part[:, None].expand(-1, 1, 3, -1, -1))[:, 0]


def gradients(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences (B, C, H, W - 1) and (B, C, H - 1, W) between neighbouring pixels."""
    return images[..., 1:] - images[..., :-1], images[..., 1:, :] - images[..., :-1, :]


def optimise(
    name: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    warm: float,
    loss_of: Callable[[], Tensor],
    *,
    average: AveragedModel | None = None,
    quiet: bool = False,
) -> dict[str, float]:
    """Minimise `loss_of()` for `steps` steps and one cycle of the learning rate, which rises for the share `warm`.

    `average` follows the weights. Returns the minutes and a running mean of the loss, by name.
    """
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], steps, pct_start=warm)
    module.train()
    start, recent = time.time(), 0.0
    for step in (bar := tqdm(range(steps), desc=name, mininterval=20, disable=quiet)):
        loss = loss_of()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if average is not None:
            average.update_parameters(module)
        if step % 50 == 0:
            recent = 0.9 * recent + 0.1 * loss.item() if step else loss.item()
            bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
    module.eval()
    return {f"{name}_minutes": (time.time() - start) / 60, f"{name}_loss": recent}


def train_vae(
    vae: AutoencoderKL, rendered: dict[str, np.ndarray], config: PretrainConfig, cycle: int
) -> dict[str, float]:
    """Reconstruction: L1 on pixels and on their gradients, and a small KL term; one cycle of the learning rate."""
    rng = np.random.default_rng([config.seed, 1, cycle])
    noise = torch.Generator().manual_seed(config.seed)
    optimizer = torch.optim.AdamW(vae.parameters(), config.vae_lr[cycle], betas=(0.9, 0.99), weight_decay=1e-4)

    def loss_of() -> Tensor:
        images = vary(draw(rendered, config.vae_batch, config.vae_crop, rng), rng)
        with torch.autocast("cpu", torch.bfloat16):  # 1.7 times as fast on two cores with AVX512-BF16
            posterior = vae.encode(images).latent_dist
            output = vae.decode(posterior.sample(generator=noise)).sample.float()
        # |x - y| + (x - y)^2 + gradient_weight |grad x - grad y| + kl_weight KL(q(z | y) || N(0, 1)): the absolute
        # error keeps edges sharp; the gradient's replaces a perceptual loss, which needs a trained network.
        loss = F.l1_loss(output, images) + F.mse_loss(output, images)
        for ours, theirs in zip(gradients(output), gradients(images), strict=True):
            loss = loss + config.gradient_weight * F.l1_loss(ours, theirs)
        # The KL is a sum over latent entries; divided by the number of pixels it does not depend on the crop's size.
        return loss + config.kl_weight * posterior.kl().float().mean() / images[0].numel()

    return optimise(f"vae_{cycle}", vae, optimizer, config.vae_steps[cycle], 0.05, loss_of)


@torch.no_grad()
def encode(vae: AutoencoderKL, rendered: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Unscaled latents of every image and of its mirror image."""
    latents = {}
    for kind, images in rendered.items():
        parts = []
        for part in tqdm(np.array_split(images, -(-len(images) // 32)), desc=f"encode {kind}", mininterval=20):
            batch = torch.from_numpy(part).permute(0, 3, 1, 2).float() / 127.5 - 1
            parts += [vae.encode(torch.cat([batch, batch.flip(-1)])).latent_dist.mode()]
        latents[kind] = torch.cat(parts)
    return latents


def train_unet(
    backbone: Backbone, latents: dict[str, Tensor], config: PretrainConfig, cycle: int, accelerator: Accelerator
) -> dict[str, float]:
    """Denoising with v-prediction, one cycle of the learning rate; the moving average of the weights is kept."""
    unet, diffusion = backbone.unet, Diffusion.from_config(backbone.scheduler_config)
    rank = accelerator.process_index
    prompt = empty_prompt_embedding(backbone.text_encoder, backbone.tokenizer)
    rng = np.random.default_rng([config.seed, 2, cycle, rank])
    generator = torch.Generator().manual_seed(config.seed + cycle + 1000 * rank)
    optimizer = torch.optim.AdamW(unet.parameters(), config.unet_lr[cycle], weight_decay=1e-3, fused=True)
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay))
    predict = accelerator.prepare_model(unet)  # averages the gradients of all processes

    def loss_of() -> Tensor:
        known = latents["streets" if rng.random() < 0.15 else "rooms"]
        clean = known[torch.from_numpy(rng.integers(len(known), size=config.unet_batch))]
        # Predict v = sqrt(a) noise - sqrt(1 - a) x (Salimans and Ho 2022, section 4) at x_t of a uniform timestep.
        noise = torch.randn(clean.shape, generator=generator)
        t = torch.randint(0, diffusion.num_train_timesteps, (len(clean),), generator=generator)
        output = predict(diffusion.add_noise(clean, noise, t), t, prompt.expand(len(clean), -1, -1)).sample
        return F.mse_loss(output, diffusion.target(clean, noise, t))

    steps, quiet = config.unet_steps[cycle], rank > 0
    metrics = optimise(f"unet_{cycle}", unet, optimizer, steps, 0.03, loss_of, average=average, quiet=quiet)
    unet.load_state_dict(average.module.state_dict())
    return metrics


@torch.no_grad()
def reconstruction_metrics(vae: AutoencoderKL, config: PretrainConfig) -> dict[str, float]:
    """PSNR in dB and mean absolute error of reconstruction, on new images and on normalised depth maps."""
    size = RoomsSize(0, 0, 0, 0, 0, 1, config.room_size, config.street_size, seed=config.seed + 1)
    views = [room_views("photos", scene, size)[0] for scene in range(32)]
    rendered = torch.from_numpy(np.stack([expose(view.colour) for view in views])).permute(0, 3, 1, 2) / 127.5 - 1
    depth = torch.from_numpy(np.stack([view.depth for view in views]))[:, None]
    low, high = (torch.quantile(depth.flatten(1), q, dim=1).view(-1, 1, 1, 1) for q in (0.02, 0.98))
    # Normalised as in training: the 2 % and 98 % quantiles go to -1 and 1 (Ke et al. 2024, eq. 3).
    depth = ((depth - low) / (high - low) * 2 - 1).clip(-1, 1).expand(-1, 3, -1, -1)
    metrics = {}
    for name, images in (("photo", rendered), ("depth", depth)):
        output = vae.decode(vae.encode(images).latent_dist.mode()).sample
        if name == "depth":
            output, images = output.mean(dim=1), images[:, 0]
        # 10 log10(peak^2 / error^2); values in [-1, 1] have a peak of 2.
        metrics[f"{name}_psnr_db"] = (10 * torch.log10(4 / F.mse_loss(output, images))).item()
        metrics[f"{name}_mean_abs_error"] = F.l1_loss(output, images).item()
    return metrics
