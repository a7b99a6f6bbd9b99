"""The samples of a micro-batch, as a function of the seed and its global index only.

So a resume needs no saved state, and any number of processes can share one stream.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

BLOCK = 1 << 16  # micro-batches whose data sets are drawn together
# One stream of random numbers per purpose, so that none depends on how much another has drawn.
CHOICE, ORDER, FLIP, NOISE, VARIANT, AUGMENTATION = range(6)


@dataclass(frozen=True)
class MicroBatch:
    """The content of one micro-batch: the data set's number, and each sample's index, flip and variant."""

    dataset: int
    indices: tuple[int, ...]
    flips: tuple[bool, ...]
    variants: tuple[int, ...]


@dataclass(eq=False)
class Mixture:
    """Mixes data sets: each micro-batch comes from one of them, drawn by weight.

    Each set runs through its own shuffled epochs; the samples that do not fill a last micro-batch wait for
    another epoch's order. `sizes` are the numbers of samples, `weights` are normalised to sum to 1. `variants` is the
    number of augmented versions of every sample; without any, a micro-batch's are 0.
    Raises ValueError for weights that do not match the sets and for a set smaller than a micro-batch.
    """

    sizes: Sequence[int]
    weights: Sequence[float]
    micro_batch: int
    flip_probability: float
    seed: int
    variants: int = 0

    def __post_init__(self) -> None:
        sizes, weights = self.sizes, self.weights
        if len(sizes) != len(weights) or not sizes or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"mixture: need one weight >= 0 per data set, not all 0; got {list(weights)}")
        small = [size for size, weight in zip(sizes, weights, strict=True) if weight > 0 and size < self.micro_batch]
        if self.micro_batch < 1 or small:
            raise ValueError(f"mixture: a data set of {small} samples cannot fill a micro-batch of {self.micro_batch}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"mixture: flip_probability is a probability, got {self.flip_probability}")
        self.thresholds = tuple(np.cumsum(np.asarray(weights, np.float64) / sum(weights)).tolist())
        self._before: list[NDArray[np.int64]] = [np.zeros(len(sizes), np.int64)]

    def __getitem__(self, g: int) -> MicroBatch:
        """The content of global micro-batch `g` >= 0."""
        block, offset = divmod(g, BLOCK)
        choices = draw_choices(self.seed, self.thresholds, block)
        dataset = int(choices[offset])
        turn = self._count_before(block, dataset) + int(np.count_nonzero(choices[:offset] == dataset))
        epoch, start = divmod(turn, self.sizes[dataset] // self.micro_batch)
        order = draw_order(self.seed, dataset, epoch, self.sizes[dataset])
        indices = order[start * self.micro_batch : (start + 1) * self.micro_batch]
        flips = np.random.default_rng([self.seed, FLIP, g]).random(self.micro_batch) < self.flip_probability
        variants = np.random.default_rng([self.seed, VARIANT, g]).integers(
            max(1, self.variants), size=self.micro_batch
        )
        return MicroBatch(dataset, tuple(indices.tolist()), tuple(flips.tolist()), tuple(variants.tolist()))

    def _count_before(self, block: int, dataset: int) -> int:
        """How many micro-batches of earlier blocks came from `dataset`."""
        while len(self._before) <= block:
            choices = draw_choices(self.seed, self.thresholds, len(self._before) - 1)
            counts = np.bincount(choices, minlength=len(self.sizes))
            self._before.append(self._before[-1] + counts)
        return int(self._before[block][dataset])


@lru_cache(maxsize=4)  # a loader's workers run ahead across the border of a block
def draw_choices(seed: int, thresholds: tuple[float, ...], block: int) -> NDArray[np.int64]:
    """The data set of each micro-batch of a block, drawn by the cumulative weights."""
    draws = np.random.default_rng([seed, CHOICE, block]).random(BLOCK)
    # The last threshold may be rounded to slightly less than 1, with a draw above it.
    return np.minimum(np.searchsorted(thresholds, draws, side="right"), len(thresholds) - 1)


@lru_cache(maxsize=16)  # two epochs of each set of a mixture: the sets end their epochs at different times
def draw_order(seed: int, dataset: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order of a data set's samples in one of its epochs."""
    return np.random.default_rng([seed, ORDER, dataset, epoch]).permutation(size)


Batch = TypeVar("Batch", covariant=True)


@runtime_checkable
class ExampleSource(Protocol[Batch]):
    """A data set as training reads it: images or cached latents, one batch at a time."""

    names: Sequence[str]

    def batch(self, indices: Sequence[int], flips: Sequence[bool], variants: Sequence[int]) -> Batch:
        """The examples with these indices, each mirrored if its flip is true, in its augmented version."""


class MixtureDataset(Dataset[Batch]):
    """The mixture as a torch data set whose index is the global micro-batch index."""

    def __init__(self, mixture: Mixture, sources: Sequence[ExampleSource[Batch]]) -> None:
        self.mixture = mixture
        self.sources = sources

    def __getitem__(self, g: int) -> Batch:
        micro = self.mixture[g]
        return self.sources[micro.dataset].batch(micro.indices, micro.flips, micro.variants)

    def names(self, g: int) -> list[str]:
        """The sample names of micro-batch `g`, for messages."""
        micro = self.mixture[g]
        return [self.sources[micro.dataset].names[index] for index in micro.indices]


def global_indices(start_step: int, end_step: int, accumulation: int, rank: int, world: int) -> Iterable[int]:
    """Global micro-batch indices of one process, in the order in which it takes them.

    g = (step * accumulation + k) * world + rank, so 16 accumulated micro-batches of one process and 2 on each of
    8 processes are the same 16.
    """
    for step in range(start_step, end_step):
        for k in range(accumulation):
            yield (step * accumulation + k) * world + rank
