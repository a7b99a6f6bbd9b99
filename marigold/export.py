"""Write a checkpoint in the form that another program reads: one run, from its settings to the report."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from omegaconf import DictConfig
from safetensors import SafetensorError

from marigold.config import ConfigError, to_dataclass
from marigold.files import new_file, new_folder
from marigold.model.backbone import find_folder
from marigold.model.export import for_diffusers
from marigold.model.graph import write_onnx, write_pt2
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


def to_graph(write: Callable[[MarigoldDepth, Path], None], source: Path) -> Writer:
    """One step of the model in `source` as a graph; returns what writes it into a file."""
    return partial(write, MarigoldDepth.from_pretrained(source))


# A folder may be there if it is empty, a file may not; so `format` decides what output has to be.
FOLDERS: dict[str, Callable[[Path], Writer]] = {"diffusers": to_diffusers}
FILES: dict[str, Callable[[Path], Writer]] = {
    "onnx": partial(to_graph, write_onnx),
    "pt2": partial(to_graph, write_pt2),
}
FORMATS = FOLDERS | FILES


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


def beside_of(output: Path) -> Path:
    """Where ONNX has the weights that do not fit into `output`."""
    return output.with_name(f"{output.name}.data")


def require_free(output: Path, form: str) -> None:
    """Raises ConfigError if there is something that an export would replace; a folder may be there if it is empty."""
    if form in FOLDERS:
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise ConfigError(f"output={output}: there is something already; give a folder that is empty or not there")
    elif taken := [path for path in (output, beside_of(output)) if path.exists()]:
        raise ConfigError(f"output={output}: {taken[0]} is there already; give a file that is not there")


def run(config: DictConfig) -> None:
    """Export as configured. Raises ValueError or OSError with a message for the user."""
    settings = to_dataclass(ExportConfig, config)
    output = Path(settings.output)
    # Before the weights are read, which takes a minute for a large model.
    require_free(output, settings.format)
    source = find_folder(settings.checkpoint)
    write = FORMATS[settings.format](source)
    try:
        # Complete or not there: both are renamed into place at their end.
        with (new_folder if settings.format in FOLDERS else new_file)(output) as place:
            write(place)
    except SafetensorError as error:  # its own error for a full disk
        raise OSError(f"{output} cannot be written: {str(error).splitlines()[0]}") from error
    beside = beside_of(output)
    weights = f", its weights in {beside}" if settings.format in FILES and beside.exists() else ""
    publish = f"\nto publish it: hf upload ORG/NAME {output}" if settings.format in FOLDERS else ""
    print(f"{source} for {settings.format}: {output}{weights}{publish}")
