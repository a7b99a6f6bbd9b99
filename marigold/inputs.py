"""The inputs of a training run: typed settings, data sets and base model, and the identity of the run."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from omegaconf import DictConfig, OmegaConf

from marigold.config import ConfigError, build, choices, swept_overrides, to_dataclass
from marigold.data.base import DepthDataset
from marigold.data.errors import DataError
from marigold.data.latent_cache import CacheConfig, CacheError, LatentCache
from marigold.data.mixture import ExampleSource, Mixture, MixtureDataset
from marigold.data.training_sets import TrainingSet
from marigold.data.transforms import PixelExamples, Transform
from marigold.depth.mapping import MAPPING_OF, MAPPINGS
from marigold.evaluation_set import protocol_for
from marigold.identity import differences, identity, listed, moves_by_rounding
from marigold.model.backbone import Backbone, BaseModelError, find_folder
from marigold.model.base import ModelConfig, base_identity, latents_identity, load_trainable
from marigold.model.recipe import KEY, RecipeError, read_index
from marigold.training.checkpoint import Checkpoint
from marigold.training.recipe import Recipe
from marigold.training.settings import Performance, TrainConfig, TrainingError
from marigold.training.tracking import TrackerConfig
from marigold.validation import Validation, ValidationSet, open_validation_set, validation_nodes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """Recommended settings that a checkpoint stores for its users, and the model card's notes."""

    default_denoising_steps: int
    default_processing_resolution: int
    notes: str


@dataclass(frozen=True)
class Settings:
    """The typed parts of configs/train.yaml; the data sets are built from `data` and `validation.sets`."""

    train: TrainConfig
    model: ModelConfig
    recipe: Recipe
    flip_probability: float
    cache: CacheConfig
    export: Export
    validation: Validation
    tracker: TrackerConfig
    performance: Performance

    @classmethod
    def read(cls, config: DictConfig) -> "Settings":
        """Raises ConfigError for an unknown key, a missing one and a value of the wrong type."""
        # The data sets are left out: they are built one by one, so that one message can name everything missing.
        plain: Any = OmegaConf.to_container(config, resolve=True)
        chosen = {field.name: plain[field.name] for field in fields(cls)}
        chosen["validation"] = {key: value for key, value in plain["validation"].items() if key != "sets"}
        chosen["recipe"] = complete_recipe(plain["recipe"], to_dataclass(ModelConfig, config.model, "model"))
        return to_dataclass(cls, OmegaConf.create(chosen))


def complete_recipe(recipe: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    """The recipe, with the switches of the base checkpoint where it inherits them.

    Raises RecipeError for a base without a recipe, and for a switch that is given though it is inherited.
    """
    if not recipe.get("inherit"):
        return recipe
    own = {"name", "inherit", "loss"}
    if given := sorted(set(recipe) - own):
        raise RecipeError(f"recipe {recipe['name']}: its switches are the base checkpoint's; leave out {given}")
    stored = None if model.maker else read_index(find_folder(model.location, model.revision)).get(KEY)
    # A model trained elsewhere may record how to sample from it but not how it was trained.
    if stored is None or "loss" not in stored:
        raise RecipeError(
            f"recipe {recipe['name']} continues a training, and {model.location} does not say by which recipe it was "
            "made; give model.base=DIR, such as runs/NAME/final of another run"
        )
    return {**{key: value for key, value in stored.items() if key != "version"}, **recipe}


@dataclass(frozen=True)
class Inputs:
    """Everything that a run reads: training and validation sets, the base model, and the stream of micro-batches."""

    sets: list[TrainingSet]
    validation_sets: list[ValidationSet]
    backbone: Backbone
    data: MixtureDataset[Any]


def open_inputs(config: DictConfig, settings: Settings) -> Inputs:
    """Everything that a run needs, built and looked up, or one DataError that names everything missing."""
    settings.recipe.switches.check_sampling(settings.validation.steps, settings.validation.ensemble_size)
    problems: list[str] = []
    sets, backbone = load_inputs(config, settings, problems, files=not settings.cache.enabled)
    validation_sets = []
    protocol = protocol_for(config, settings.recipe.switches.space)
    for name, node in validation_nodes(config, held_out=settings.validation.held_out).items():
        with noted(problems, f"validation on {name}"):
            validation_sets.append(open_validation_set(name, node, protocol, settings.recipe.switches))
    # Last, since it needs everything else: what a cache holds depends on the base and on the sets.
    data = None
    if backbone is not None and not problems:
        with noted(problems, "cache"):
            data = mixture_dataset(settings, sets, backbone)
    if problems or backbone is None or data is None:
        raise cannot_start(problems)
    if not validation_sets:
        logger.warning("no validation and no best/: no training set of this run has a held_out list")
    return Inputs(sets, validation_sets, backbone, data)


def cannot_start(problems: Sequence[str]) -> DataError:
    """One error that names everything missing."""
    return DataError("cannot start:\n" + "\n".join(f"- {problem}" for problem in problems))


def load_inputs(
    config: DictConfig, settings: Settings, problems: list[str], *, files: bool
) -> tuple[list[TrainingSet], Backbone | None]:
    """The training sets of nonzero weight and the base; what is missing or does not fit is added to `problems`.

    files: look every listed file up and read one sample of each set.
    """
    sets = []
    for name, node in config.data.items():
        check_entry(str(name), node)  # even at weight 0: a misspelt key is always an error
        if node.weight == 0:
            continue
        transform = to_dataclass(Transform, node.transform, f"data.{name}.transform")
        with noted(problems, f"training on {name}"):
            samples: DepthDataset = build(node.reader, f"data.{name}.reader")
            mapping = settings.recipe.mapping
            if samples.space not in ("metric_depth", MAPPINGS[mapping].space):
                raise DataError(
                    f"labels in {samples.space} are right up to scale and shift in that quantity, so they can teach "
                    f"recipe.mapping={MAPPING_OF[samples.space]} alone; this run learns recipe.mapping={mapping}"
                )
            if files:
                samples.check_files()
            # Kept as plain values, for a latent cache depends on how its set is read.
            plain: Any = OmegaConf.to_container(node.reader, resolve=True)
            sets.append(
                TrainingSet(str(name), samples, transform, float(node.weight), node.get("licence") or "", plain)
            )
    if not sets and not problems:
        raise ConfigError("data: no training set has a weight above 0")
    backbone = None
    with noted(problems, "model"):
        recipe = settings.recipe
        scheduler = {
            "rescale_betas_zero_snr": recipe.zero_terminal_snr,
            "timestep_spacing": recipe.timestep_spacing,
        }
        backbone = load_trainable(settings.model, recipe.switches, scheduler, settings.train.seed)
    return sets, backbone


REQUIRED = {"reader", "transform", "weight"}
ENTRY = REQUIRED | {"held_out", "licence", "evaluation", "reader_for"}
"""Keys of a training set's entry in `data`."""


def check_entry(name: str, node: Any) -> None:
    """Raises ConfigError naming what is wrong with the keys or the weight of `data.NAME`."""
    if not isinstance(node, DictConfig):
        raise ConfigError(
            f"data.{name}: expected the keys of a training set, got {node!r}; ~data.{name} leaves it out"
        )
    if unknown := sorted(set(map(str, node)) - ENTRY):
        raise ConfigError(f"data.{name}: unknown key(s) {', '.join(unknown)}; known: {', '.join(sorted(ENTRY))}")
    if missing := sorted(key for key in REQUIRED if node.get(key) is None):
        raise ConfigError(f"data.{name}: missing key(s) {', '.join(missing)}")
    if not isinstance(node.weight, (int, float)) or not 0 <= node.weight < math.inf:
        raise ConfigError(f"data.{name}.weight: expected a number of 0 or more, got {node.weight!r}")


@contextmanager
def noted(problems: list[str], what: str) -> Iterator[None]:
    """Note what is missing or broken and continue, so that one message can name everything."""
    try:
        yield
    except (DataError, BaseModelError, CacheError, OSError) as error:
        problems.append(f"{what}: {error}")


def mixture_dataset(settings: Settings, sets: Sequence[TrainingSet], backbone: Backbone) -> MixtureDataset[Any]:
    """The stream of micro-batches, from images or from the cache; raises CacheError for an incomplete one."""
    cache, recipe = settings.cache, settings.recipe
    target = recipe.target(settings.train.seed)
    # Hashing the weights takes seconds, and without a cache nothing compares them.
    vae_hash = latents_identity(backbone.vae) if cache.enabled else ""
    sources: list[ExampleSource[Any]] = []
    for part in sets:
        if cache.enabled:
            stores = part.stores(cache, target, vae_hash, latents=recipe.latents, pixels=recipe.pixels)
            sources.append(LatentCache(part.samples.names, stores))
        else:
            sources.append(PixelExamples(part.samples, part.samples.names, part.transform, target))
    # Every process makes the same one: which micro-batch holds what follows from the seed alone.
    mixture = Mixture(
        [len(part.samples) for part in sets],
        [part.weight for part in sets],
        settings.train.micro_batch,
        settings.flip_probability,
        settings.train.seed,
        target.augmentation.variants,
    )
    return MixtureDataset(mixture, sources)


def run_identity(
    config: DictConfig, recipe: Recipe, sets: Sequence[TrainingSet], backbone: Backbone, accelerator: Accelerator
) -> dict[str, Any]:
    """Everything that the weights depend on; the base and the lists by their content."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    plain["recipe"] = asdict(recipe)  # with the switches that it inherits
    if not plain["cache"]["enabled"]:
        plain["cache"] = {"enabled": False}  # how latents would be stored decides nothing
    plain["data"] = {part.name: plain["data"][part.name] for part in sets}
    facts = {
        "base": base_identity(backbone),
        "precision": accelerator.mixed_precision,
        "precision.setting": config.precision,
        "processes": accelerator.num_processes,
        "device": accelerator.device.type,
        **{f"data.{part.name}.{key}": value for part in sets for key, value in part.samples.content.items()},
    }
    return identity(plain, facts)


def require_same_run(checkpoint: Checkpoint, ours: Mapping[str, Any], folder: Path, steps: int) -> None:
    """Raise TrainingError, naming each changed setting that affects results; log those that only affect rounding."""
    advice = f"Give this run a name of its own, such as name={folder.name}_2, or move {folder} away"
    # Resuming is the same command again: every setting that affects results must be unchanged.
    theirs = checkpoint.metadata.get("identity")
    if theirs is None:
        raise TrainingError(f"{checkpoint.folder} was written by an earlier version and cannot be resumed. {advice}")
    if checkpoint.step > steps:
        raise TrainingError(f"train.steps={steps}: {checkpoint.folder} has more steps already. {advice}")
    # auto takes another precision where the card is another; how a precision was chosen decides nothing.
    automatic = theirs.get("precision.setting") == ours["precision.setting"] == "auto"
    found = [one for one in differences(theirs, ours) if one.key != "precision.setting"]
    rounding = [one for one in found if moves_by_rounding(one.key) or (one.key == "precision" and automatic)]
    refused = [one for one in found if one not in rounding]
    if refused:
        raise TrainingError(f"{folder} holds another run: {listed(refused, 'its checkpoint', 'this run')}. {advice}")
    if rounding:
        logger.warning("resumed with other rounding: %s", listed(rounding, "checkpoint", "now"))


def run_folder(config: DictConfig) -> Path:
    """`run_dir`, else RUNS/NAME, else RUNS/ and the experiments and recipe that were chosen, joined by -.

    In a multirun the swept overrides make it one folder per job.
    """
    swept = swept_overrides()
    # exp, recipe and name are in the name already; run_dir is the place itself.
    others = {key: value for key, value in swept.items() if key not in ("exp", "recipe", "name", "run_dir")}
    # No slash of a value may make a folder.
    values = [f"{key}={value}".replace("/", "_") for key, value in others.items()]
    named = config.run_dir is not None or config.name is not None
    names = [name for group in ("exp", "recipe") if not named or group in swept for name in choices(group)]
    ending = "-".join([*(names if named else ()), *values])
    if config.run_dir is not None:
        return Path(config.run_dir, ending)
    name = config.name or "-".join(names) or "train"
    return Path(config.paths.runs, "-".join(filter(None, (name, ending))))
