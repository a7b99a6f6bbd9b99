"""From a checkpoint back to a running state, and the proof that a checkpoint holds it."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel

from marigold.training.average import MovingAverage
from marigold.training.checkpoint import check, load_latest
from marigold.training.settings import TrainingError
from marigold.training.sharding import spread_like, spread_moments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """Where a run begins: its first step, the best figure so far, losses that were not logged yet."""

    step: int = 0
    best: float = math.inf
    pending: list[float] = field(default_factory=list)


def resume(
    checkpoints: Path,
    recipe: Mapping[str, Any],
    unet: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    average: MovingAverage,
) -> Start:
    """Load the newest good checkpoint, if there is one; raises TrainingError if its recipe is another."""
    found = load_latest(checkpoints)
    if found is None:
        return Start()
    theirs = found.metadata["recipe"]
    different = [
        f"{key}: checkpoint {theirs.get(key)!r}, this run {recipe.get(key)!r}"
        for key in sorted({*theirs, *recipe})
        if theirs.get(key) != recipe.get(key)
    ]
    if different:
        raise TrainingError(
            f"{found.folder} was made with other settings and is not continued. {'; '.join(different)}. "
            "Give another run_dir, or move that folder away"
        )
    state = found.state()
    weights = UNet2DConditionModel.from_pretrained(found.folder / "unet").state_dict()
    with torch.no_grad():
        for name, value in unet.state_dict().items():
            value.copy_(spread_like(weights[name], value))
    average.load(state)
    optimizer.load_state_dict(spread_moments(state["optimizer"], list(unet.parameters())))
    logger.info("resumed from %s", found.folder)
    return Start(found.step, float(found.metadata["best"]), list(found.metadata["pending"]))


def verify(folder: Path, unet: torch.nn.Module) -> None:
    """Raise TrainingError unless the U-Net in `folder` has the weights of `unet`, bit for bit."""
    check(folder)
    weights = unet.state_dict()
    for name, saved in UNet2DConditionModel.from_pretrained(folder / "unet").state_dict().items():
        if not torch.equal(saved, weights[name].cpu()):
            raise TrainingError(f"{folder}: {name} was not saved as it is in memory; is the disk failing?")
