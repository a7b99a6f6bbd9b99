"""Where a run's metrics go: always a JSON line per entry, wandb and TensorBoard on request."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from marigold.files import write_atomically


@dataclass(frozen=True)
class TrackerConfig:
    """`configs/tracker`: wandb's mode (online, offline, disabled; null is no wandb) and project, and TensorBoard."""

    mode: str | None
    project: str | None = None
    tensorboard: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError for a tracker that is not installed."""
        for name, wanted in (("wandb", self.mode is not None), ("tensorboard", self.tensorboard)):
            if wanted and find_spec(name) is None:
                raise ValueError(f"tracker={name} needs the package {name}: pip install -e '.[{name}]'")


@dataclass(frozen=True)
class Start:
    """Where logging begins: after `step` finished steps, whose validation is finished too if `validated`."""

    step: int = 0
    validated: bool = True

    def precedes(self, entry: Mapping[str, float]) -> bool:
        """Whether an entry of metrics.jsonl was logged before; training entries have a loss, validation ones none."""
        return entry["step"] < self.step or (entry["step"] == self.step and (self.validated or "loss" in entry))


class Tracker:
    """The log of a run in `folder`, for its main process: metrics.jsonl, one object per entry, flushed at once.

    With it wandb, which shows the run under its folder's name with the configuration `facts`, and event files in
    `tensorboard/`, as `config` asks for. A resumed run drops from metrics.jsonl what a killed one logged after
    `start`, so that the file reads as if the run had never stopped, and continues both trackers' curves.
    """

    def __init__(self, folder: Path, config: TrackerConfig, facts: Mapping[str, Any], start: Start) -> None:
        path, self.wandb, self.board = folder / "metrics.jsonl", None, None
        # Whatever follows the last newline is a line cut off by a kill; a closed file has none.
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        kept = [entry for entry in map(json.loads, lines) if start.precedes(entry)]
        write_atomically(path, "".join(f"{json.dumps(entry)}\n" for entry in kept))
        self.file = path.open("a")
        if config.mode is not None:
            self.wandb = _wandb(folder, config, facts, start)
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # optional

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=start.step)
            # The purge drops the training entry of the step `start` too, so it is written again.
            for entry in kept:
                if entry["step"] == start.step:
                    self._draw(start.step, {key: value for key, value in entry.items() if key != "step"})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record metrics after `step` finished steps."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        if self.wandb is not None:
            self.wandb.log(dict(values), step=step)
        self._draw(step, values)

    def _draw(self, step: int, values: Mapping[str, float]) -> None:
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()

    def close(self) -> None:
        """Finish: nothing is logged afterwards."""
        self.file.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.board is not None:
            self.board.close()


def _wandb(folder: Path, config: TrackerConfig, facts: Mapping[str, Any], start: Start) -> Any:
    """A run of Weights & Biases; a resumed one continues under the same id."""
    import wandb  # optional

    # On the disk, since a resumed run is another process: without it wandb would show two runs.
    identity = folder / "wandb_id.txt"
    if start.step == 0 or not identity.exists():
        identity.write_text(secrets.token_hex(4))
    return wandb.init(
        project=config.project or "marigold",
        name=folder.name,
        id=identity.read_text().strip(),
        resume="allow",
        dir=str(folder),
        mode=config.mode,  # type: ignore[arg-type]
        config=dict(facts),
    )
