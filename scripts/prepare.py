"""Prepare a data set, or check one: see configs/prepare.yaml for every key.

python scripts/prepare.py dataset=hypersim workers=8 [raw=DIR] [out=DIR] [dry_run=true]
python scripts/prepare.py -m dataset=nyu,kitti,eth3d,scannet,diode source=archive
python scripts/prepare.py check dataset=hypersim

Exit code: 0 all is well, 1 `check` found offenders, 2 an error that stopped the run; of several sets the highest.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from jobs import run_jobs
from marigold.config import ConfigError, build
from marigold.data.preparation.check import check, write_report

codes: list[int] = []


def run(config: DictConfig) -> int:
    """Prepare or check as configured; the exit code."""
    try:
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
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check_lists(config: DictConfig) -> int:
    """Check every list of the set that is there, each as it is read in training or evaluation; the exit code."""
    if "split_list" not in config.dataset.reader:
        raise ConfigError("this data set has no lists to check")
    readers = {}
    for name, changes in (config.get("check") or {"reader": {}}).items():
        readers[name] = OmegaConf.merge(config.dataset.reader, changes)
        readers[name]._set_parent(config.dataset)  # interpolations look upwards
    there = [name for name, reader in readers.items() if Path(reader.split_list).exists()]
    results = []
    for name in there or list(readers)[:1]:  # of none that is there the reader says how to get it
        results.append(check(build(readers[name], f"check.{name}"), workers=config.workers))
        print(results[-1].text())
    for reader in (readers[name] for name in readers if name not in there):
        print(f"{reader.split_list}: not there, not checked")
    report = Path(config.report)
    if write_report(results, report):
        print(f"all offenders are in {report}")
        return 1
    return 0


@hydra.main(version_base="1.3", config_path="../configs", config_name="prepare")
def main(config: DictConfig) -> None:
    codes.append(run(config))


if __name__ == "__main__":
    # Hydra takes no bare word, so the one action that is written as one becomes an override.
    sys.argv[1:] = ["action=check" if argument == "check" else argument for argument in sys.argv[1:]]
    run_jobs(main, codes)
