"""Validation of a training run: its data sets, sampler, and the metric that selects the best checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from marigold.config import ConfigError
from marigold.evaluation import panels
from marigold.evaluation.protocol import Protocol
from marigold.evaluation.rows import Predict, evaluate, gather_rows, share, summarise
from marigold.evaluation_set import Samples, changed, make_protocol, open_samples
from marigold.identity import fingerprint, identity
from marigold.model.pipeline import MarigoldDepth
from marigold.model.recipe import Switches
from marigold.model.settings import Sampling

METRICS = ("abs_rel", "delta1")  # as in the published tables; the first selects best/ unless train.select_by is given


@dataclass(frozen=True)
class Validation:
    """How the model is sampled in validation; `panel` images of the first set are drawn.

    `held_out`: the lists that the training sets hold out are validated on.
    """

    held_out: bool
    steps: int
    ensemble_size: int
    seed: int
    panel: int

    def __post_init__(self) -> None:
        """Raises ConfigError for invalid values."""
        for key in ("steps", "ensemble_size"):
            if getattr(self, key) < 1:
                raise ConfigError(f"validation.{key}={getattr(self, key)}: expected at least 1")


@dataclass(frozen=True)
class ValidationSet:
    """A named set of samples, the settings that determine them, and the protocol that evaluates them."""

    name: str
    samples: Samples
    reader: Mapping[str, Any]
    protocol: Protocol


def validation_nodes(config: DictConfig, *, held_out: bool) -> dict[str, DictConfig]:
    """The held-out list of each training set that has one, as a data set of its own, then `validation.sets`."""
    nodes = {}
    for name, node in config.data.items() if held_out else ():
        if node.weight > 0 and node.get("held_out"):
            held_out_node = OmegaConf.masked_copy(node, ["evaluation", "reader_for"])
            held_out_node.reader = changed(node.reader, node.held_out, node)
            held_out_node._set_parent(config)  # so that interpolations resolve
            nodes[str(name)] = held_out_node
    return {**nodes, **{str(name): node for name, node in config.validation.sets.items()}}


def open_validation_set(name: str, node: DictConfig, protocol: DictConfig, switches: Switches) -> ValidationSet:
    """A data set to validate on; raises DataError as `open_samples` does."""
    made = make_protocol(protocol, node)
    made.require_space(switches.space)  # before thousands of files are checked
    samples, read = open_samples(node, protocol.name, f"validation.{name}.reader")
    return ValidationSet(name, samples, read, made)


def chosen_metric(select_by: str | None, sets: Sequence[ValidationSet]) -> str | None:
    """The metric that selects best/: the given one, else AbsRel on the first set; None without sets."""
    if select_by is None:
        return f"{sets[0].name}/{METRICS[0]}" if sets else None
    known = [f"{part.name}/{metric}" for part in sets for metric in METRICS]
    if select_by not in known:
        raise ConfigError(f"train.select_by={select_by}: no validation set gives that; there are {', '.join(known)}")
    return select_by


def lists_of(sets: Sequence[ValidationSet], how: Validation) -> str:
    """A hash of the sets and settings of validation; metrics with different hashes are not compared."""
    on = {
        part.name: {
            **part.samples.content,
            "reader": part.reader,
            "protocol": part.protocol.describe(),
        }
        for part in sets
    }
    return fingerprint(identity({}, {"sets": on, "sampled": [how.steps, how.ensemble_size, how.seed]}))


def evaluate_on(part: ValidationSet, model: MarigoldDepth, how: Validation) -> dict[str, float]:
    """`NAME/abs_rel` and `NAME/delta1`; processes share the images and all return the same values."""
    count = len(part.samples)
    rows = evaluate(predictor(part, model, how), part.samples, part.protocol, metrics=METRICS, indices=share(count))
    # One mean over all rows in a fixed order: bit-identical for every number of processes.
    summary = summarise(gather_rows(list(rows), count))
    return {f"{part.name}/{metric}": summary.metrics[metric].mean for metric in METRICS}


def draw_panel(path: Path, part: ValidationSet, model: MarigoldDepth, how: Validation) -> None:
    """Draw the same evenly spaced samples every time, so that the panels of a run are comparable."""
    names = part.samples.names
    count = min(how.panel, len(names))
    chosen = [(index, names[index]) for index in (k * len(names) // count for k in range(count))]
    panels.draw_panel(path, chosen, predictor(part, model, how), part.samples, part.protocol, part.name)


def predictor(part: ValidationSet, model: MarigoldDepth, how: Validation) -> Predict:
    """The function that predicts a sample with the steps, ensemble size and seed of validation."""
    resolution = part.protocol.benchmark.processing_resolution
    # One seed for all images and validations, so that curves show the weights rather than the noise.
    arguments = Sampling(how.steps, how.ensemble_size, processing_resolution=resolution).arguments()
    return lambda sample: model(sample.image[None], seed=how.seed, **arguments)
