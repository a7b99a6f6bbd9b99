"""What a preparation has done so far, on disk: one JSON line per item, so that a killed run resumes."""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from marigold.data.errors import DataError
from marigold.files import write_atomically

log = logging.getLogger(__name__)
_PLACE = ".prepare/journal.jsonl"


@dataclass(frozen=True)
class Outcome:
    """What became of one item.

    `files`: name below the output folder -> size. `written`: bytes that took disk (a hard link takes none).
    `facts`: numbers that the lists depend on. `broken`: why the item could not be converted, or "".
    """

    name: str
    files: Mapping[str, int] = field(default_factory=dict)
    written: int = 0
    facts: Mapping[str, int | float] = field(default_factory=dict)
    broken: str = ""


def load(out: Path, settings: Mapping[str, object]) -> dict[str, Outcome]:
    """The outcomes whose files are all there with their recorded sizes, by item; the others are made again.

    `settings`: those that the files depend on. Raises DataError if `out` was made with others.
    """
    if not (out / _PLACE).exists():
        return {}
    head, *entries = [*_entries(out / _PLACE)] or [{"settings": settings}]
    # To JSON and back, so that a tuple equals the list as which it was stored.
    if head != json.loads(json.dumps({"settings": settings})):
        differs = f"{out} was prepared with {head.get('settings')}, now asked for {dict(settings)}"
        raise DataError(f"{differs}: take another out=DIR, or delete this one")
    outcomes = [Outcome(**entry) for entry in entries]
    return {made.name: made for made in outcomes if all(_size(out / file) == made.files[file] for file in made.files)}


@contextmanager
def continued(
    out: Path, settings: Mapping[str, object], known: Mapping[str, Outcome]
) -> Iterator[Callable[[Outcome], int]]:
    """A function that adds an outcome to the journal, which begins with the `known` ones."""
    entries = [{"settings": settings}, *map(asdict, known.values())]
    write_atomically(out / _PLACE, "".join(f"{json.dumps(entry)}\n" for entry in entries))
    # Line by line: a killed run loses the line it was writing, no more.
    with open(out / _PLACE, "a", encoding="utf-8", buffering=1) as file:
        yield lambda outcome: file.write(f"{json.dumps(asdict(outcome))}\n")


def _entries(path: Path) -> Iterator[dict]:
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:  # of a run that was killed in the middle of the line
            log.info("ignoring a torn line of the journal: %.80s", line)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
