"""HDF5 stores of encoded samples: latents of images and depth maps, and targets as pixels, in every version.

The cache of a data set is a folder of stores, and a store is a folder of shards. A shard holds a range of sample
indices, with one row per variant and flip of a sample. It is written to a partial file, renamed when whole, and has
the fingerprint of everything that its numbers depend on.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.files import atomic_file
from marigold.identity import differences, listed
from marigold.precision import AUTOCAST

FLIPS = 2
# The parts of a batch that are stored together.
IMAGE: tuple[str, ...] = ("image_latent",)
LATENTS: tuple[str, ...] = ("depth_latent", "valid_latent")
PIXELS: tuple[str, ...] = ("depth_norm", "valid", "half_range")
FLAGS = ("valid_latent", "valid")
DTYPES = {"float16": np.float16, "float32": np.float32}


class CacheError(ValueError):
    """The cache is missing, incomplete, or was made from something else; the message says what to do."""


@dataclass(frozen=True)
class CacheConfig:
    """`cache` in configs/train.yaml: `dtype` of the files, `precision` of the encoder."""

    enabled: bool
    folder: str
    dtype: str
    precision: str
    shard_size: int
    batch: int

    def __post_init__(self) -> None:
        for key, value, known in (("precision", self.precision, AUTOCAST), ("dtype", self.dtype, DTYPES)):
            if value not in known:
                raise CacheError(f"cache.{key}: expected one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class LatentBatch:
    """Training examples of one data set as scaled latents and targets; a part that is not cached is None.

    `valid_latent` marks cells with only valid pixels; the parts as pixels come from `PixelBatch`.
    """

    names: tuple[str, ...]
    image_latent: Float[Tensor, "B 4 h w"] | None = None
    depth_latent: Float[Tensor, "B 4 h w"] | None = None
    valid_latent: Bool[Tensor, "B 1 h w"] | None = None
    depth_norm: Float[Tensor, "B 1 H W"] | None = None
    valid: Bool[Tensor, "B 1 H W"] | None = None
    half_range: Float[Tensor, "B"] | None = None

    def pin_memory(self) -> "LatentBatch":
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        parts: dict[str, Any] = {key: part for key, part in vars(self).items() if isinstance(part, Tensor)}
        return replace(self, **{key: part.pin_memory() for key, part in parts.items()})


@dataclass(frozen=True)
class Store:
    """One folder of shards with the same `parts` of every sample.

    `depends_on`: everything that the numbers depend on. `count`: the number of samples, `variants`: of their
    augmented versions (0: only the sample itself). `dtype`: of the stored numbers; half ranges are always float32.
    """

    folder: Path
    parts: tuple[str, ...]
    depends_on: Mapping[str, object]
    count: int
    variants: int
    dtype: str
    shard_size: int

    @property
    def shards(self) -> list[range]:
        """The sample indices of each shard."""
        starts = range(0, self.count, self.shard_size)
        return [range(start, min(start + self.shard_size, self.count)) for start in starts]

    @property
    def _stamp(self) -> str:
        layout = {"dtype": self.dtype, "shard_size": self.shard_size, "count": self.count}
        return json.dumps({**self.depends_on, **layout}, sort_keys=True)

    def file(self, shard: int) -> Path:
        """The file of shard number `shard`."""
        return self.folder / f"shard_{shard:05d}.h5"

    def absent(self) -> list[int]:
        """The numbers of the missing shards.

        Raises CacheError for a shard that was made from something else, naming every value that differs.
        """
        absent = []
        for shard in range(len(self.shards)):
            file = self.file(shard)
            if not file.is_file():
                absent.append(shard)
                continue
            with h5py.File(file) as existing:
                found = json.loads(str(existing.attrs["fingerprint"]))
            if different := differences(found, json.loads(self._stamp)):
                raise CacheError(
                    f"{file} was made from something else. {listed(different, 'cache', 'this run')}. "
                    f"Delete {self.folder} or give another cache.folder, and run scripts/cache_latents.py again"
                )
        return absent

    @contextmanager
    def new(self, shard: int) -> Iterator[h5py.File]:
        """The file of a shard to write, which appears under its name when whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.file(shard)) as whole, h5py.File(whole.name, "w") as out:
            out.attrs["fingerprint"] = self._stamp
            yield out

    def put(self, out: h5py.File, batch: LatentBatch, samples: slice, size: int, variant: int, flip: bool) -> None:
        """Write this store's parts of a batch: `samples` of a shard of `size`, in one variant and flip."""
        for part in self.parts:
            tensor = getattr(batch, part).cpu()
            if part in FLAGS:
                values = tensor.numpy().view(np.uint8)  # HDF5 has no bool; h5py's substitute is six times as slow
            else:
                # A half range gives a loss in metres its unit: float16 would round it by up to 0.05 %.
                values = tensor.float().numpy().astype(DTYPES["float32" if part == "half_range" else self.dtype])
            shape = (size, max(1, self.variants), FLIPS, *values.shape[1:])
            if part in out and out[part].shape != shape:
                raise CacheError(f"{self.folder}: images of different sizes in one set; give the set a transform.size")
            # A row is a chunk: training reads rows in random order, and each is then one contiguous read.
            stored = out.require_dataset(part, shape, values.dtype, chunks=(1, 1, 1, *values.shape[1:]))
            stored[samples, variant, int(flip)] = values


Encode = Callable[[Sequence[int], Sequence[bool], Sequence[int], Sequence[str]], LatentBatch]
"""encode(indices, flips, variants, parts) -> a batch that has at least these parts."""


def write_cache(
    stores: Sequence[Store], encode: Encode, *, batch: int, rank: int = 0, world: int = 1
) -> Iterator[int]:
    """Encode the samples of `stores` shard by shard, this process taking every `world`-th; yields samples done.

    The stores have the same samples and shard size. Existing shards are kept, and only the parts of stores that lack a
    shard are encoded. Raises CacheError if a shard was made from something else, before any is written.
    """
    # For all stores before the first is written: a conflict is an error after seconds, not after hours.
    absent = {store.folder: store.absent() for store in stores}
    shards = stores[0].shards
    for shard in range(rank, len(shards), world):  # whole shards: HDF5 files have one writer
        indices = shards[shard]
        lacking = [store for store in stores if shard in absent[store.folder]]
        if not lacking:
            yield len(indices)
            continue
        parts = [part for store in lacking for part in store.parts]
        with ExitStack() as files:
            opened = [(store, files.enter_context(store.new(shard))) for store in lacking]
            for start in range(0, len(indices), batch):
                chunk = indices[start : start + batch]
                for variant in range(max(1, stores[0].variants)):
                    for flip in (False, True):
                        encoded = encode(chunk, [flip] * len(chunk), [variant] * len(chunk), parts)
                        for store, out in opened:
                            samples = slice(start, start + len(chunk))
                            store.put(out, encoded, samples, len(indices), variant, flip)
                yield len(chunk)


class LatentCache:
    """Reads stores that `write_cache` wrote; opened lazily, so that it can be sent to worker processes.

    `names` are the data set's sample names. Raises CacheError if shards are missing or were made from something else.
    """

    def __init__(self, names: Sequence[str], stores: Sequence[Store]) -> None:
        self.names, self.stores = names, stores
        self.parts = [part for store in stores for part in store.parts]
        missing = []
        for store in stores:
            if absent := store.absent():
                first = store.file(absent[0]).name
                lacks = f"lacks {len(absent)} of {len(store.shards)} shards ({first} ...)"
                missing.append(f"the latent cache {store.folder.absolute()} {lacks}")
        if missing:
            raise CacheError(f"{'; '.join(missing)}. Run: python scripts/cache_latents.py with the same +exp")
        # The parts of each shard, by process: a forked worker must not share its parent's file handles.
        self._open: dict[tuple[int, int], list[h5py.Dataset]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}  # open files cannot be pickled; a worker opens its own

    def batch(self, indices: Sequence[int], flips: Sequence[bool], variants: Sequence[int]) -> LatentBatch:
        """Read one micro-batch, its numbers as float32."""
        rows = [self._row(*which) for which in zip(indices, flips, variants, strict=True)]
        found = {}
        for part, values in zip(self.parts, zip(*rows, strict=True), strict=True):
            stacked = np.stack(values)
            found[part] = torch.from_numpy(stacked.view(bool)) if part in FLAGS else torch.from_numpy(stacked).float()
        return LatentBatch(tuple(self.names[index] for index in indices), **found)

    def _row(self, index: int, flip: bool, variant: int) -> list[np.ndarray | np.generic]:
        shard, offset = divmod(index, self.stores[0].shard_size)
        key = os.getpid(), shard
        if key not in self._open:
            # Looking a dataset up takes four times as long as reading a row. HDF5's own cache of 8 MiB a dataset would
            # grow with every shard and never be hit: a row is one chunk.
            files = [(store, h5py.File(store.file(shard), rdcc_nbytes=0)) for store in self.stores]
            self._open[key] = [file[part] for store, file in files for part in store.parts]
        return [part[offset, variant, int(flip)] for part in self._open[key]]
