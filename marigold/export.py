"""Export a checkpoint for another program: one run, from its settings to the report."""

from collections.abc import Callable
from dataclasses import dataclass
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

FOLDERS = ("diffusers",)  # an empty folder may exist, a file may not: the format decides
FILES: dict[str, Callable[[MarigoldDepth, Path], None]] = {"onnx": write_onnx, "pt2": write_pt2}
FORMATS = (*FOLDERS, *FILES)


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
    """The file of the ONNX weights that do not fit into `output`."""
    return output.with_name(f"{output.name}.data")


def require_free(output: Path, form: str) -> None:
    """Raise ConfigError if an export would replace something; a folder may exist if it is empty."""
    if form in FOLDERS:
        if output.exists() and not (output.is_dir() and not any(output.iterdir())):
            raise ConfigError(f"output={output} already exists; give a new or an empty folder")
    elif taken := [path for path in (output, beside_of(output)) if path.exists()]:
        raise ConfigError(f"output={output}: {taken[0]} already exists; give the name of a new file")


def run(config: DictConfig) -> None:
    """Export as configured. Raises ValueError or OSError with a message for the user."""
    settings = to_dataclass(ExportConfig, config)
    output, form = Path(settings.output), settings.format
    # Before the weights are read, which takes a minute for a large model.
    require_free(output, form)
    source = find_folder(settings.checkpoint)
    model = MarigoldDepth.from_pretrained(source)
    if form == "diffusers":
        model = for_diffusers(model)
    card = source / "README.md"
    try:
        # All or nothing: both are renamed into place once they are complete.
        if form in FOLDERS:
            with new_folder(output) as folder:
                model.save_pretrained(
                    folder, exported_card(card.read_text(), model.switches) if card.is_file() else None
                )
        else:
            with new_file(output) as file:
                FILES[form](model, file)
    except SafetensorError as error:  # its own error for a full disk
        raise OSError(f"{output} cannot be written: {str(error).splitlines()[0]}") from error
    beside = beside_of(output)
    weights = f", its weights in {beside}" if form in FILES and beside.exists() else ""
    publish = f"\nto publish it: hf upload ORG/NAME {output}" if form in FOLDERS else ""
    print(f"{source} for {form}: {output}{weights}{publish}")
