"""What a run leaves behind for whoever repeats it or loads its model: provenance and model card."""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from marigold.evaluation import provenance
from marigold.model.model_card import Score, model_card
from marigold.training.validation import METRICS, ValidationSet


@dataclass(frozen=True)
class Export:
    """What a checkpoint says to whoever loads it: recommended settings, and the model card's data and notes."""

    default_denoising_steps: int
    default_processing_resolution: int
    data: list[str]
    notes: str


def write_provenance(folder: Path, processes: int) -> None:
    """Write provenance.json (commit, versions, command line) and, in a git checkout, changes.diff."""
    facts = {
        "commit": provenance.commit(),
        "processes": processes,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "diffusers", "transformers")},
        "argv": sys.argv,
    }
    (folder / "provenance.json").write_text(json.dumps(facts, indent=1))
    try:
        diff = subprocess.run(["git", "diff", "HEAD"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return  # not a git checkout: the commit is recorded as unknown
    (folder / "changes.diff").write_text(diff)


def make_card(
    config: Mapping[str, Any], export: Export, judged_on: Sequence[ValidationSet], values: Mapping[str, float]
) -> str:
    """The model card of a run of configs/train.yaml, with the figures of the newest validation."""
    settings = {**config["train"], "noise": config["noise"], "mixture": config["mixture"]}
    scores = [
        Score(f"{part.name} validation", len(part.samples), metric, values[f"{part.name}/{metric}"])
        for part in judged_on
        for metric in METRICS
        if f"{part.name}/{metric}" in values
    ]
    return model_card(
        name=config["name"],
        base=config["model"]["base"],
        revision=config["model"]["revision"],
        data=export.data,
        settings={**settings, "commit": provenance.commit()},
        scores=scores,
        notes=export.notes,
    )
