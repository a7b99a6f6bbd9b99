"""Reading what a training run left behind."""

import json
from pathlib import Path

from marigold.miniature.random_base import SIZES, build_components
from marigold.model.backbone import Backbone

TIMED = ("images_per_second", "data_wait_share", "peak_memory_gb")


def figures(run_dir: Path) -> list[dict[str, float]]:
    """The logged figures that must be reproducible: all but speed and memory."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in figures(run_dir) if "loss" in line]


def weights(run_dir: Path) -> bytes:
    """The final U-Net, as it lies on the disk."""
    return (run_dir / "final/unet/diffusion_pytorch_model.safetensors").read_bytes()


def files(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` by its relative name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_end(one: Path, two: Path) -> None:
    """Two runs of one folder name logged the same, and ended with the same models and model cards."""
    assert figures(one) == figures(two)
    for name in ("best", "final"):
        assert files(one / name) == files(two / name), name


def made_base() -> Backbone:
    """The base of the fixtures, made instead of loaded: a value of model.maker."""
    return build_components(0, *SIZES["tiny"])
