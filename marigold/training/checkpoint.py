"""Checkpoints: folders that appear whole or not at all, and are checked before they are used.

A checkpoint is a complete model folder with the training state; of adapters it holds what they train alone, and the
base's hash.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from marigold.files import write_atomically
from marigold.model.lora import trained_tensors

logger = logging.getLogger(__name__)

STATE_FOLDER = "training_state"
MANIFEST = f"{STATE_FOLDER}/manifest.json"
STATE = f"{STATE_FOLDER}/state.pt"
VALIDATION = f"{STATE_FOLDER}/validation.json"
TRAINED = "trained.safetensors"
CARD = "README.md"
FROZEN_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")
PARTIAL = ".partial-"


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class Validated:
    """A finished validation of a checkpoint: its metrics, on which lists, and whether `final/` was made of it."""

    values: dict[str, float]
    lists: str
    final: bool


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint: its folder, the step that comes next, and what was recorded with it."""

    folder: Path
    step: int
    metadata: dict[str, Any]

    def state(self) -> dict[str, Any]:
        """The training state that was saved; only tensors and plain values are unpickled."""
        return torch.load(self.folder / STATE, map_location="cpu", weights_only=True)

    def validation(self) -> Validated | None:
        """The record of its validation, or None if that was not finished."""
        file = self.folder / VALIDATION
        return Validated(**json.loads(file.read_text())) if file.is_file() else None


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of `step` finished steps lives."""
    return checkpoints / f"step_{step:06d}"


def save_checkpoint(
    checkpoints: Path,
    step: int,
    export: Callable[[Path], object],
    state: dict[str, Any],
    metadata: dict[str, Any],
) -> Path:
    """Write the checkpoint of `step` finished steps and return its folder.

    `export` writes the whole model folder, or what training changes (`save_trained`). Parts that training leaves alone
    are hard-linked to the newest checkpoint that has the same bytes. The folder gets its name only when every file is
    on the disk; an existing checkpoint of the same step is replaced. OSError (a full disk) leaves the earlier ones as
    they are.
    """
    final = step_folder(checkpoints, step)
    with _replacing(final) as partial:
        export(partial)
        (partial / STATE_FOLDER).mkdir()
        try:
            torch.save(state, partial / STATE)
        except RuntimeError as error:
            # torch's writer has no error of its own for a full disk: it fails on a position that it did not expect.
            raise OSError(f"torch could not write {STATE}") from error
        files = {name: _describe(partial / name) for name in _files(partial)}
        _share_frozen(partial, files, _steps(checkpoints))
        # Last of all files, since it has the hashes of the others.
        content = {"step": step, "files": files, "metadata": metadata}
        (partial / MANIFEST).write_text(json.dumps(content, indent=1))
    return final


def load_latest(checkpoints: Path) -> Checkpoint | None:
    """The newest checkpoint whose files are all as they were written; None if there is none at all.

    Damaged ones are logged with the reason and skipped. Raises CheckpointError if there are checkpoints
    and every one is damaged: starting again from step 0 would hide that.
    """
    reasons = []
    for folder in _steps(checkpoints):
        try:
            return check(folder)
        except CheckpointError as error:
            logger.warning("checkpoint passed over: %s", error)
            reasons.append(str(error))
    if reasons:
        listed = "\n  ".join(reasons)
        raise CheckpointError(
            f"every checkpoint in {checkpoints} is damaged:\n  {listed}\nMove them away to start again from step 0"
        )
    return None


def check(folder: Path) -> Checkpoint:
    """Compare every file with the manifest; raises CheckpointError naming the first that differs."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
        step, files, metadata = int(content["step"]), dict(content["files"]), dict(content["metadata"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST}: cannot be read ({type(error).__name__}: {error})") from error
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing")
        # Most damage is a file that ends too early, and its size tells without reading gigabytes.
        if path.stat().st_size != wanted["size"]:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes, {wanted['size']} were written")
        if _sha256(path) != wanted["sha256"]:
            raise CheckpointError(f"{path}: its sha256 is not the one that was written")
    return Checkpoint(folder, step, metadata)


def keep_newest(checkpoints: Path, count: int) -> None:
    """Delete all but the `count` newest checkpoints, and what killed runs left half-written."""
    for folder in _steps(checkpoints)[count:]:
        # Renamed first: a kill in the middle of the deletion must not leave a damaged checkpoint behind.
        doomed = checkpoints / f"{PARTIAL}old-{folder.name}"
        shutil.rmtree(doomed, ignore_errors=True)
        folder.rename(doomed)
    for leftover in checkpoints.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover)


def copy_model(source: Path, target: Path, card: str) -> None:
    """Put the model of a checkpoint, with `card` as its model card, at `target`, by hard links where possible.

    Complete or not at all; OSError (a full disk) passes through. Raises CheckpointError if there is no model.
    """
    if not (source / "model_index.json").is_file():
        raise CheckpointError(f"{source}: the checkpoint is gone, {target.name}/ cannot be made of it")

    def link(folder: Path) -> None:
        for name in _files(source):
            if name != CARD and not name.startswith(STATE_FOLDER):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                _link(source / name, folder / name)

    write_model(link, target, card)


def write_model(export: Callable[[Path], object], target: Path, card: str) -> None:
    """Put the model folder that `export` writes, with `card` as its model card, at `target`.

    Complete or not at all: OSError (a full disk) leaves what was there as it was.
    """
    with _replacing(target) as partial:
        export(partial)
        write_atomically(partial / CARD, card)


def record_validation(folder: Path, done: Validated) -> None:
    """Note that the validation of the checkpoint in `folder`, and what follows from it, is finished."""
    write_atomically(folder / VALIDATION, json.dumps(asdict(done)))


def save_trained(unet: torch.nn.Module, folder: Path) -> None:
    """Write the parameters that training changes into the folder of a checkpoint, instead of a whole model."""
    save_file({name: weight.contiguous() for name, weight in trained_tensors(unet).items()}, folder / TRAINED)


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The U-Net's weights in a checkpoint by name: all of them, or those that `save_trained` wrote."""
    file = folder / TRAINED
    return load_file(file) if file.is_file() else UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()


def verify(folder: Path, unet: torch.nn.Module) -> None:
    """Raise CheckpointError unless the checkpoint in `folder` has the weights of `unet`, bit for bit."""
    check(folder)
    weights = unet.state_dict()
    for name, saved in trained_weights(folder).items():
        if not torch.equal(saved, weights[name].cpu()):
            raise CheckpointError(f"{folder}: {name} was not saved as it is in memory; is the disk failing?")


def _steps(checkpoints: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((path for path in checkpoints.glob("step_*") if path.is_dir()), reverse=True)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _share_frozen(partial: Path, files: dict[str, dict[str, Any]], earlier: list[Path]) -> None:
    for folder in earlier[:1]:  # the newest, which shares them with those before it
        for name, described in files.items():
            twin = folder / name
            if name.split("/")[0] in FROZEN_PARTS and twin.is_file() and _describe(twin) == described:
                (partial / name).unlink()
                _link(twin, partial / name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has hard links; a copy is as good.
        shutil.copy2(source, target)


@contextmanager
def _replacing(final: Path) -> Iterator[Path]:
    """A folder to fill that takes the place of `final` whole, on the disk, or not at all; raises OSError."""
    partial, old = (final.with_name(f"{PARTIAL}{prefix}{final.name}") for prefix in ("", "old-"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for name in _files(partial):
            _sync(partial / name)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        partial.rename(final)
        _sync(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:  # safetensors has an error of its own for a full disk
        raise OSError(
            f"{final} cannot be written ({str(error).splitlines()[0]}). What was written before is unharmed; make "
            "room and run the same command again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # a finished one has its final name by now


def _describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
