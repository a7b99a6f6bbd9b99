"""Where a run's figures go: a JSON line per entry always, further trackers when asked for."""

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
    """Receives a run's figures; a tracker belongs to the main process alone."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record figures after `step` finished steps."""

    def close(self) -> None:
        """Finish: nothing is logged afterwards."""


class JsonLines:
    """`metrics.jsonl`: one object per entry, flushed at once.

    A resumed run first drops what a disturbed run logged after `start`, so that the file reads as if nothing had
    happened: the later steps, and the validation of that step unless it was `validated` to the end.
    """

    def __init__(self, path: Path, start: Start) -> None:
        kept = [line for line in _whole_lines(path) if start.precedes(json.loads(line))]
        write_atomically(path, "".join(f"{line}\n" for line in kept))
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
    *whole, _unfinished = path.read_text().split("\n")
    return whole


class Wandb:
    """Weights & Biases; `mode` is online, offline or disabled. A resumed run goes on under the same id."""

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
    """`configs/tracker`: wandb's mode (online, offline, disabled) and project; null is no wandb."""

    mode: str | None
    project: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError if wandb is asked for and not installed."""
        if self.mode is not None and find_spec("wandb") is None:
            raise ValueError("tracker=wandb needs the package wandb: pip install -e '.[wandb]'")

    def make(self, folder: Path, name: str | None, facts: Mapping[str, Any], start: Start) -> Trackers:
        """The trackers of a run in `folder`; wandb shows it as `name` with `facts` as its configuration."""
        trackers: list[Tracker] = [JsonLines(folder / "metrics.jsonl", start)]
        if self.mode is not None:
            trackers.append(Wandb(folder, self.project or "marigold", name, self.mode, facts, start))
        return Trackers(trackers)
