"""Which micro-batch fits on which GPU: the bytes of a training step, computed and not measured.

This makes the table of docs/memory.md. A micro-batch of the full-size model at 480x640 runs on tensors that have sizes
and no numbers, and every storage is counted from its birth to its end. Set aside is what no tensor holds: CUDA itself,
its libraries' workspaces, gaps.
"""

import argparse
import itertools
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import make_batch, make_objective, read
from benchmarks.timing import table
from marigold.inputs import Settings

HEAD = ("recipe", "checkpointing", "optimiser", "fixed", "1 sample", "each more")
CARDS = (12, 16, 24, 48, 80)
BATCHES = (32, 16, 8, 4, 2, 1)
ASIDE = 1.5 * 2**30  # bytes of a card that no tensor holds
MOMENTS = {"adam": 8, "adam8bit": 2}  # bytes per parameter
LORA = "model.lora.rank=64"
CASES = {
    "marigold, bf16": ("bf16", "recipe=marigold"),
    "marigold, float32": ("no", "recipe=marigold"),
    "e2e_ft, bf16": ("bf16", "recipe=e2e_ft"),
}


def main(argv: list[str]) -> None:
    argparse.ArgumentParser(prog="benchmark.py memory", description=__doc__).parse_args(argv)
    print(table((*HEAD, *(f"{card} GB" for card in CARDS)), rows()))


def rows() -> Iterator[list[str]]:
    """The table's lines: a recipe and precision, with and without checkpointing, by each optimiser."""
    for (name, (precision, recipe)), switch, lora in itertools.product(
        CASES.items(), ("false", "true"), ((), (LORA,))
    ):
        settings = read(recipe, f"performance.gradient_checkpointing={switch}", *lora)
        one, two = (micro_batch_bytes(settings, precision, count) for count in (1, 2))
        more = two.peak - one.peak
        for optimizer, moments in ({"LoRA 64, adam": 8} if lora else MOMENTS).items():
            # Weights and gradients in float32 and the moments of what is trained; weights of what is frozen.
            fixed = one.parameters * (4 + 4 + moments) + one.frozen * 4
            sizes = [f"{size / 1e9:.1f}" for size in (fixed, one.peak, more)]
            rooms = [card * 2**30 - ASIDE - fixed - one.peak for card in CARDS]
            largest = [next((str(n) for n in BATCHES if (n - 1) * more <= room), "-") for room in rooms]
            yield [name, "yes" if switch == "true" else "no", optimizer, *sizes, *largest]


class Bytes(TorchDispatchMode):
    """The bytes of storages that came into being within it and are not `known`: `now`, and at the `peak`."""

    def __init__(self, *known: Tensor | None) -> None:
        super().__init__()
        self.counted = {tensor.untyped_storage()._cdata for tensor in known if tensor is not None}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        # Every operation passes here, backward too; a view shares its tensor's storage and is not counted again.
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.counted:
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        self.counted.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self.counted.discard(key)
        self.now -= size


class Count(NamedTuple):
    """Parameters in training, parameters that are frozen, and a micro-batch's bytes at its peak."""

    parameters: int
    frozen: int
    peak: int


def micro_batch_bytes(settings: Settings, precision: str, count: int, *, tiny: bool = False) -> Count:
    """The bytes of `count` samples, forward and backward, with gradients of earlier micro-batches in place."""
    with FakeTensorMode():
        with patch.object(nn.Module, "to", lambda module, *_, **__: module):  # peft moves; no numbers, no move
            base, objective = make_objective(numberless(settings), tiny, torch.device("cpu"))
        parameters = [*base.unet.parameters(), *base.vae.parameters()]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)  # as after an earlier micro-batch of the step
        for module in (*base.unet.modules(), *base.vae.modules()):
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):
                module.register_forward_pre_hook(_in_float32)
        batch = make_batch(count, settings.cache.enabled, tiny)
        with Bytes(*parameters, *(parameter.grad for parameter in trained)) as counted:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = objective(base.unet, batch, 0)
            loss.backward()
    size = sum(one.numel() for one in trained)
    return Count(size, sum(one.numel() for one in parameters) - size, counted.peak)


def _in_float32(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Autocast normalises in float32 on a GPU, and on a CPU it does not."""
    return (arguments[0].float(),)


def numberless(settings: Settings) -> Settings:
    """The same with plain noise: its kind costs a GPU nothing, and drawing the annealed one needs numbers."""
    recipe = settings.recipe
    return settings if recipe.switches.silent else replace(settings, recipe=replace(recipe, noise="gaussian"))


@contextmanager
def flops() -> Iterator[FlopCounterMode]:
    """Counts floating-point operations without computing anything."""
    with FakeTensorMode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        yield counter
