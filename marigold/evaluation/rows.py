"""Rows on disk while an evaluation runs, so that one that was stopped resumes."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from marigold.evaluation.evaluate import Row
from marigold.files import write_atomically

Done = dict[tuple[int, str], Row]
"""(seed, image name) -> row."""


class RowStore:
    """Appends rows to `rows/<fingerprint>-<rank>.jsonl` under a folder, one file per process.

    Floats go through their shortest exact representation, so a row that is read back is the row that was
    written, to the last bit. Rows with an error are not kept: the next run tries these images again.
    """

    def __init__(self, folder: Path, fingerprint: str, rank: int) -> None:
        self.folder = folder / "rows"
        self.fingerprint = fingerprint
        self.path = self.folder / f"{fingerprint[:16]}-{rank}.jsonl"

    def load(self) -> Done:
        """What all processes of earlier runs with this fingerprint have done.

        A line that a killed process left half-written is passed over; its image is evaluated again.
        """
        done: Done = {}
        for path in sorted(self.folder.glob(f"{self.fingerprint[:16]}-*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    seed, name, metrics = json.loads(line)
                except ValueError:
                    continue
                done[seed, name] = Row(name, metrics)
        return done

    def append(self, seed: int, row: Row) -> None:
        """Write one row; it survives the process being killed right after."""
        if row.error is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            # A half-written last line must not swallow this one.
            size = file.seek(0, 2)
            file.seek(max(size - 1, 0))
            if file.read(1) not in (b"", b"\n"):
                file.write(b"\n")
            file.write(json.dumps([seed, row.name, row.metrics], allow_nan=False).encode() + b"\n")


def write_csv(path: Path, rows: Mapping[int, Sequence[Row]]) -> None:
    """One line per seed and image: seed, name, the metrics in full precision, and the error if there was one."""
    metrics = next((list(row.metrics) for part in rows.values() for row in part if row.error is None), [])
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["seed", "name", *metrics, "error"])
    for seed, part in rows.items():
        for row in part:
            values = [repr(row.metrics[metric]) if row.error is None else "" for metric in metrics]
            writer.writerow([seed, row.name, *values, row.error or ""])
    write_atomically(path, buffer.getvalue())
