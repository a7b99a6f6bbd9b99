"""Download a data set from its publisher, or a benchmark's published evaluation archive."""

import re
import shlex

from omegaconf import DictConfig

from marigold.config import ConfigError, build, task_overrides


def run(config: DictConfig) -> bool:
    """Download as configured; returns False if something could not be downloaded, which is named.

    Raises ValueError or OSError with a message for the user.
    """
    sources = config.get("download", {})
    if config.source not in sources:
        known = f"it has: {', '.join(map(str, sources))}" if sources else "this data set is not downloaded"
        raise ConfigError(f"source: no {config.source!r} in configs/download/; {known}")
    node = sources[config.source]
    # What is printed has to work as it stands, so it names the folders that were moved.
    if "next_step" in node:
        node.next_step = " ".join([node.next_step, *told_next(config)])
    report = build(node, f"download.{config.source}")
    print(report.text())
    return not report.failed


def told_next(config: DictConfig) -> list[str]:
    """What scripts/prepare.py must be told to find the files: the paths that are not where it looks by itself."""
    told = [word for word in task_overrides() if word.startswith("paths.")]
    if config.out != f"{config.paths.downloads}/{config.dataset.reader.name}":
        plain = re.fullmatch(r"[\w./@:+-]+", config.out)
        told.append(f"raw={config.out}" if plain else f"raw='{config.out}'")
    return [shlex.quote(word) for word in told]
