"""The page offers what the recipe uses, and neither gradio nor the hub is contacted; tests/demo has the browser."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from marigold.miniature.random_base import build_components
from marigold.model.pipeline import MarigoldDepth
from marigold.model.recipe import Switches
from marigold.model.settings import DepthSettings
from runs import ROOT, environment


@pytest.mark.slow
@pytest.mark.parametrize(
    ("switches", "fields"),
    [
        (Switches(), {"steps", "ensemble_size", "seed", "processing_resolution"}),
        (Switches(timesteps="terminal"), {"ensemble_size", "seed", "processing_resolution"}),
        (Switches(noise="none", timesteps="1"), {"processing_resolution"}),
    ],
)
def test_only_what_the_recipe_uses_can_be_chosen(switches: Switches, fields: set[str]):
    from gradio import Blocks

    from marigold.demo import build_page

    parts = build_components(0, (8, 8, 8), (4, 4, 4, 4), in_channels=switches.in_channels)
    model = MarigoldDepth(parts, DepthSettings(switches, default_denoising_steps=4))

    async def build() -> Blocks:
        return build_page(model)

    page = asyncio.run(build())  # outside a running event loop, gradio opens some that it never closes
    config = page.get_config_file()
    numbers = {part["props"]["elem_id"]: part["props"] for part in config["components"] if part["type"] == "number"}
    assert set(numbers) == fields
    assert all(part["value"] == 4 for name, part in numbers.items() if name == "steps")
    assert not [event for event in config["dependencies"] if event["api_visibility"] == "public"]


@pytest.mark.slow
def test_the_environment_is_set_before_the_imports_that_read_it(checkpoint: Path):
    """And the page's temporary folder is removed however it ends."""
    code = """
import os, sys
from omegaconf import OmegaConf
import marigold.serve, marigold.config
assert not {"gradio", "huggingface_hub"} & set(sys.modules)
before = dict(os.environ)
try:
    marigold.serve.run(OmegaConf.create({"checkpoint": sys.argv[1]}))
except marigold.config.ConfigError:  # all other keys are missing
    pass
import gradio, huggingface_hub
assert not gradio.analytics.analytics_enabled() and huggingface_hub.constants.HF_HUB_OFFLINE
assert not os.path.exists(os.environ["GRADIO_TEMP_DIR"])
"""
    subprocess.run([sys.executable, "-c", code, checkpoint], cwd=ROOT, env=environment(), check=True)
