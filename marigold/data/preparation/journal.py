"""What a preparation has done so far, on disk: one JSON line per item, so that a killed run resumes."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from marigold.data.errors import DataError
from marigold.files import write_atomically

_PLACE = ".prepare/journal.jsonl"


@dataclass(frozen=True)
class Converted:
    """The files of one item, name below the output folder -> size in bytes, and the facts that the lists depend on."""

    files: Mapping[str, int]
    facts: Mapping[str, int | float] = field(default_factory=dict)


def load(out: Path, settings: Mapping[str, str | int]) -> dict[str, Converted]:
    """The items whose files all have their recorded sizes; the others are converted again.

    `settings`: those that the files depend on. Raises DataError if `out` was made with others.
    """
    if not (out / _PLACE).exists():
        return {}
    # A run that was killed while it wrote the last line left it without its end.
    head, *entries = map(json.loads, (out / _PLACE).read_text(encoding="utf-8").split("\n")[:-1])
    if head["settings"] != settings:
        differs = f"{out} was prepared with {head['settings']}, this run has {dict(settings)}"
        raise DataError(f"{differs}: choose another out=DIR, or delete this one")
    found = {entry["name"]: Converted(entry["files"], entry["facts"]) for entry in entries}
    return {item: made for item, made in found.items() if all(_size(out / f) == made.files[f] for f in made.files)}


@contextmanager
def continued(
    out: Path, settings: Mapping[str, str | int], known: Mapping[str, Converted]
) -> Iterator[Callable[[str, Converted], int]]:
    """A function that adds an item to the journal, which begins with the `known` ones."""
    lines = [json.dumps({"settings": settings}), *(_line(item, made) for item, made in known.items())]
    write_atomically(out / _PLACE, "".join(f"{line}\n" for line in lines))
    # Line by line: a killed run loses only the line that it was writing.
    with open(out / _PLACE, "a", encoding="utf-8", buffering=1) as file:
        yield lambda item, made: file.write(f"{_line(item, made)}\n")


def _line(item: str, made: Converted) -> str:
    return json.dumps({"name": item, "files": made.files, "facts": made.facts})


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
