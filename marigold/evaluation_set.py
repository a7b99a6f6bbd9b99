"""What every evaluating verb starts from: a data set under a protocol, the processes that share it, and a folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from marigold.config import build
from marigold.data.base import DepthDataset
from marigold.data.motorcycle import Motorcycle
from marigold.evaluation.protocol import Protocol, settings_for
from marigold.identity import identity

Samples = DepthDataset | Motorcycle


@dataclass(frozen=True)
class EvaluationSet:
    """The images of a data set, the protocol that evaluates them, and what reading them depends on."""

    samples: Samples
    protocol: Protocol
    reader: dict[str, object]


def open_set(config: DictConfig, limit: int | None) -> EvaluationSet:
    """The configuration's data set, `limit` images of it if that is a number, read as its protocol wants it.

    Raises DataError for files that are not there.
    """
    protocol = make_protocol(config.protocol, config.dataset)
    if limit is not None:
        OmegaConf.update(config, "dataset.reader.limit", limit, force_add=True)
    reader = reader_of(config.dataset, protocol.name)
    samples: Samples = build(reader, "dataset.reader")
    samples.check_files()
    return EvaluationSet(
        samples, protocol, identity({"dataset": {"reader": OmegaConf.to_container(reader, resolve=True)}}, {})
    )


def make_protocol(protocol: DictConfig, dataset: DictConfig) -> Protocol:
    """The protocol of `configs/protocol`, resolved for a data set."""
    evaluation: Any = OmegaConf.to_container(dataset.get("evaluation") or OmegaConf.create(), resolve=True)
    settings = OmegaConf.create(settings_for(evaluation, protocol.name))
    return build(protocol, "protocol", benchmark=build(settings, "dataset.evaluation"))


def reader_of(dataset: DictConfig, protocol: str) -> DictConfig:
    """How a data set is read under a protocol: its `reader`, changed by its `reader_for.PROTOCOL`."""
    changes = (dataset.get("reader_for") or {}).get(protocol) or {}
    return changed_reader(dataset, changes)


def changed_reader(dataset: DictConfig, changes: Mapping[str, Any]) -> DictConfig:
    """A data set's `reader` with some keys changed or added."""
    # Into an empty node: a composed one takes no key that it does not have.
    reader = cast(DictConfig, OmegaConf.merge(OmegaConf.create(), dataset.reader, changes))
    reader._set_parent(dataset)  # interpolations look upwards
    return reader


def start_processes(device: str | None, threads: int) -> tuple[PartialState, torch.device]:
    """The processes that share the images, and the device of this one, a GPU where there is one if None."""
    torch.set_num_threads(threads)
    # A process that is done waits for the slowest one.
    state = PartialState(cpu=device == "cpu", timeout=timedelta(hours=12))
    return state, torch.device(device) if device else state.device


def output_folder(output: str | None, parent: Path, name: str) -> Path:
    """Where results go: to `output`, or to `parent`/`name`; each job of a multirun has its own folder, by its name."""
    several = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if output is None or several:
        return Path(output or parent) / name
    return Path(output)
