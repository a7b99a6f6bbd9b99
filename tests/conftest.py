"""Shared by all tests: the library's shape promises are checked, and the scripts can be imported."""

import copy
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import install_import_hook

hook = install_import_hook("marigold", "typechecker.check")

# Two threads that wait for each other on a busy machine are up to 50 times slower than one.
torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), *(str(ROOT / folder) for folder in ("scripts", "tests/training", "tests/data/preparation"))]

# The quickstart's recipe on a few small rooms and a base with random weights, in seconds.
TRAINING = [
    *("+exp=[quickstart,marigold]", "device=cpu", "cache.enabled=false", "data.vkitti.reader.crop=[32,96]"),
    *("train.steps=4", "train.micro_batch=2", "train.effective_batch=4", "train.warmup_steps=2", "train.log_every=2"),
    *("train.checkpoint_every=2", "train.validate_every=4", "validation.panel=0"),
]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """In CI nothing may be skipped: everything that a test needs is installed there."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true":
        report.outcome, report.longrepr = "failed", f"skipped in CI: {report.longrepr[2]}"
    return report


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Random numbers without a seed of their own are the same in any order of the tests."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def rooms_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a few small rooms and streets, rendered and prepared as the quickstart does it."""
    from marigold.miniature.rooms.write import RoomsSize
    from runs import write_data

    return write_data(tmp_path_factory.mktemp("data"), RoomsSize(4, 1, 3, 1, 1, 2, (48, 64), (48, 136), seed=5))


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model of Stable Diffusion's classes with random weights; not to be written to."""
    from marigold.miniature.random_base import SIZES, build_components, save

    return save(build_components(0, *SIZES["tiny"]), tmp_path_factory.mktemp("random_base"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A depth checkpoint of the embedded base's size with random weights; not to be written to."""
    from marigold.miniature.random_base import SIZES, build_components
    from marigold.model.pipeline import DepthSettings, MarigoldDepth
    from marigold.model.recipe import Switches

    model = MarigoldDepth(
        build_components(0, *SIZES["tiny"], in_channels=8), DepthSettings(Switches(), True, True, 1, 0)
    )
    return model.save_pretrained(tmp_path_factory.mktemp("model") / "depth")


@pytest.fixture(scope="session")
def arguments(rooms_data: Path, random_base: Path) -> list[str]:
    """Command-line overrides of a training run that takes seconds."""
    return [*TRAINING, f"paths.data={rooms_data}", f"model.base={random_base}", f"cache.folder={rooms_data}/latents"]


@pytest.fixture(scope="session")
def configure(arguments: list[str]) -> Callable[..., Any]:
    """configure(run_dir, *overrides) -> the configuration that scripts/train.py would get."""
    from runs import composed

    compose_once = functools.cache(composed)  # half a second each

    def configure(run_dir: Path, *overrides: str) -> Any:
        config = copy.deepcopy(compose_once("train", *arguments, *overrides))
        if "run_dir=null" not in overrides:
            config.run_dir = str(run_dir)
        return config

    return configure


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, configure: Callable[..., Any]) -> Callable[..., Path]:
    """undisturbed(*overrides) -> such a run, validated after steps 2 and 4, made once; not to be written to."""
    from marigold.train import run
    from runs import OFTEN

    @functools.cache
    def undisturbed(*overrides: str) -> Path:
        folder = tmp_path_factory.mktemp("undisturbed") / "run"  # model cards tell the folder's name
        assert run(configure(folder, *OFTEN, *overrides))
        return folder

    return undisturbed


@pytest.fixture(scope="session")
def whole(undisturbed: Callable[..., Path]) -> Path:
    """The run that most tests compare with."""
    return undisturbed()
