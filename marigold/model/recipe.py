"""The part of a training recipe that inference needs: plain switches in the checkpoint's model_index.json.

Only a fixed list of keys is read: no name in a checkpoint is ever imported or called.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from marigold.depth.mapping import MAPPINGS
from marigold.model.backbone import BaseModelError
from marigold.model.diffusion import PREDICTION_TYPES
from marigold.types import Space

VERSION = 1
KEY = "_marigold_recipe"  # in model_index.json; diffusers ignores private keys without a warning
EXPORTED_FROM = "exported_from"  # in the recipe of a folder that `marigold.model.export` made: the original recipe
SILENT = ("none", "zeros")  # GenPercept, DepthMaster and Lotus-D; E2E-FT
NOISES = (*SILENT, "gaussian", "multi_resolution", "annealed")
PROMPT_TOKENS = (2, 77)  # start and end, or CLIP's whole context


class RecipeError(ValueError):
    """Raised for invalid switches, alone or together; the message names them."""


@dataclass(frozen=True)
class Switches:
    """The part of a recipe that inference needs.

    mapping: the depth mapping that was trained (`marigold.depth.mapping`). noise: what the U-Net sees beside the image
    latent: nothing (`none`, 4 input channels), zeros, or a noisy latent. timesteps: `uniform` (many steps can be
    taken), or the one that the U-Net was told, a number or `terminal`, the process's last. prediction: what the U-Net
    returns, or `base`: as in the scheduler's configuration. prompt_tokens: the empty prompt's, 2 unpadded or 77
    padded. reconstruct: whether a task switch tells the U-Net to predict depth and not the image (Lotus).
    """

    mapping: str = "depth"
    noise: str = "gaussian"
    timesteps: str = "uniform"
    prediction: str = "base"
    prompt_tokens: int = 2
    reconstruct: bool = False

    def __post_init__(self) -> None:
        """Raise RecipeError, naming the switch, for invalid values."""
        for key, known in (
            ("mapping", tuple(MAPPINGS)),
            ("noise", NOISES),
            ("prediction", ("base", *PREDICTION_TYPES)),
            ("prompt_tokens", PROMPT_TOKENS),
        ):
            if getattr(self, key) not in known:
                raise RecipeError(f"recipe.{key}={getattr(self, key)}: expected one of {', '.join(map(str, known))}")
        if self.timesteps not in ("uniform", "terminal") and not self.timesteps.isdecimal():
            raise RecipeError(f"recipe.timesteps={self.timesteps}: expected uniform, terminal or a number")

    @property
    def space(self) -> Space:
        """The space of predictions."""
        return MAPPINGS[self.mapping].space

    @property
    def silent(self) -> bool:
        """Whether no noise enters, so that predictions do not depend on a seed."""
        return self.noise in SILENT

    @property
    def one_pass(self) -> bool:
        """Whether the U-Net is called once, from zeros or pure noise."""
        return self.silent or self.timesteps != "uniform"

    @property
    def stock(self) -> bool:
        """Whether diffusers' own Marigold pipeline samples such a model as this package does."""
        known = self.mapping in ("depth", "disparity")  # its `prediction_type` has no other
        return known and not self.one_pass and self.prompt_tokens == 2 and not self.reconstruct

    @property
    def in_channels(self) -> int:
        """The U-Net's input channels: the image latent and, unless `noise` is none, a second latent."""
        return 4 if self.noise == "none" else 8

    def check_sampling(self, steps: int | None, ensemble_size: int) -> None:
        """Raise RecipeError for steps or members that this model cannot use; None is its own number of steps."""
        if self.one_pass and steps not in (None, 1):
            raise RecipeError(f"steps={steps}: this model makes one pass; leave steps out")
        if self.silent and ensemble_size != 1:
            raise RecipeError(
                f"ensemble_size={ensemble_size}: this model takes no noise, so members would be equal; leave it at 1"
            )

    def timestep(self, total: int) -> int:
        """Return the timestep of the one pass in a process of `total`; raises RecipeError beyond its end."""
        if self.timesteps in ("uniform", "terminal"):
            return total - 1
        if int(self.timesteps) >= total:
            raise RecipeError(f"recipe.timesteps={self.timesteps}: the process has {total} timesteps, from 0")
        return int(self.timesteps)


def stored_switches(index: Mapping[str, Any], where: Path) -> Switches:
    """Read the switches from a model_index.json.

    Without a recipe it is a model like the paper's: multi-step, depth or disparity by its `prediction_type`. Raises
    BaseModelError for a recipe of another version and for values that are invalid or of the wrong type.
    """
    stored = index.get(KEY)
    # Folders older than diffusers' pipeline lack the key; they all predict depth.
    kind = index.get("prediction_type") or "depth"
    if kind not in ("depth", "disparity"):
        raise BaseModelError(f"{where}: the model predicts {kind!r}; this package handles depth and disparity")
    if stored is None:
        return Switches(mapping=kind)
    if not isinstance(stored, dict) or stored.get("version") != VERSION:
        version = stored.get("version") if isinstance(stored, dict) else stored
        raise BaseModelError(
            f"{where}: its recipe has version {version!r}, and this package reads {VERSION}; update the package"
        )
    chosen: dict[str, Any] = {}
    for one in fields(Switches):
        value = stored.get(one.name)
        if one.name == "reconstruct" and isinstance(value, (int, float)):
            value = value > 0  # training stores the weight
        if type(value) is not one.type:
            raise BaseModelError(f"{where}: recipe.{one.name} is {value!r}, expected a {one.type}")
        chosen[one.name] = value
    try:
        return Switches(**chosen)
    except RecipeError as error:
        raise BaseModelError(f"{where}: {error}") from error


def read_index(folder: Path) -> dict[str, Any]:
    """`folder`/model_index.json; raises BaseModelError for one that is broken."""
    try:
        return json.loads((folder / "model_index.json").read_text())
    except json.JSONDecodeError as error:
        raise BaseModelError(f"{folder / 'model_index.json'} is not JSON: {error}") from error
