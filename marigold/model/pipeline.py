"""From an image to its depth: resize, encode once, denoise every member, decode, ensemble, resize back."""

import copy
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import MarigoldDepthPipeline
from huggingface_hub import HfApi
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from marigold.depth.ensemble import ensemble_depth
from marigold.model.backbone import (
    LATENT_CHANNELS,
    VAE_FACTOR,
    Backbone,
    BaseModelError,
    empty_prompt_embedding,
    find_folder,
    load_base,
    save_folder,
    task_labels,
)
from marigold.model.diffusion import Diffusion
from marigold.model.latents import (
    choose_batch_size,
    decode_depth,
    encode_image,
    in_batches,
    pad_to_latent,
    processing_size,
    resize,
)
from marigold.model.noise import start_noise
from marigold.model.recipe import Switches
from marigold.model.settings import DepthSettings, read_settings
from marigold.pictures import to_image
from marigold.types import Prediction, Space

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Members:
    """Predictions in [0, 1] before ensembling, B images with E each, and the images' (height, width)."""

    depth: Float[Tensor, "B E 1 h w"]
    size: tuple[int, int]

    def first(self, count: int) -> "Members":
        """Return the first `count` members of every image, as a run with that ensemble size would."""
        return Members(self.depth[:, :count], self.size)


class MarigoldDepth:
    """An affine-invariant depth estimator: a latent diffusion model that is conditioned on an image."""

    def __init__(self, backbone: Backbone, settings: DepthSettings) -> None:
        """Wrap modules without copying them, even during training.

        Raises BaseModelError for a U-Net that does not fit the settings' recipe, such as an image generator's.
        """
        switches, channels = settings.switches, backbone.unet.config["in_channels"]
        if channels != switches.in_channels:
            raise BaseModelError(
                f"this U-Net takes {channels} channels, and a depth model with noise={switches.noise} takes "
                f"{switches.in_channels}: is it an image generator? Fine-tune it with scripts/train.py, give a depth "
                "checkpoint, or name its recipe (recipe=NAME)"
            )
        if switches.reconstruct != (backbone.unet.class_embedding is not None):
            raise BaseModelError(
                f"this U-Net has {'no' if switches.reconstruct else 'a'} task switch (class_embedding); its recipe "
                f"has reconstruct={switches.reconstruct}; name the recipe it was trained with (recipe=NAME)"
            )
        self.backbone = backbone
        self.settings = settings
        self.switches = switches
        config = backbone.scheduler_config
        if switches.prediction != "base":
            config = {**config, "prediction_type": switches.prediction}
        self.diffusion = Diffusion.from_config(config)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        torch_dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        switches: Switches | None = None,
    ) -> "MarigoldDepth":
        """Load a depth checkpoint in diffusers layout from a folder or the Hugging Face hub.

        switches: the recipe of a checkpoint that does not store its own. Raises BaseModelError for a model that is
        missing, incomplete or not a depth estimator, and for `switches` beside a stored recipe; SamplerError for a
        scheduler that is not DDIM-like.
        """
        folder = find_folder(path, revision)
        settings = read_settings(folder, switches)
        return cls(load_base(folder, torch_dtype=torch_dtype), settings)

    def save_pretrained(self, path: str | Path, card: str | None = None) -> Path:
        """Write a complete folder, with `card` as its model card.

        diffusers' own pipeline loads it if it would sample it correctly; see `marigold.model.export`.
        """
        folder = save_folder(self.backbone, path, "MarigoldDepthPipeline", self.settings.index())
        if card is not None:
            (folder / "README.md").write_text(card)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: str | None = None,
        private: bool | None = None,
        commit_message: str = "Upload a Marigold depth model",
        token: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to the Hugging Face hub; returns the commit's address.

        `repo_id` is ORG/NAME, created if missing: `private` or not, None for the organisation's default. `token` is
        needed unless `hf auth login` was run. Raises HfHubHTTPError if the hub refuses.
        """
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save_pretrained(Path(scratch) / "model", card)
            return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message).commit_url

    def to(self, device: torch.device | str) -> "MarigoldDepth":
        """Move the modules to `device`, in place, and return the model."""
        for module in (self.backbone.unet, self.backbone.vae, self.backbone.text_encoder):
            module.to(device)  # type: ignore[arg-type]
        # The embedding and the copy in float32 are on the old device.
        for cached in ("prompt", "_in_float32"):
            self.__dict__.pop(cached, None)
        return self

    @property
    def device(self) -> torch.device:
        """The U-Net's device."""
        return self.backbone.unet.device

    @property
    def default_steps(self) -> int | None:
        """The checkpoint's recommended number of denoising steps; 1 for a model of one pass."""
        return 1 if self.switches.one_pass else self.settings.default_denoising_steps

    @property
    def space(self) -> Space:
        """The space in which predictions are correct up to scale and shift."""
        return self.switches.space

    @torch.no_grad()
    def __call__(
        self,
        image: Image.Image | np.ndarray | Tensor,
        *,
        steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        seed: int = 0,
        latents: Float[Tensor, "N 4 h w"] | None = None,
        batch_size: int | None = None,
        ensemble_method: str = "procrustes",
        reduction: str = "median",
        on_step: Callable[[int], None] | None = None,
    ) -> Prediction:
        """Predict depth in [0, 1] at the image's own size, with an uncertainty if ensembled.

        Near is 0 in the spaces of depth and log depth, 1 in the disparity spaces. A model without noise makes one
        prediction and takes neither `latents` nor members. `image` is any image that `marigold.pictures.to_image`
        takes, or a batch (B, 3, H, W) in [0, 1].
        `steps` and `processing_resolution` (longest edge in pixels; 0 is the image's own) default to the
        checkpoint's recommendation. Member e of every image starts from the noise of (seed, e), or from
        `latents`, (B * ensemble_size, 4, h, w), members of an image together. `batch_size` members are
        computed at once; None chooses it by free memory, and the result changes by rounding only. `on_step` is called
        after each pass of the U-Net with the number of members in it. Raises ValueError, naming the argument, for
        invalid values, and OutOfMemoryError. Source: paper, section 3.4.
        """
        made = self.members(
            image,
            steps=steps,
            ensemble_size=ensemble_size,
            processing_resolution=processing_resolution,
            seed=seed,
            latents=latents,
            # Its solver's finite differences turn a last bit into a tenth of the range; batches change last bits.
            batch_size=1 if batch_size is None and ensemble_method == "diffusers" else batch_size,
            on_step=on_step,
        )
        return self.combine(made, method=ensemble_method, reduction=reduction)

    @torch.no_grad()
    def members(
        self,
        image: Image.Image | np.ndarray | Tensor,
        *,
        steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        seed: int = 0,
        latents: Float[Tensor, "N 4 h w"] | None = None,
        batch_size: int | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> "Members":
        """Predict the members for `combine`, at the processing size; arguments and errors as in a call."""
        batch = self._checked(image)
        self.switches.check_sampling(steps, ensemble_size)
        steps = 1 if self.switches.one_pass else self._or_recommended(steps, "default_denoising_steps", "steps")
        longest = self._or_recommended(processing_resolution, "default_processing_resolution", "processing_resolution")
        for name, value, least in (
            ("steps", steps, 1),
            ("ensemble_size", ensemble_size, 1),
            ("processing_resolution", longest, 0),
            ("batch_size", 1 if batch_size is None else batch_size, 1),
        ):
            if value < least:
                raise ValueError(f"{name} has to be at least {least}, got {value}")
        size = processing_size(batch.shape[-2], batch.shape[-1], longest)
        # Padded and cropped again as in diffusers; stretching to multiples of 8 would change the aspect ratio.
        image_norm = pad_to_latent(resize(batch.to(self.device) * 2 - 1, size))
        start = self._start_noise(image_norm, ensemble_size, seed, latents)
        depth = self._predict(image_norm, start, steps, batch_size, on_step)[..., : size[0], : size[1]]
        return Members(depth.unflatten(0, (len(batch), ensemble_size)), (batch.shape[-2], batch.shape[-1]))

    def combine(self, members: "Members", *, method: str = "procrustes", reduction: str = "median") -> Prediction:
        """Ensemble the members of each image and resize the result to the image's own size."""
        if members.depth.shape[1] == 1:
            return Prediction(resize(members.depth[:, 0], members.size).clip(0, 1), None, self.space)
        pairs = [self._ensemble(depth, method, reduction) for depth in members.depth]
        depth, uncertainty = (resize(torch.cat(parts), members.size) for parts in zip(*pairs, strict=True))
        return Prediction(depth.clip(0, 1), uncertainty, self.space)

    def with_spacing(self, spacing: str) -> "MarigoldDepth":
        """Return the same modules with another timestep spacing, leading or trailing; else raises SamplerError."""
        config = {**self.backbone.scheduler_config, "timestep_spacing": spacing}
        return MarigoldDepth(replace(self.backbone, scheduler_config=config), self.settings)

    def _checked(self, image: Image.Image | np.ndarray | Tensor) -> Float[Tensor, "B 3 H W"]:
        if not isinstance(image, Tensor) or image.ndim != 4:
            return to_image(image)[None]
        if not image.is_floating_point() or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(f"image: a batch is floating point (B, 3, H, W), got {image.dtype} {tuple(image.shape)}")
        low, high = (float(value) for value in image.aminmax())
        # Written so that NaN fails too.
        if not (low >= 0 and high <= 1):
            raise ValueError(f"image: values from {low:g} to {high:g}; expected finite values in [0, 1]")
        return image.float()

    def _or_recommended(self, given: int | None, key: str, name: str) -> int:
        value = getattr(self.settings, key) if given is None else given
        if value is None:
            raise ValueError(f"{name}: the checkpoint has no default ({key}); give {name}")
        return value

    def _start_noise(
        self, image_norm: Tensor, ensemble_size: int, seed: int, latents: Tensor | None
    ) -> Float[Tensor, "N 4 h w"]:
        batch, _, height, width = image_norm.shape
        shape = (LATENT_CHANNELS, height // VAE_FACTOR, width // VAE_FACTOR)
        if self.switches.silent:
            if latents is not None:
                raise ValueError("latents: this model takes no noise")
            return torch.zeros(batch, *shape, device=self.device)  # E2E-FT's input; others use its shape alone
        if latents is not None:
            if latents.shape != (batch * ensemble_size, *shape):
                raise ValueError(
                    f"latents: expected the shape {(batch * ensemble_size, *shape)}, got {tuple(latents.shape)}"
                )
            return latents.to(self.device, torch.float32)
        # The same for every image of a batch: an image's result must not depend on its place there.
        members = [start_noise(seed, member, shape) for member in range(ensemble_size)]
        return torch.cat(members * batch).to(self.device)

    def _predict(
        self,
        image_norm: Tensor,
        start: Tensor,
        steps: int,
        batch_size: int | None,
        on_step: Callable[[int], None] | None = None,
    ) -> Float[Tensor, "N 1 H W"]:
        """Predict depth in [0, 1] of every member; members that overflow half precision are repeated in float32."""
        vae = self.backbone.vae
        if batch_size is None:
            pixels = image_norm.shape[-2] * image_norm.shape[-1]
            batch_size = choose_batch_size(pixels, vae.config["block_out_channels"][0], vae.dtype, self.device)
        # Once per image, however many members and steps read it
        condition = in_batches(lambda part: encode_image(vae, image_norm[part]), len(image_norm), batch_size)
        owner = torch.arange(len(start), device=self.device) // (len(start) // len(image_norm))
        latent = in_batches(
            lambda part: self.denoise(condition[owner[part]], start[part], steps, on_step), len(start), batch_size
        )
        depth = in_batches(lambda part: decode_depth(vae, latent[part]), len(start), batch_size)
        finite = depth.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            bad = (~finite).nonzero().flatten()
            if self.backbone.unet.dtype == vae.dtype == torch.float32:
                raise ValueError(
                    f"the model's prediction is not finite (members {bad.tolist()}); its weights are broken"
                )
            logger.warning("%d of %d members are not finite in %s; again in float32", len(bad), len(depth), vae.dtype)
            # Those members alone: the bits of the others must not depend on them.
            again = self._in_float32._predict(image_norm[owner[bad]], start[bad], steps, batch_size)
            depth[bad] = again * 2 - 1
        return (depth + 1) / 2

    def denoise(
        self,
        condition: Float[Tensor, "N 4 h w"],
        start: Float[Tensor, "N 4 h w"],
        steps: int,
        on_step: Callable[[int], None] | None = None,
    ) -> Float[Tensor, "N 4 h w"]:
        """Denoise each member's start, given its image's latent, to a depth latent in the precision of `start`.

        A model of one pass ignores `steps`. Raises SamplerError for more steps than timesteps.
        """
        switches = self.switches

        def predict(latent: Tensor, timestep: int) -> Tensor:
            predicted = self.predict(condition, latent, timestep)
            if on_step is not None:
                on_step(len(latent))
            return predicted

        if not switches.one_pass:
            return self.diffusion.sample(predict, start, steps)
        total = self.diffusion.num_train_timesteps
        told = switches.timestep(total)  # DepthMaster tells 1, the others the last
        # An input without a signal is at the last noise level, whatever timestep the U-Net is told.
        return self.diffusion.one_pass(
            predict(start, told).to(start.dtype), start, total - 1 if switches.silent else told
        )

    def predict(
        self, condition: Float[Tensor, "N 4 h w"], latent: Float[Tensor, "N 4 h w"], timestep: int
    ) -> Float[Tensor, "N 4 h w"]:
        """Run the U-Net once, in its precision, at a timestep for the images' latents."""
        unet, dtype, switches = self.backbone.unet, self.backbone.unet.dtype, self.switches
        count = latent.shape[0]  # len() would be a constant in an exported graph
        prompt = self.prompt.to(dtype).expand(count, -1, -1)
        task = None
        if switches.reconstruct:
            task = task_labels(1, image=False, device=latent.device).to(dtype).expand(count, -1)
        seen = [condition] if switches.noise == "none" else [condition, latent]
        # Filled in on the device: diffusers copies a number there, and the copy waits for all earlier work.
        at = torch.full((), timestep, device=latent.device)
        given = torch.cat([part.to(dtype) for part in seen], dim=1)
        return unet(given, at, encoder_hidden_states=prompt, class_labels=task, return_dict=False)[0]

    def _ensemble(
        self, members: Float[Tensor, "E 1 H W"], method: str, reduction: str
    ) -> tuple[Float[Tensor, "1 1 H W"], Float[Tensor, "1 1 H W"]]:
        """Ensemble one image; members are aligned in scale and shift as far as the model is invariant to them."""
        scale, shift = self.settings.scale_invariant, self.settings.shift_invariant
        if method == "diffusers":  # the published optimiser, for tables that must match published practice
            return MarigoldDepthPipeline.ensemble_depth(members, scale, shift, True, reduction=reduction)
        if method != "procrustes":
            raise ValueError(f"ensemble_method: expected procrustes or diffusers, got {method!r}")
        alignment = "affine" if shift else "scale" if scale else "none"
        return ensemble_depth(members, reduction=reduction, alignment=alignment)[:2]

    @cached_property
    def prompt(self) -> Float[Tensor, "1 T width"]:
        """The empty prompt, encoded once."""
        tokens = self.switches.prompt_tokens
        return empty_prompt_embedding(self.backbone.text_encoder, self.backbone.tokenizer, tokens).detach()

    @cached_property
    def _in_float32(self) -> "MarigoldDepth":
        """A copy of the model in float32, made when it is first needed."""
        parts: dict[str, Any] = {
            name: copy.deepcopy(getattr(self.backbone, name)).float() for name in ("unet", "vae", "text_encoder")
        }
        return MarigoldDepth(replace(self.backbone, **parts), self.settings)
