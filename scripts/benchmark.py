"""Run a benchmark: `python scripts/benchmark.py NAME [options]`; without a name, list them."""

import importlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

HELPERS = {"__init__", "timing", "models"}
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py") if path.stem not in HELPERS)


def main() -> None:
    name, arguments = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    if name not in NAMES:
        sys.exit(f"usage: python scripts/benchmark.py {'|'.join(NAMES)} [--help]")
    importlib.import_module(f"benchmarks.{name}").main(arguments)


if __name__ == "__main__":
    main()
