"""Settings of the demo page, and functions that build it for a checkpoint.

A Space's app.py:

    from marigold import MarigoldDepth, demo
    demo.build_page(MarigoldDepth.from_pretrained("ORG/NAME")).launch()
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from marigold.config import ConfigError
from marigold.depth.camera import CameraSettings
from marigold.model.pipeline import MarigoldDepth
from marigold.page import Blocks, Limits, Page
from marigold.pictures import find_pictures
from marigold.precision import PRECISIONS
from marigold.prediction_files import Distances
from marigold.training.recipe import named_switches

MOST_EXAMPLES = 8
# Photographs that scikit-image (the extra `samples`) carries in its wheel.
SAMPLES = ("motorcycle_left.png", "astronaut.png", "chelsea.png", "coffee.png")


@dataclass(frozen=True)
class DemoConfig:
    """Everything in configs/demo.yaml."""

    checkpoint: str
    revision: str | None
    recipe: str | None
    host: str
    port: int
    examples: str | None
    limits: Limits
    camera: CameraSettings
    distances: Distances
    precision: str
    device: str | None

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown precision, before the model is loaded."""
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got {self.precision!r}")


def configured_page(settings: DemoConfig) -> Blocks:
    """Build the page as configured; raises ValueError or OSError with a message."""
    precision, switches = PRECISIONS[settings.precision], named_switches(settings.recipe)
    examples = sample_images() if settings.examples is None else list(find_pictures(settings.examples))
    model = MarigoldDepth.from_pretrained(settings.checkpoint, precision, settings.revision, switches)
    model.to(settings.device or PartialState().device)
    return build_page(model, settings.limits, settings.camera, settings.distances, examples[:MOST_EXAMPLES])


def sample_images() -> list[Path]:
    """Photographs that come with scikit-image, if it is installed."""
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        return []
    files = [Path(package.origin).parent / "data" / name for name in SAMPLES]
    return [file for file in files if file.is_file()]


def build_page(
    model: MarigoldDepth,
    limits: Limits | None = None,
    camera: CameraSettings | None = None,
    distances: Distances | None = None,
    examples: Sequence[Path] = (),
) -> Blocks:
    """Build the page of `model`, ready to `launch()`; `examples` are image files to click on."""
    camera, distances = camera or CameraSettings(None, None, 60.0), distances or Distances(1.0, 4.0)
    return Page(model, limits or Limits(), camera, distances, examples).blocks
