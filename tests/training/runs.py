"""Starting training runs, and reading what they left behind."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from marigold import prepare
from marigold.miniature.random_base import SIZES, build_components
from marigold.miniature.rooms import write_rooms
from marigold.miniature.rooms.write import RoomsSize
from marigold.model.backbone import Backbone

ROOT = Path(__file__).parent.parent.parent
CONFIGS = ROOT / "configs"
TIMED = ("images_per_second", "data_wait_share", "peak_memory_gb")
OFTEN = ("train.validate_every=2",)  # of the run `whole`
LORA = ("model.lora.rank=4", "model.lora.alpha=8")


def composed(name: str, *overrides: str) -> DictConfig:
    """The configuration that a script would get."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, list(overrides))


def write_data(data: Path, size: RoomsSize) -> Path:
    """Make the folder `data` as the commands of `make data` do, before the one that encodes."""
    write_rooms(out=str(data / "rooms"), workers=1, size=size)
    places = (f"raw={data}/rooms/hypersim_raw", f"out={data}/rooms/hypersim", "workers=1", "prepare.official=null")
    prepare.run(composed("prepare", "dataset=hypersim", *places))
    return data


def command(script: str | Path, *arguments: object, processes: int = 1) -> list[str]:
    """How a script is called; several processes by torchrun, as accelerate's launcher quietly runs one on CPUs."""
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes)
    launcher = several if processes > 1 else ()
    return [str(word) for word in (sys.executable, *launcher, ROOT / "scripts" / script, *arguments)]


def environment(**more: str) -> dict[str, str]:
    """For a script of this tree; threads of processes that share two cores wait for each other."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def call_script(
    script: str | Path, *arguments: object, processes: int = 1, **options: Any
) -> subprocess.CompletedProcess:
    """A script from start to end: its exit status and its output."""
    options = {"env": environment(), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.run(command(script, *arguments, processes=processes), **options)


def wait_until(process: subprocess.Popen, log: Path, seen: Callable[[], object]) -> None:
    """Wait for a condition while the process, whose output is in `log`, runs."""
    deadline = time.monotonic() + 300
    while not seen():
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)


def figures(run_dir: Path) -> list[dict[str, float]]:
    """The logged metrics that must be reproducible: all but speed and memory."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in figures(run_dir) if "loss" in line]


def weights(folder: Path) -> bytes:
    """The final U-Net of a run, or that of a model or checkpoint, as bytes."""
    model = folder / "final" if (folder / "final").exists() else folder
    return (model / "unet/diffusion_pytorch_model.safetensors").read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` by its relative name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_bits(one: Path, two: Path, cards: bool = False) -> None:
    """Two runs logged the same and ended with the same models; their model cards may name different commands."""
    assert figures(one) == figures(two)
    hidden = {} if cards else {"README.md": b""}
    for name in ("best", "final"):
        assert {**files(one / name), **hidden} == {**files(two / name), **hidden}, name


def killed(*_arguments: object, **_more: object) -> None:
    raise KeyboardInterrupt


def made_base() -> Backbone:
    """The base of the fixtures, made instead of loaded: a value of model.maker."""
    return build_components(0, *SIZES["tiny"])
