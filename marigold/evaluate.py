"""From a composed configuration to what an evaluation needs: the protocol and the samples of a data set."""

from collections.abc import Mapping
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from marigold.config import build
from marigold.evaluation.protocol import Protocol, settings_for


def make_protocol(protocol: DictConfig, dataset: DictConfig) -> Protocol:
    """The protocol of `configs/protocol`, resolved for a data set."""
    evaluation = OmegaConf.to_container(dataset.get("evaluation") or OmegaConf.create(), resolve=True)
    settings = OmegaConf.create(settings_for(evaluation, protocol.name))  # type: ignore[arg-type]
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
