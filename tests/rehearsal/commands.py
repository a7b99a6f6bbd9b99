"""The commands that the documentation tells its readers to type, each with its place."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """text: as it is typed, on one line unless it is a script. place: file:line, or what printed it."""

    text: str
    place: str


def documented(root: Path) -> list[Command]:
    """Every command in the documentation's bash blocks, data sets' `how_to_get` and experiments' heads, once."""
    found: list[Command] = []
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        found += in_blocks(path.read_text(), str(path.relative_to(root)))
    for folder, pattern in (
        ("configs/dataset", r"^  how_to_get: (python .*?)(?:; .*)?$"),
        ("configs/exp", r"^# (python \S+ \S+?)(?:,? .*)?$"),
    ):
        for path in sorted((root / folder).glob("*.yaml")):
            texts = re.findall(pattern, path.read_text(), re.MULTILINE)
            found += [Command(text, str(path.relative_to(root))) for text in texts]
    return list({command.text: command for command in reversed(found)}.values())


def in_blocks(text: str, file: str) -> Iterator[Command]:
    """The commands of the ```bash blocks: a line each, longer after a backslash; a script with #! is one."""
    for block in re.finditer(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        is_script = block[1].startswith("#!")
        for match in [block] if is_script else re.finditer(r"(?:.*\\\n)*.+", block[1]):
            start = block.start(1) + (0 if is_script else match.start())
            typed = match[1].strip() if is_script else " ".join(re.sub(r"\s#.*|\\\n", " ", match[0]).split())
            yield Command(typed, f"{file}:{1 + text.count(chr(10), 0, start)}")


def recipe(root: Path, target: str, binaries: Path) -> list[Command]:
    """The commands of `make TARGET` after the installation, as if `binaries` were on the PATH."""
    made = ["make", "-n", "-C", str(root), target, f"BIN={binaries}", "PYTHON=python3"]
    text = subprocess.run(made, capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.splitlines() if line.startswith(f"{binaries}/") and " -m pip " not in line]
    return [Command(line.removeprefix(f"{binaries}/"), f"Makefile:{target}") for line in lines]
