"""Write a checkpoint in the form that another program reads: one run, from its settings to the report."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from safetensors import SafetensorError

from marigold.config import ConfigError, to_dataclass
from marigold.files import new_folder
from marigold.model.backbone import find_folder
from marigold.model.export import for_diffusers
from marigold.model.model_card import exported_card
from marigold.model.pipeline import MarigoldDepth

Writer = Callable[[Path], object]


def to_diffusers(source: Path) -> Writer:
    """The model in `source` for diffusers; returns what writes it, and its model card, into a folder."""
    model = for_diffusers(MarigoldDepth.from_pretrained(source))
    card = source / "README.md"
    return partial(
        model.save_pretrained, card=exported_card(card.read_text(), model.switches) if card.is_file() else None
    )


FORMATS: dict[str, Callable[[Path], Writer]] = {"diffusers": to_diffusers}


@dataclass(frozen=True)
class ExportConfig:
    """Everything in configs/export.yaml."""

    checkpoint: str
    output: str
    format: str

    def __post_init__(self) -> None:
        """Refuse an unknown format; raises ConfigError."""
        if self.format not in FORMATS:
            raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {self.format!r}")


def run(config: DictConfig) -> None:
    """Export as configured. Raises ValueError or OSError with a message for the user."""
    settings = to_dataclass(ExportConfig, config)
    output = Path(settings.output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"output={output}: there is something already; give a folder that is empty or not there")
    source = find_folder(settings.checkpoint)
    write = FORMATS[settings.format](source)
    try:
        with new_folder(output) as folder:
            write(folder)
    except SafetensorError as error:  # its own error for a full disk
        raise OSError(f"{output} cannot be written: {str(error).splitlines()[0]}") from error
    print(f"{source} for {settings.format}: {output}\nto publish it: hf upload ORG/NAME {output}")
