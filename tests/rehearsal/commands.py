"""The commands that the repository tells its users to type, with the place where it says so."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Command:
    """text: as one types it, in one line unless it is a script. place: file:line, or what printed it."""

    text: str
    place: str


def documented(root: Path) -> list[Command]:
    """Every command in the documentation's bash blocks, data sets' `how_to_get` and experiments' heads, once."""
    found = []
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        found += in_blocks(path.read_text(), str(path.relative_to(root)))
    for path in sorted((root / "configs/dataset").glob("*.yaml")):
        found += _matches(root, path, r"^  how_to_get: (python .*?)(?:; .*)?$")
    for path in sorted((root / "configs/exp").glob("*.yaml")):
        found += _matches(root, path, r"^# (python \S+ \S+?)(?:,? .*)?$")
    first: dict[str, Command] = {}
    for command in found:
        first.setdefault(command.text, command)
    return list(first.values())


def in_blocks(text: str, file: str) -> Iterator[Command]:
    """The commands of the ```bash blocks: a line each, longer where the shell wants more; a script is one."""
    lines = text.split("\n")
    block: list[tuple[int, str]] | None = None
    for number, line in enumerate(lines, 1):
        if block is None:
            block = [] if line.strip() == "```bash" else None
        elif line.strip() == "```":
            yield from _split(block, file)
            block = None
        else:
            block.append((number, line))


def _split(block: list[tuple[int, str]], file: str) -> Iterator[Command]:
    if block and block[0][1].startswith("#!"):
        yield Command("\n".join(line for _, line in block), f"{file}:{block[0][0]}")
        return
    waiting, start = "", 0
    for number, line in block:
        start = start if waiting else number
        waiting += _without_comment(line)
        if waiting.endswith("\\"):
            waiting = waiting[:-1].rstrip() + " "
        elif waiting and not _is_whole(waiting):
            waiting += "\n"
        elif waiting:
            yield Command(" ".join(waiting.split()) if "\n" not in waiting else waiting, f"{file}:{start}")
            waiting = ""
    if waiting.strip():
        yield Command(waiting, f"{file}:{start}")


def _without_comment(line: str) -> str:
    for match in re.finditer(r"(?:^|\s)#", line):
        before = line[: match.start()]
        if before.count("'") % 2 == 0 and before.count('"') % 2 == 0:
            return before.strip()
    return line.strip()


def _is_whole(text: str) -> bool:
    return subprocess.run(["bash", "-n", "-c", text], capture_output=True).returncode == 0


def _matches(root: Path, path: Path, pattern: str) -> Iterator[Command]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := re.match(pattern, line):
            yield Command(match[1], f"{path.relative_to(root)}:{number}")


def recipe(root: Path, target: str, binaries: Path) -> list[Command]:
    """What `make TARGET` would type once the virtual environment is there, as if `binaries` were on the PATH."""
    made = ["make", "-n", "-C", str(root), target, f"BIN={binaries}", "PYTHON=python3"]
    text = subprocess.run(made, capture_output=True, text=True, check=True).stdout
    lines = [line for line in text.splitlines() if line.startswith(f"{binaries}/") and " -m pip " not in line]
    return [Command(line.removeprefix(f"{binaries}/"), f"Makefile:{target}") for line in lines]
