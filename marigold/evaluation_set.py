"""Common start of the evaluating verbs: a data set with its protocol, the processes, and the output folder."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from marigold.config import ConfigError, build, choice, to_dataclass
from marigold.data.base import DepthDataset
from marigold.data.errors import DataError
from marigold.data.motorcycle import Motorcycle
from marigold.evaluation.protocol import COMMON_PROTOCOL, PROTOCOL_OF, Protocol, settings_for
from marigold.evaluation.sparse import DrawnPoints
from marigold.identity import identity

logger = logging.getLogger(__name__)
Samples = DepthDataset | Motorcycle
T = TypeVar("T")


@dataclass(frozen=True)
class EvaluationSet:
    """The images of a data set, the protocol that evaluates them, and the settings of their reader."""

    samples: Samples
    protocol: Protocol
    reader: dict[str, object]


def read_settings(cls: type[T], config: DictConfig) -> T:
    """The settings class of a verb from its configuration, which also has the data set and the protocol.

    Raises ConfigError as `to_dataclass` does.
    """
    OmegaConf.resolve(config)
    return to_dataclass(cls, OmegaConf.masked_copy(config, [field.name for field in fields(cls)]))  # type: ignore[arg-type]


def protocol_for(config: DictConfig, space: str | None) -> DictConfig:
    """`protocol=NAME`, or else, logged in one line, the protocol of the predictions' space.

    `marigold` for predictions whose space is not known beforehand (None), and with `protocol.prefit=true`, the
    yardstick of all spaces.
    """
    given = config.get("protocol") or OmegaConf.create()
    if "name" in given:
        return given
    if space is None or given.get("prefit"):
        name, why = COMMON_PROTOCOL, "the common default"
    else:
        name, why = PROTOCOL_OF[space], f"the default for {space}"
    logger.info("protocol %s (%s); protocol=NAME selects another one", name, why)
    return named_protocol(config, name)


def named_protocol(config: DictConfig, name: str) -> DictConfig:
    """`configs/protocol/NAME.yaml` with the overrides of the configuration's `protocol`."""
    return changed(choice("protocol", name), config.get("protocol") or {}, config)


def open_set(
    config: DictConfig, limit: int | None, protocol_node: DictConfig, points: DrawnPoints | None = None
) -> EvaluationSet:
    """The configuration's data set, `limit` images of it if that is a number, read as the protocol wants it.

    Raises DataError as `open_samples` does, and EvaluationError for a protocol that cannot be prefitted, or is and
    gets points.
    """
    protocol = make_protocol(protocol_node, config.dataset)
    if points is not None:
        protocol = protocol.with_points(points)
    if limit is not None:
        OmegaConf.update(config, "dataset.reader.limit", limit, force_add=True)
    samples, read = open_samples(config.dataset, protocol_node.name, "dataset.reader")
    return EvaluationSet(samples, protocol, read)


def open_samples(dataset: DictConfig, protocol: str, where: str) -> tuple[Samples, dict[str, Any]]:
    """A data set as a protocol reads it, and what reading it depends on.

    where: of its reader, for messages. Raises DataError for missing files and for depth that is not in metres.
    """
    reader = reader_of(dataset, protocol)
    samples: Samples = build(reader, where)
    if samples.space != "metric_depth":
        raise DataError(
            f"{samples.name}: nothing can be measured on labels in {samples.space}, which are right up to scale and "
            "shift. A training set with such labels has no held_out"
        )
    samples.check_files()
    settings: Any = OmegaConf.to_container(reader, resolve=True)
    return samples, identity({"dataset": {"reader": settings}}, {})


def make_protocol(node: DictConfig, dataset: DictConfig) -> Protocol:
    """A protocol of `configs/protocol`, resolved for a data set, and prefitted if its `prefit` is true."""
    prefit = node.get("prefit", False)
    if not isinstance(prefit, bool):
        raise ConfigError(f"protocol.prefit={prefit}: expected true or false")
    if "fit" not in node:  # as in a protocol file of an earlier version
        example = "{_target_: marigold.evaluation.fits.LeastSquares, quantity: depth}"
        raise ConfigError(f"protocol '{node.name}' has no fit; add one, such as fit: {example}")
    evaluation: Any = OmegaConf.to_container(dataset.get("evaluation") or OmegaConf.create(), resolve=True)
    settings = OmegaConf.create(settings_for(evaluation, node.name))
    plain = OmegaConf.masked_copy(node, [str(key) for key in node if key not in ("prefit", "fit")])
    plain._target_ = f"{Protocol.__module__}.{Protocol.__qualname__}"
    plain._set_parent(node._get_parent())  # so that interpolations resolve
    parts = {"fit": build(node.fit, "protocol.fit"), "benchmark": build(settings, "dataset.evaluation")}
    protocol: Protocol = build(plain, "protocol", **parts, points=None)
    return protocol.prefitted() if prefit else protocol


def reader_of(dataset: DictConfig, protocol: str) -> DictConfig:
    """How a data set is read under a protocol: its `reader`, changed by its `reader_for.PROTOCOL`."""
    return changed(dataset.reader, (dataset.get("reader_for") or {}).get(protocol) or {}, dataset)


def changed(node: DictConfig, changes: Mapping[str, Any], parent: DictConfig) -> DictConfig:
    """A node with some keys changed or added, whose interpolations look upwards from `parent`."""
    # Into an empty node: a composed one accepts no new keys.
    made = cast(DictConfig, OmegaConf.merge(OmegaConf.create(), node, changes))
    made._set_parent(parent)
    return made


def start_processes(device: str | None, threads: int) -> tuple[PartialState, torch.device]:
    """The processes that share the images, and the device of this one, a GPU where there is one if None."""
    torch.set_num_threads(threads)
    # Finished processes wait for the slowest one.
    state = PartialState(cpu=device == "cpu", timeout=timedelta(hours=12))
    return state, torch.device(device) if device else state.device


def output_folder(output: str | None, parent: Path, name: str) -> Path:
    """The folder of the results: `output` or `parent`/`name`; in a multirun, a folder `name` per job."""
    several = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if output is None or several:
        return Path(output or parent) / name
    return Path(output)
