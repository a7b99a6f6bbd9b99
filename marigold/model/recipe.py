"""A recipe: the switches by which the published ways of fine-tuning this U-Net differ, as data.

Training reads all of it (configs/recipe/NAME.yaml), and stores it in the checkpoint's model_index.json. Inference
reads a fixed list of plain switches from there: it imports no name and calls nothing that a checkpoint says.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from marigold.depth.mapping import MAPPINGS
from marigold.model.backbone import BaseModelError
from marigold.model.diffusion import PREDICTION_TYPES, SPACINGS
from marigold.types import Space

VERSION = 1
KEY = "marigold_recipe"  # in model_index.json
SILENT = ("none", "zeros")
NOISES = (*SILENT, "gaussian", "multi_resolution", "annealed")
FAR = ("mask", "supervise")
PROMPT_TOKENS = (2, 77)


class RecipeError(ValueError):
    """Switches that make no sense, or not together; the message names them."""


@dataclass(frozen=True)
class Switches:
    """What inference has to know of a recipe.

    mapping: the depth mapping that was trained (`marigold.depth.mapping`). noise: what the U-Net sees beside the image
    latent: nothing (`none`, 4 input channels), zeros, or a noisy latent. timesteps: `uniform` (many steps can be
    taken), or the one that the U-Net was told, a number or `terminal`, the process's last. prediction: what the U-Net
    returns, or `base`: what the scheduler's configuration says. prompt_tokens: the empty prompt's, 2 unpadded or 77
    padded. reconstruct: whether a task switch tells the U-Net to predict depth and not the image (Lotus).
    """

    mapping: str = "depth"
    noise: str = "gaussian"
    timesteps: str = "uniform"
    prediction: str = "base"
    prompt_tokens: int = 2
    reconstruct: bool = False

    def __post_init__(self) -> None:
        """Refuse what has no meaning; raises RecipeError naming the switch."""
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
        """Whether no noise enters, so that a prediction depends on no seed."""
        return self.noise in SILENT

    @property
    def one_pass(self) -> bool:
        """Whether the U-Net is called once, from where nothing is known of the depth."""
        return self.silent or self.timesteps != "uniform"

    @property
    def in_channels(self) -> int:
        """The U-Net's input channels: the image latent, and what `noise` puts beside it."""
        return 4 if self.noise == "none" else 8

    def timestep(self, total: int) -> int:
        """What the one pass tells the U-Net, of a process of `total` timesteps; raises RecipeError beyond its end."""
        if self.timesteps in ("uniform", "terminal"):
            return total - 1
        if int(self.timesteps) >= total:
            raise RecipeError(f"recipe.timesteps={self.timesteps}: the process has {total} timesteps, from 0")
        return int(self.timesteps)


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss: a function as package.module.name, where it compares, its weight, further arguments.

    on: `latents` (prediction and target of the U-Net) or `pixels` (decoded and normalised target, in [-1, 1]).
    """

    term: str
    on: str
    weight: float
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on not in ("latents", "pixels"):
            raise RecipeError(f"recipe.loss: {self.term}: on={self.on}: expected latents or pixels")
        if not 0 <= self.weight < float("inf"):
            raise RecipeError(f"recipe.loss: {self.term}: weight={self.weight}: expected 0 or more")


@dataclass(frozen=True)
class Augmentation:
    """Changed versions of every training sample, `variants` of them; 0 for none. See `marigold.data.augmentation`.

    crop: the smallest share of the sides that a crop keeps, 1 for no crop. photometric: the strength of changes of
    colour, in [0, 1].
    """

    variants: int
    crop: float
    photometric: float

    def __post_init__(self) -> None:
        for key, good in (
            ("variants", self.variants >= 0),
            ("crop", 0 < self.crop <= 1),
            ("photometric", 0 <= self.photometric <= 1),
        ):
            if not good:
                raise RecipeError(f"recipe.augmentation.{key}={getattr(self, key)}: out of its range")


@dataclass(frozen=True)
class Recipe:
    """One row of the table of recipes: `recipe` in configs/train.yaml.

    far: whether known pixels beyond the valid range (the sky) are masked, or supervised as the far end.
    noise_strength: of multi-resolution noise. terminal_share: of the samples, trained at the last timestep instead of
    a uniform one. prediction: as in `Switches`. zero_terminal_snr, timestep_spacing: of the scheduler. reconstruct:
    weight of the image latent as a second task. inherit: every switch but for the loss is that of the base checkpoint.
    """

    name: str
    inherit: bool
    mapping: str
    far: str
    noise: str
    noise_strength: float
    timesteps: str
    terminal_share: float
    prediction: str
    zero_terminal_snr: bool
    timestep_spacing: str
    prompt_tokens: int
    reconstruct: float
    augmentation: Augmentation
    loss: dict[str, LossTerm]

    def __post_init__(self) -> None:
        """Refuse what makes no sense; raises RecipeError naming the switches."""
        silent = self.switches.silent
        latents = any(term.on == "latents" for term in self.loss.values())
        for bad, message in (
            (self.far not in FAR, f"far={self.far}: expected {' or '.join(FAR)}"),
            (self.timestep_spacing not in SPACINGS, f"timestep_spacing={self.timestep_spacing}: expected {SPACINGS}"),
            (not 0 <= self.noise_strength < 1, f"noise_strength={self.noise_strength}: expected at least 0, below 1"),
            (not 0 <= self.terminal_share <= 1, f"terminal_share={self.terminal_share}: expected 0 to 1"),
            (
                self.terminal_share > 0 and self.timesteps != "uniform",
                f"terminal_share={self.terminal_share} does nothing with timesteps={self.timesteps}",
            ),
            (self.reconstruct < 0, f"reconstruct={self.reconstruct}: expected 0 or more"),
            (not self.loss, "loss: no term is left"),
            (
                self.prediction == "epsilon" and self.zero_terminal_snr,
                "prediction=epsilon with zero_terminal_snr=true: nothing but noise is left there to predict from",
            ),
            (
                self.prediction == "epsilon" and silent and latents,
                f"prediction=epsilon with noise={self.noise}: there is no noise to predict",
            ),
            (
                self.reconstruct > 0 and not latents,
                f"reconstruct={self.reconstruct} compares latents, and no term of the loss does",
            ),
        ):
            if bad:
                raise RecipeError(f"recipe {self.name}: {message}")

    @property
    def switches(self) -> Switches:
        """What inference has to know."""
        chosen = {one.name: getattr(self, one.name) for one in fields(Switches)}
        return Switches(**{**chosen, "reconstruct": self.reconstruct > 0})

    @property
    def pixels(self) -> bool:
        """Whether a term compares decoded depth, so that the target's pixels are needed and the VAE's decoder."""
        return any(term.on == "pixels" and term.weight > 0 for term in self.loss.values())

    @property
    def latents(self) -> bool:
        """Whether the depth's latent is needed: as a target, or to add noise to."""
        return not self.switches.silent or any(term.on == "latents" and term.weight > 0 for term in self.loss.values())

    def stored(self) -> dict[str, Any]:
        """The recipe as plain values for model_index.json."""
        return {"version": VERSION, **asdict(self)}


def stored_switches(index: Mapping[str, Any], where: Path) -> Switches:
    """The switches that a model_index.json gives.

    One without a recipe is a model like the paper's: multi-step, depth or disparity by its `prediction_type`. Raises BaseModelError for a recipe of a newer version and for values of the wrong type or without meaning.
    """
    stored = index.get(KEY)
    if stored is None:
        # Folders that are older than diffusers' pipeline do not say it; they are all depth.
        kind = index.get("prediction_type") or "depth"
        if kind not in ("depth", "disparity"):
            raise BaseModelError(f"{where}: the model predicts {kind!r}; this package handles depth and disparity")
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


def stored_recipe(folder: Path) -> dict[str, Any] | None:
    """All that a checkpoint says of its recipe, as plain values, or None; raises BaseModelError for broken JSON."""
    return read_index(folder).get(KEY)


def read_index(folder: Path) -> dict[str, Any]:
    """`folder`/model_index.json; raises BaseModelError for one that is broken."""
    try:
        return json.loads((folder / "model_index.json").read_text())
    except json.JSONDecodeError as error:
        raise BaseModelError(f"{folder / 'model_index.json'} is not JSON: {error}") from error
