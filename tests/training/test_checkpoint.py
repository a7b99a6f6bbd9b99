"""Checkpoints appear whole or not at all, and a damaged one is found out."""

import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from marigold.training import checkpoint
from marigold.training.checkpoint import CheckpointError, load_latest, save_checkpoint
from runs import files

STATE = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def export(folder: Path, unet: str = "weights") -> None:
    for name, content in (("unet/model.bin", unet), ("vae/model.bin", "frozen"), ("model_index.json", "{}")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def save(checkpoints: Path, step: int, content: str = "") -> Path:
    def write(folder: Path) -> None:
        export(folder, content or f"step {step}")

    return save_checkpoint(checkpoints, step, write, STATE, {"best": 0.5})


def test_the_newest_whole_checkpoint_is_read_back(tmp_path):
    assert load_latest(tmp_path) is None
    for step in (2, 10, 4):
        save(tmp_path, step)
    save(tmp_path, 10, "again")  # replaces
    export(tmp_path / ".partial-step_000012")  # as a killed run leaves it
    found = load_latest(tmp_path)
    assert (found.step, found.metadata) == (10, {"best": 0.5})
    assert (found.folder / "unet/model.bin").read_text() == "again"
    assert found.state()["state"][0]["step"] == 3
    checkpoint.keep_newest(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000010"]


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("unet/model.bin", lambda file: file.write_text("short")),
        ("unet/model.bin", lambda file: file.write_text("step_4")),
        ("vae/model.bin", Path.unlink),
        (checkpoint.MANIFEST, lambda file: file.write_text("{")),
    ],
    ids=["size", "content", "missing", "manifest"],
)
def test_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog, file, damage):
    save(tmp_path, 2)
    damage(save(tmp_path, 4) / file)
    assert load_latest(tmp_path).step == 2
    assert f"step_000004/{file}" in caplog.text
    damage(tmp_path / "step_000002" / file)
    with pytest.raises(CheckpointError, match=f"step_000002/{file}"):
        load_latest(tmp_path)


@pytest.mark.parametrize("writer", ["safetensors", "torch"])
def test_files_that_cannot_grow_are_a_full_disk(tmp_path, writer):
    """Each library's own error becomes one OSError, and nothing is left behind."""
    save(tmp_path, 2)
    checkpoint.write_model(export, tmp_path / "best", "card")
    before, large = files(tmp_path), {"weight": torch.zeros(100_000)}

    def export_large(folder: Path) -> None:
        export(folder)
        save_file(large, folder / "unet.safetensors")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="step_000004"):
            save_checkpoint(tmp_path, 4, *((export, large) if writer == "torch" else (export_large, STATE)), {})
        with pytest.raises(OSError, match="best"):
            checkpoint.write_model(export_large, tmp_path / "best", "other card")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == before


def test_frozen_parts_share_their_bytes_and_a_copied_model_outlives_its_checkpoint(tmp_path):
    first, second = save(tmp_path, 2), save(tmp_path, 4)
    assert (first / "vae/model.bin").stat().st_ino == (second / "vae/model.bin").stat().st_ino
    assert (first / "unet/model.bin").stat().st_ino != (second / "unet/model.bin").stat().st_ino
    checkpoint.copy_model(second, tmp_path / "best", "card")
    checkpoint.keep_newest(tmp_path, 0)
    assert set(files(tmp_path / "best")) == {"README.md", "model_index.json", "unet/model.bin", "vae/model.bin"}
    assert (tmp_path / "best/unet/model.bin").read_text() == "step 4"


def test_a_checkpoint_that_differs_from_memory_is_refused(tmp_path):
    layer = torch.nn.Linear(3, 2)
    folder = save_checkpoint(tmp_path, 2, lambda folder: checkpoint.save_trained(layer, folder), STATE, {})
    checkpoint.verify(folder, layer)
    with torch.no_grad():
        layer.bias[1] += 1
    with pytest.raises(CheckpointError, match="bias"):
        checkpoint.verify(folder, layer)


def test_optimiser_state_never_unpickles_objects(tmp_path):
    save_checkpoint(tmp_path, 2, export, {"state": Path("any object")}, {})
    with pytest.raises(Exception, match="Weights only load failed"):
        load_latest(tmp_path).state()
