"""Where a run's metrics go: always a JSON line per entry, further trackers on request."""

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from marigold.files import write_atomically


@dataclass(frozen=True)
class Start:
    """Where logging begins: after `step` finished steps, whose validation is finished too if `validated`."""

    step: int = 0
    validated: bool = True

    def precedes(self, entry: Mapping[str, float]) -> bool:
        """Whether an entry of metrics.jsonl was logged before; training entries have a loss, validation ones none."""
        return entry["step"] < self.step or (entry["step"] == self.step and (self.validated or "loss" in entry))


@runtime_checkable
class Tracker(Protocol):
    """Receives a run's metrics; a tracker belongs to the main process alone."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics after `step` finished steps."""

    def close(self) -> None:
        """Finish: nothing is logged afterwards."""


class JsonLines:
    """`metrics.jsonl`: one object per entry, flushed at once.

    A resumed run first drops what a disturbed run logged after `start`, so that the file reads as if nothing had
    happened: the later steps, and the validation of that step unless it was `validated` to the end.
    """

    def __init__(self, path: Path, start: Start) -> None:
        self.kept = [entry for entry in map(json.loads, _whole_lines(path)) if start.precedes(entry)]
        write_atomically(path, "".join(f"{json.dumps(entry)}\n" for entry in self.kept))
        self.file = path.open("a")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def _whole_lines(path: Path) -> list[str]:
    """The lines that a killed run finished writing."""
    if not path.exists():
        return []
    # After the last line feed stands what a kill cut off; of a file that was closed, nothing.
    *whole, _unfinished = path.read_text().split("\n")
    return whole


class Wandb:
    """Weights & Biases; `mode` is online, offline or disabled. A resumed run continues under the same id."""

    def __init__(
        self,
        folder: Path,
        project: str,
        name: str | None,
        mode: str,
        config: Mapping[str, Any],
        start: Start,
    ) -> None:
        import wandb  # optional

        # On the disk, for a resumed run is another process: without it wandb would show two runs.
        identity = folder / "wandb_id.txt"
        if start.step == 0 or not identity.exists():
            identity.write_text(secrets.token_hex(4))
        self.run = wandb.init(
            project=project,
            name=name,
            id=identity.read_text().strip(),
            resume="allow",
            dir=str(folder),
            mode=mode,  # type: ignore[arg-type]
            config=dict(config),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class TensorBoard:
    """Event files in `tensorboard/`; a resumed run's curves are those of metrics.jsonl, whose `kept` entries it takes.

    What a disturbed run logged from the step `start` on is purged, which drops that step's training entry too; so it
    is written again.
    """

    def __init__(self, folder: Path, start: Start, kept: Sequence[Mapping[str, float]]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # optional

        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start.step)
        for entry in kept:
            if entry["step"] == start.step:
                self.log(start.step, {key: value for key, value in entry.items() if key != "step"})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(step, values)

    def close(self) -> None:
        for tracker in self.trackers:
            tracker.close()


@dataclass(frozen=True)
class TrackerConfig:
    """`configs/tracker`: wandb's mode (online, offline, disabled; null is no wandb) and project, and TensorBoard."""

    mode: str | None
    project: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a tracker that is asked for and not installed."""
        for name, wanted in (("wandb", self.mode is not None), ("tensorboard", self.tensorboard)):
            if wanted and find_spec(name) is None:
                raise ValueError(f"tracker={name} needs the package {name}: pip install -e '.[{name}]'")

    def make(self, folder: Path, name: str | None, facts: Mapping[str, Any], start: Start) -> Trackers:
        """The trackers of a run in `folder`; wandb shows it as `name` with `facts` as its configuration."""
        lines = JsonLines(folder / "metrics.jsonl", start)
        trackers: list[Tracker] = [lines]
        if self.mode is not None:
            trackers.append(Wandb(folder, self.project or "marigold", name, self.mode, facts, start))
        if self.tensorboard:
            trackers.append(TensorBoard(folder, start, lines.kept))
        return Trackers(trackers)
