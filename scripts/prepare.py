"""Prepare a data set, or check one: see configs/prepare.yaml for every key.

python scripts/prepare.py dataset=hypersim raw=DIR out=DIR workers=8 [dry_run=true]
python scripts/prepare.py check dataset=hypersim

Exit code: 0 all is well, 1 `check` found offenders, 2 an error that stopped the run.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from marigold.config import ConfigError, build, launch
from marigold.data.errors import DataError
from marigold.data.preparation.check import check


@hydra.main(version_base="1.3", config_path="../configs", config_name="prepare")
def main(config: DictConfig) -> None:
    try:
        if config.action == "check":
            dataset = build(config.dataset.reader, "dataset.reader")
            result = check(dataset, workers=config.workers, report=Path(config.report))
            print(result.text())
            sys.exit(0 if result.clean else 1)
        if config.action != "prepare":
            raise ConfigError(f"action: expected prepare or check, got {config.action!r}")
        if "prepare" not in config:
            raise ConfigError("this dataset has no preparation: no such file in configs/prepare/")
        done = build(config.prepare, "prepare")
        print(done.text() if hasattr(done, "text") else f"written to {config.out}")
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    # Hydra takes no bare word, so the one action that is written as one becomes an override.
    sys.argv[1:] = ["action=check" if argument == "check" else argument for argument in sys.argv[1:]]
    launch(main)
