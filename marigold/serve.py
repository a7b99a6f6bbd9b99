"""The verb `demo`: serve the page of a checkpoint until it is stopped."""

import logging
import os
import signal
import tempfile
import threading
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from marigold.config import ConfigError, to_dataclass


def run(config: DictConfig) -> None:
    """Serve the page as configured until SIGINT or SIGTERM. Raises ValueError or OSError with a message."""
    # A local checkpoint needs no hub; huggingface_hub reads this when it is imported.
    if Path(OmegaConf.select(config, "checkpoint") or "").is_dir():
        os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="marigold-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads and their results
        os.environ["GRADIO_EXAMPLES_CACHE"] = folder  # instead of ./.gradio, whose files anyone could fetch
        try:
            from marigold import demo
        except ModuleNotFoundError as error:
            if error.name != "gradio":
                raise
            text = "the page needs gradio; `pip install -c constraints.txt -e '.[demo]'` installs it"
            raise ConfigError(text) from error
        settings = to_dataclass(demo.DemoConfig, config)
        page = demo.configured_page(settings)
        logging.getLogger("httpx").setLevel(logging.WARNING)  # gradio requests its own page once
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stopped.set())
        _, url, _ = page.launch(
            server_name=settings.host,
            server_port=settings.port,
            share=False,
            max_file_size=f"{settings.limits.megabytes * 1e6:.0f}b",
            css=demo.Page.STYLE,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
            prevent_thread_lock=True,
            quiet=True,
        )
        print(f"{settings.checkpoint}: {url}", flush=True)
        stopped.wait()
        page.close(verbose=False)
