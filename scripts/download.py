"""Download a data set from its publisher, or a benchmark's published evaluation archive: see configs/download.yaml.

python scripts/download.py dataset=nyu out=DIR [source=archive] [dry_run=true]
python scripts/download.py dataset=hypersim out=DIR scenes=[ai_001_001,ai_001_002]

The same command again goes on where it stopped. Exit code: 0 all files are there and checked, 1 something
could not be downloaded (it is named), 2 wrong settings.
"""

import sys

import hydra
from omegaconf import DictConfig

from marigold.config import ConfigError, build, launch
from marigold.data.errors import DataError


@hydra.main(version_base="1.3", config_path="../configs", config_name="download")
def main(config: DictConfig) -> None:
    try:
        sources = config.get("download", {})
        if config.source not in sources:
            known = f"it has: {', '.join(map(str, sources))}" if sources else "this data set is not downloaded"
            raise ConfigError(f"source: no {config.source!r} in configs/download/; {known}")
        report = build(sources[config.source], f"download.{config.source}")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(report.text())
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    launch(main)
