"""Prepare a data set for the readers, or check every list of a prepared one."""

from pathlib import Path

from omegaconf import DictConfig

from marigold.config import ConfigError, build
from marigold.data.preparation.check import check, write_report
from marigold.evaluation_set import changed


def run(config: DictConfig) -> bool:
    """Prepare or check as configured; returns False if a check found failures.

    Raises ValueError or OSError with a message for the user.
    """
    if config.action == "check":
        return check_lists(config)
    if config.action != "prepare":
        raise ConfigError(f"action: expected prepare or check, got {config.action!r}")
    if "prepare" not in config:
        raise ConfigError("this dataset has no preparation: no such file in configs/prepare/")
    sources = config.archives.get(config.dataset.reader.name, {"publisher": None})
    if config.source not in sources:
        raise ConfigError(f"source: no {config.source!r} of this data set; it has: {', '.join(sources)}")
    if config.dry_run and "dry_run" not in config.prepare:
        raise ConfigError("dry_run: the preparation of this data set has none")
    done = build(config.prepare, "prepare")
    print(done.text() if hasattr(done, "text") else f"written to {config.out}")
    return True


def check_lists(config: DictConfig) -> bool:
    """Check every list of the set that is there, each as it is read in training or evaluation."""
    if "split_list" not in config.dataset.reader:
        raise ConfigError("this data set has no lists to check")
    # A list may be read in several ways, such as by two protocols, and is checked as each of them reads it.
    readers = {}
    for name, changes in (config.get("check") or {"reader": {}}).items():
        readers[name] = changed(config.dataset.reader, changes, config.dataset)
    there = [name for name, reader in readers.items() if Path(reader.split_list).exists()]
    results = []
    for name in there or list(readers)[:1]:  # if none is there, the reader's error says how to get it
        results.append(check(build(readers[name], f"check.{name}"), workers=config.workers))
        print(results[-1].text())
    for reader in (readers[name] for name in readers if name not in there):
        print(f"{reader.split_list}: not there, not checked")
    report = Path(config.report)
    if write_report(results, report):
        print(f"all failures are in {report}")
        return False
    return True
