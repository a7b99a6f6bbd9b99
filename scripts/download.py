"""Download a data set from its publisher, or a benchmark's published evaluation archive: see configs/download.yaml.

python scripts/download.py dataset=nyu [source=archive] [out=DIR] [dry_run=true]
python scripts/download.py -m dataset=nyu,kitti,eth3d,scannet,diode source=archive
python scripts/download.py dataset=hypersim scenes=[ai_001_001,ai_001_002]

The same command again resumes where it stopped. Exit code: 0 all files are there and checked, 1 something
could not be downloaded (it is named), 2 wrong settings; of several sets the highest.
"""

import re
import shlex
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from jobs import run_jobs
from marigold.config import ConfigError, build
from marigold.data.errors import DataError

codes: list[int] = []


def run(config: DictConfig) -> int:
    """Download as configured; the exit code."""
    try:
        sources = config.get("download", {})
        if config.source not in sources:
            known = f"it has: {', '.join(map(str, sources))}" if sources else "this data set is not downloaded"
            raise ConfigError(f"source: no {config.source!r} in configs/download/; {known}")
        node = sources[config.source]
        if "next_step" in node:
            node.next_step = " ".join([node.next_step, *told_next(config)])
        report = build(node, f"download.{config.source}")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(report.text())
    return 1 if report.failed else 0


def told_next(config: DictConfig) -> list[str]:
    """What scripts/prepare.py must be told to find the files: the paths that are not where it looks by itself."""
    told = [word for word in HydraConfig.get().overrides.task if word.startswith("paths.")]
    if config.out != f"{config.paths.downloads}/{config.dataset.reader.name}":
        plain = re.fullmatch(r"[\w./@:+-]+", config.out)
        told.append(f"raw={config.out}" if plain else f"raw='{config.out}'")
    return [shlex.quote(word) for word in told]


@hydra.main(version_base="1.3", config_path="../configs", config_name="download")
def main(config: DictConfig) -> None:
    codes.append(run(config))


if __name__ == "__main__":
    run_jobs(main, codes)
