"""A training recipe as data: the switches by which the published ways of fine-tuning this U-Net differ.

A row is a file configs/recipe/NAME.yaml; it is stored whole in the checkpoint's model_index.json.
"""

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from marigold.config import choice, to_dataclass
from marigold.data.augmentation import Augmentation
from marigold.data.latent_cache import IMAGE, LATENTS, PIXELS
from marigold.data.transforms import Target
from marigold.model.diffusion import SPACINGS
from marigold.model.recipe import VERSION, RecipeError, Switches

FAR = ("mask", "supervise")


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss: a function as package.module.name, where it compares, its weight, further arguments.

    domain: `latents` (prediction and target of the U-Net) or `pixels` (decoded and normalised target, in [-1, 1]).
    """

    term: str
    domain: str
    weight: float
    options: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.domain not in ("latents", "pixels"):
            raise RecipeError(f"recipe.loss: {self.term}: domain={self.domain}: expected latents or pixels")
        if not 0 <= self.weight < float("inf"):
            raise RecipeError(f"recipe.loss: {self.term}: weight={self.weight}: expected 0 or more")


@dataclass(frozen=True)
class Recipe:
    """One row of the table of recipes: `recipe` in configs/train.yaml.

    far: whether known pixels beyond the valid range (the sky) are masked, or supervised as the far end.
    noise_strength: of multi-resolution noise. terminal_share: of the samples, trained at the last timestep instead of
    a uniform one. prediction: as in `Switches`. zero_terminal_snr, timestep_spacing: of the scheduler. reconstruct:
    weight of the image latent as a second task. inherit: every switch but the loss comes from the base checkpoint.
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
        """Refuse combinations that make no sense; raises RecipeError naming the switches."""
        self.switches  # noqa: B018 - which refuse values of their own
        self.check_prediction(self.prediction)
        for bad, message in (
            (self.far not in FAR, f"far={self.far}: expected {' or '.join(FAR)}"),
            (self.timestep_spacing not in SPACINGS, f"timestep_spacing={self.timestep_spacing}: expected {SPACINGS}"),
            # Level i of multi-resolution noise has the weight strength^i, which has to fall.
            (not 0 <= self.noise_strength < 1, f"noise_strength={self.noise_strength}: expected at least 0, below 1"),
            (not 0 <= self.terminal_share <= 1, f"terminal_share={self.terminal_share}: expected 0 to 1"),
            (
                self.terminal_share > 0 and self.timesteps != "uniform",
                f"terminal_share={self.terminal_share} does nothing with timesteps={self.timesteps}",
            ),
            (self.reconstruct < 0, f"reconstruct={self.reconstruct}: expected 0 or more"),
            (not (self.latent_terms or self.pixels), "loss: no term is left"),
        ):
            if bad:
                raise RecipeError(f"recipe {self.name}: {message}")

    def check_prediction(self, prediction: str) -> None:
        """Raise RecipeError if a U-Net that returns `prediction` (for `base`: the base's kind) cannot be trained."""
        if prediction != "epsilon":
            return
        # abar = 0 at T: x_T is the noise itself, and its prediction says nothing of x0 (Lin et al., WACV 2024, 3.2).
        if self.zero_terminal_snr:
            raise RecipeError(
                f"recipe {self.name}: prediction=epsilon with zero_terminal_snr=true: nothing but noise is left there "
                "to predict from"
            )
        # Pixels can still be compared: x0 follows from what is predicted, whatever that is.
        if self.switches.silent and self.latent_terms:
            raise RecipeError(
                f"recipe {self.name}: prediction=epsilon with noise={self.noise}: there is no noise to predict; take "
                "recipe.prediction=v_prediction or sample"
            )

    @cached_property
    def switches(self) -> Switches:
        """The switches that inference needs."""
        # The weight of the second task matters to training alone; whether there is one decides the U-Net's inputs.
        chosen = {one.name: getattr(self, one.name) for one in fields(Switches)}
        return Switches(**{**chosen, "reconstruct": self.reconstruct > 0})

    @property
    def latent_terms(self) -> bool:
        """Whether a term compares latents."""
        return any(term.domain == "latents" and term.weight > 0 for term in self.loss.values())

    @property
    def pixels(self) -> bool:
        """Whether a term compares decoded depth, so that the target's pixels are needed and the VAE's decoder."""
        return any(term.domain == "pixels" and term.weight > 0 for term in self.loss.values())

    @property
    def latents(self) -> bool:
        """Whether the depth's latent is needed: as a target, or to add noise to."""
        return not self.switches.silent or self.latent_terms

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """The parts of a batch that the loss needs."""
        return (*IMAGE, *(LATENTS if self.latents else ()), *(PIXELS if self.pixels else ()))

    def target(self, seed: int) -> Target:
        """The training target of a sample; `seed` decides the augmentation's draws."""
        return Target(self.mapping, self.far, self.augmentation, seed)

    def stored(self) -> dict[str, Any]:
        """The recipe as plain values for model_index.json."""
        return {"version": VERSION, **asdict(self)}


def named_switches(name: str | None) -> Switches | None:
    """The switches of `configs/recipe/NAME.yaml`, for a model that does not store its own; None for None."""
    return None if name is None else to_dataclass(Recipe, choice("recipe", name), "recipe").switches
