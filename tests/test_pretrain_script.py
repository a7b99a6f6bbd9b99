"""The pretraining of the tiny base, end to end with small settings."""

import json
import shutil

import numpy as np
import pytest
import torch

from marigold.miniature.pretrain_tiny import run as pretrain
from marigold.miniature.pretraining import cartoon
from marigold.model.backbone import load_base
from runs import call_script, composed, files

SETTINGS = """
    workers=1 room_scenes=2 street_scenes=1 unet_channels=[16,16,16] vae_channels=[8,8,8,8]
    vae_steps=[2,1] vae_lr=[1e-3,1e-3] unet_steps=[2,1] vae_batch=2 unet_batch=2
"""


def words(folder):
    return [*SETTINGS.split(), f"work={folder / 'work'}", f"out={folder / 'base'}"]


@pytest.mark.slow
def test_every_stage_runs_once_in_one_process_or_two(tmp_path):
    pretrain(composed("pretrain_tiny", *words(tmp_path)))
    base = load_base(tmp_path / "base")
    assert base.unet.config["in_channels"] == 4
    assert base.vae.config["scaling_factor"] > 0
    figures = json.loads((tmp_path / "base/figures.json").read_text())
    assert {"vae_0_minutes", "vae_1_minutes", "unet_0_minutes", "unet_1_loss", "photo_psnr_db"} <= set(figures)
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "work").iterdir()}
    repeated = {"vae_1.pt", "latents.pt", "unet_0.pt", "unet_1.pt"}
    assert {file.name for file in made} == {"rooms.npy", "streets.npy", "vae_0.pt", "figures.json", *repeated}
    before = files(tmp_path / "base")
    pretrain(composed("pretrain_tiny", *words(tmp_path)))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "work").iterdir()} == made
    assert files(tmp_path / "base") == before

    # Rank 1 waits for what rank 0 makes alone, then both train: on other batches than one process sees.
    two = tmp_path / "two"
    shutil.copytree(tmp_path / "work", two / "work")
    for stage in repeated:
        (two / "work" / stage).unlink()
    done = call_script("pretrain_tiny.py", *words(two), processes=2)
    assert done.returncode == 0, done.stderr[-9000:]
    together = load_base(two / "base").unet.state_dict()
    assert 0 < max((together[name] - value).abs().max() for name, value in base.unet.state_dict().items()) < 0.1


def test_cartoons_are_a_few_smooth_parts_in_range():
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    images[:, :, :, 32:] -= 2
    made = cartoon(images, np.random.default_rng(1))
    assert made.shape == images.shape
    assert -1 <= made.min() <= made.max() <= 1
    # Within a part neighbours differ by a gradient's step; few differ by more.
    steps = (made[..., 1:] - made[..., :-1]).abs().amax(dim=1)
    assert (steps > 0.1).float().mean() < 0.3
    assert torch.equal(made, cartoon(images, np.random.default_rng(1)))
