"""Checkpoints appear whole or not at all, and a damaged one is found out."""

import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from marigold.training import checkpoint
from marigold.training.checkpoint import (
    CheckpointError,
    copy_model,
    keep_newest,
    load_latest,
    save_checkpoint,
    save_trained,
    verify,
    write_model,
)
from runs import files

STATE = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


def export(folder: Path, unet: str = "weights") -> None:
    for name, content in (("unet/model.bin", unet), ("vae/model.bin", "frozen"), ("model_index.json", "{}")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def save(checkpoints: Path, step: int) -> Path:
    return save_checkpoint(checkpoints, step, lambda folder: export(folder, f"step {step}"), STATE, {"best": 0.5})


def test_newest_is_found_and_reads_back(tmp_path):
    assert load_latest(tmp_path) is None
    for step in (2, 10, 4):
        save(tmp_path, step)
    found = load_latest(tmp_path)
    assert (found.step, found.metadata) == (10, {"best": 0.5})
    assert (found.folder / "unet/model.bin").read_text() == "step 10"
    assert found.state()["state"][0]["step"] == 3


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


@pytest.mark.parametrize("writer", ["safetensors", "torch", "text"])
def test_files_that_cannot_grow_are_a_full_disk(tmp_path, writer):
    """Each library's own error becomes one OSError, and nothing is left behind."""
    save(tmp_path, 2)
    write_model(export, tmp_path / "best", "card")
    before, large = files(tmp_path), torch.zeros(100_000)

    def export_large(folder: Path) -> None:
        export(folder)
        if writer == "safetensors":
            save_file({"weight": large}, folder / "unet.safetensors")
        if writer == "text":
            (folder / "card.md").write_text("x" * 400_000)

    state = {"weight": large} if writer == "torch" else STATE
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="step_000004"):
            save_checkpoint(tmp_path, 4, export_large, state, {})
        if writer != "torch":
            with pytest.raises(OSError, match=r"best|too large"):
                write_model(export_large, tmp_path / "best", "other card")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert files(tmp_path) == before


def test_leftovers_of_a_killed_run_are_not_checkpoints_and_saving_again_replaces(tmp_path):
    save(tmp_path, 2)
    export(tmp_path / f"{checkpoint.PARTIAL}step_000004")
    assert load_latest(tmp_path).step == 2
    save_checkpoint(tmp_path, 2, lambda folder: export(folder, "again"), STATE, {})
    assert (load_latest(tmp_path).folder / "unet/model.bin").read_text() == "again"
    save(tmp_path, 6)
    keep_newest(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000006"]


def test_frozen_parts_share_their_bytes(tmp_path):
    first, second = save(tmp_path, 2), save(tmp_path, 4)
    assert (first / "vae/model.bin").stat().st_ino == (second / "vae/model.bin").stat().st_ino
    assert (first / "unet/model.bin").stat().st_ino != (second / "unet/model.bin").stat().st_ino
    copy_model(second, tmp_path / "best", "card")
    keep_newest(tmp_path, 0)
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"README.md", "model_index.json", "unet", "vae"}
    assert (tmp_path / "best/unet/model.bin").read_text() == "step 4"


def test_a_checkpoint_that_differs_from_memory_is_refused(tmp_path):
    layer = torch.nn.Linear(3, 2)
    folder = save_checkpoint(tmp_path, 2, lambda folder: save_trained(layer, folder), STATE, {})
    verify(folder, layer)
    with torch.no_grad():
        layer.bias[1] += 1
    with pytest.raises(CheckpointError, match="bias"):
        verify(folder, layer)


def test_optimiser_state_never_unpickles_objects(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("unpickled",))

    save_checkpoint(tmp_path, 2, export, {"state": Evil()}, {})
    with pytest.raises(Exception, match="Weights only load failed"):
        load_latest(tmp_path).state()
