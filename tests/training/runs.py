"""Reading what a training run left behind."""

import json
from pathlib import Path

TIMED = ("images_per_second", "data_wait_share")


def figures(run_dir: Path) -> list[dict[str, float]]:
    """The logged figures that must be reproducible: all but speed."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in figures(run_dir) if "loss" in line]


def weights(run_dir: Path) -> bytes:
    """The final U-Net, as it lies on the disk."""
    return (run_dir / "final/unet/diffusion_pytorch_model.safetensors").read_bytes()
