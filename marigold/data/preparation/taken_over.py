"""Sets whose published files are already what the readers want: linked into place and listed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from marigold.data.errors import DataError
from marigold.data.preparation.images import take_over
from marigold.data.preparation.journal import Outcome
from marigold.data.preparation.runner import ListResult, write_list

Place = tuple[Path, int]


@dataclass(frozen=True)
class PlannedList:
    """A list to write: its file's name, its lines, and the known list that it should be, if any."""

    file: str
    lines: Sequence[str]
    official: str | None


class TakenOver:
    """One item per listed image; `places` are the folders below which a listed name may be found.

    places: for each column of a line (the last one holds for all further columns) the candidates as
    `(folder, strip)`: the file is `folder / name` with its first `strip` parts removed.
    """

    def __init__(
        self, dataset: str, out: Path, lists: Sequence[PlannedList], places: Sequence[Sequence[Place]]
    ) -> None:
        self.dataset, self.out, self.lists, self.places = dataset, out, lists, places
        self._lines = {line.split()[0]: line.split() for planned in lists for line in planned.lines}

    def items(self) -> Sequence[str]:
        return list(self._lines)

    def settings(self) -> Mapping[str, object]:
        return {"dataset": self.dataset}

    def convert(self, item: str, out: Path) -> Outcome:
        files: dict[str, int] = {}
        written = 0
        for column, name in enumerate(self._lines[item]):
            if not is_file_name(name):
                continue
            made, size = self.make(self.source(name, column), out, name, column)
            files |= made
            written += size
        return Outcome(item, files, written)

    def make(self, source: Path, out: Path, name: str, column: int) -> tuple[dict[str, int], int]:
        """Put one file into place; returns {name: size} and the bytes that it took on the disk."""
        return take_over(source, out, name)

    def source(self, name: str, column: int) -> Path:
        """The published file of a listed name; raises DataError, naming where it was looked for."""
        candidates = [
            folder.joinpath(*Path(name).parts[strip:])
            for folder, strip in self.places[min(column, len(self.places) - 1)]
        ]
        found = next((path for path in candidates if path.is_file()), None)
        if found is None:
            raise DataError(f"missing: {' and '.join(map(str, candidates))}")
        return found

    def finish(self, outcomes: Mapping[str, Outcome]) -> Sequence[ListResult]:
        results = []
        for planned in self.lists:
            kept = [line for line in planned.lines if line.split()[0] in outcomes]
            dropped = {"broken": len(planned.lines) - len(kept)} if len(kept) < len(planned.lines) else {}
            results.append(write_list(self.out / planned.file, kept, planned.official, dropped))
        return results


def is_file_name(column: str) -> bool:
    """Whether a column names a file: `None` (no ground truth) and KITTI's focal length do not."""
    return "/" in column
