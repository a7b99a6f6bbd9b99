"""The verb `demo`: what the page's libraries read when they are imported, then the page, until somebody stops it."""

import importlib
import os
import tempfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from marigold.config import ConfigError


def run(config: DictConfig) -> None:
    """Serve the page as configured until SIGINT or SIGTERM. Raises ValueError or OSError with a message."""
    # A checkpoint that is here needs no hub, and huggingface_hub asks for this when it is imported.
    if Path(OmegaConf.select(config, "checkpoint") or "").is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="marigold-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads, and all that is made of them
        os.environ["GRADIO_EXAMPLES_CACHE"] = folder  # else ./.gradio, of which every file could be fetched
        try:
            page = importlib.import_module("marigold.demo")
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            raise ConfigError(
                "the page needs gradio; `pip install -c constraints.txt -e '.[demo]'` installs it"
            ) from error
        page.serve(config)
