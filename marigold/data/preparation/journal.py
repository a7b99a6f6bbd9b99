"""What a preparation has done so far, on disk: one JSON line per image, so that a killed run continues."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType

from marigold.data.errors import DataError

log = logging.getLogger(__name__)


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


class Journal:
    """The finished items of one output folder; a context manager while writing.

    `settings` are those that the files depend on. Raises DataError if the folder was made with others.
    """

    def __init__(self, out: Path, settings: Mapping[str, object]) -> None:
        self.path = out / ".prepare" / "journal.jsonl"
        self._out = out
        self._head = {"settings": json.loads(json.dumps(settings))}

    def load(self) -> dict[str, Outcome]:
        """The items whose files are all there with their recorded sizes; the others will be made again."""
        if not self.path.exists():
            return {}
        lines = self.path.read_text(encoding="utf-8").splitlines()
        head, *rest = [entry for entry in map(_parse, lines) if entry is not None] or [self._head]
        if head != self._head:
            raise DataError(
                f"{self._out} was prepared with {head.get('settings')}, now asked for "
                f"{self._head['settings']}: take another out=DIR, or delete this one"
            )
        outcomes = (Outcome(**entry) for entry in rest)
        return {outcome.name: outcome for outcome in outcomes if self._is_there(outcome)}

    def _is_there(self, outcome: Outcome) -> bool:
        try:
            return all(os.stat(self._out / name).st_size == size for name, size in outcome.files.items())
        except OSError:
            return False

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        self._file = open(self.path, "a", encoding="utf-8")
        if self.path.stat().st_size == 0:
            self._write(self._head)
        elif torn:  # killed in the middle of a line: end it, it will be passed over
            self._file.write("\n")
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()

    def add(self, outcome: Outcome) -> None:
        self._write(asdict(outcome))

    def _write(self, entry: Mapping[str, object]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()


def _parse(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        log.info("passing over a torn line of the journal: %.80s", line)
        return None
