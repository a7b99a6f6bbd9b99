"""Starting training runs, and reading what they left behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from marigold.miniature.random_base import SIZES, build_components
from marigold.model.backbone import Backbone

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "configs"
TIMED = ("images_per_second", "data_wait_share", "peak_memory_gb")
OFTEN = ("train.validate_every=2", "validation.panel=1")  # of the run `whole`


def composed(name: str, *overrides: str) -> DictConfig:
    """The configuration that a script would get."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, list(overrides))


def start_script(name: str, log: Path, *arguments: str, launcher: tuple[str, ...] = (), **options) -> subprocess.Popen:
    """A script in a process of its own; what it says goes to `log`."""
    command = [sys.executable, *launcher, str(ROOT / "scripts" / name), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT, **options)


def wait_until(process: subprocess.Popen, log: Path, seen: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not seen():
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def figures(run_dir: Path) -> list[dict[str, float]]:
    """The logged values that must be reproducible: all but speed and memory."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in figures(run_dir) if "loss" in line]


def weights(folder: Path) -> bytes:
    """The final U-Net of a run, or that of a model or checkpoint, as it lies on the disk."""
    model = folder / "final" if (folder / "final").exists() else folder
    return (model / "unet/diffusion_pytorch_model.safetensors").read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` by its relative name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_bits(one: Path, two: Path) -> None:
    """Two runs logged the same and ended with the same U-Net."""
    assert figures(one) == figures(two)
    assert weights(one) == weights(two)


def assert_same_end(one: Path, two: Path) -> None:
    """Two runs of one folder name logged the same, and ended with the same models and model cards."""
    assert figures(one) == figures(two)
    for name in ("best", "final"):
        assert files(one / name) == files(two / name), name


def killed(*_arguments: object, **_more: object) -> None:
    raise KeyboardInterrupt


def made_base() -> Backbone:
    """The base of the fixtures, made instead of loaded: a value of model.maker."""
    return build_components(0, *SIZES["tiny"])
