"""Exponential moving average used for validation and export; a no-op if `decay` is None."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel


class MovingAverage:
    """Diffusers' EMAModel of parameters, or nothing at all if `decay` is None."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float | None) -> None:
        self.parameters = list(parameters)
        # foreach: one launch for all parameters instead of one for each of some hundreds
        self.average = None if decay is None else EMAModel(self.parameters, decay=decay, foreach=True)

    def to(self, device: torch.device) -> None:
        """Move the average to `device`."""
        if self.average is not None:
            self.average.to(device)

    def update(self) -> None:
        """Take the parameters into the average, after an optimiser step."""
        # average <- d average + (1 - d) weights, with d = min(decay, (1 + n) / (10 + n)) at the update after n others
        # and d = 0 at the first: diffusers' warm-up, so that the starting weights do not count for long.
        if self.average is not None:
            self.average.step(self.parameters)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in place of the parameters; afterwards they are back, bit for bit."""
        if self.average is None:
            yield
            return
        self.average.store(self.parameters)
        self.average.copy_to(self.parameters)
        try:
            yield
        finally:  # also after a validation that fails: training must never continue from the average
            self.average.restore(self.parameters)

    def state(self) -> dict[str, Any]:
        """The state that `load` needs, read while the average is in place: the model folder holds the average then."""
        if self.average is None:
            return {}
        return {"average": self.average.state_dict(), "weights": self.average.temp_stored_params}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Set the average, and the parameters, which the model folder does not hold."""
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            for parameter, saved in zip(self.parameters, state["weights"], strict=True):
                parameter.copy_(saved)
