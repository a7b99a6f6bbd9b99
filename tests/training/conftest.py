"""The quickstart's recipe on a few small rooms and a base with random weights, composed as the script does it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

CONFIGS = Path(__file__).parent.parent.parent / "configs"
Compose = Callable[..., DictConfig]
SETTINGS = [
    "+exp=quickstart",
    "device=cpu",
    "cache.enabled=false",
    "data.vkitti.reader.crop=[32,96]",
    "train.steps=6",
    "train.micro_batch=2",
    "train.effective_batch=4",
    "train.warmup_steps=2",
    "train.log_every=2",
    "train.checkpoint_every=2",
    "train.validate_every=6",
    "validation.panel=0",
]


@pytest.fixture
def arguments(rooms_data: Path, random_base: Path) -> list[str]:
    """Command-line overrides of a run that takes seconds."""
    return [*SETTINGS, f"paths.data={rooms_data}", f"model.base={random_base}", f"cache.folder={rooms_data}/latents"]


@pytest.fixture
def configure(arguments: list[str]) -> Compose:
    """configure(run_dir, *overrides) -> the configuration that scripts/train.py would get."""

    def configure(run_dir: Path, *overrides: str) -> DictConfig:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return compose("train", [*arguments, f"run_dir={run_dir}", *overrides])

    return configure
