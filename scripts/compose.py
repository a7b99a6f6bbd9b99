"""From a composed configuration to what an evaluation needs, shared by the scripts that evaluate."""

from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from marigold.config import build
from marigold.data.base import DepthDataset
from marigold.evaluate import make_protocol, reader_of
from marigold.evaluation.protocol import Protocol
from marigold.evaluation.session import Processes


def limit_reader(config: DictConfig, limit: int | None) -> None:
    """Have the configuration's data set read `limit` images, if it is a number."""
    if limit is not None:
        OmegaConf.update(config, "dataset.reader.limit", limit, force_add=True)


def make_samples(node: DictConfig, protocol: Protocol, where: str) -> DepthDataset:
    """A data set's samples, read as the protocol wants them read."""
    return build(reader_of(node, protocol.name), f"{where}.reader")


def set_up(config: DictConfig) -> tuple[Protocol, DepthDataset, Processes, torch.device]:
    """The protocol and the images of the configuration, the processes that share them, and this one's device."""
    protocol = make_protocol(config.protocol, config.dataset)
    limit_reader(config, config.limit)
    samples = make_samples(config.dataset, protocol, "dataset")
    samples.check_files()
    torch.set_num_threads(config.threads)
    # A process that is done waits for the slowest one.
    state = PartialState(cpu=config.device == "cpu", timeout=timedelta(hours=12))
    processes = Processes(state.process_index, state.num_processes, gather_object, state.wait_for_everyone)
    return protocol, samples, processes, torch.device(config.device) if config.device else state.device


def output_folder(output: str | None, parent: Path, name: str) -> Path:
    """Where results go: to `output`, or to `parent`/`name`; each job of a multirun has its own folder, by its name."""
    several = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if output is None or several:
        return Path(output or parent) / name
    return Path(output)
