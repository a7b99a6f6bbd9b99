"""HDF5 store of encoded samples: both flips of the photo's and the depth map's latent, and the valid grid.

A cache is a folder of shards; each shard holds a range of sample indices, is written to a partial file and
renamed when whole, and carries the fingerprint of everything that its numbers depend on.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.identity import differences, listed
from marigold.precision import AUTOCAST

FLIPS = 2
PARTS = ("image_latent", "depth_latent", "valid_latent")
DTYPES = {"float16": np.float16, "float32": np.float32}


class CacheError(ValueError):
    """The cache is missing, incomplete, or was made from something else; the message says what to do."""


@dataclass(frozen=True)
class CacheConfig:
    """`cache` in configs/train.yaml: `dtype` is what the files hold, `precision` what the encoder computes in."""

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
    """Training examples of one data set as scaled latents; `valid_latent` marks cells with only valid pixels."""

    names: tuple[str, ...]
    image_latent: Float[Tensor, "B 4 h w"]
    depth_latent: Float[Tensor, "B 4 h w"]
    valid_latent: Bool[Tensor, "B 1 h w"]

    def pin_memory(self) -> "LatentBatch":
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        return LatentBatch(
            self.names, self.image_latent.pin_memory(), self.depth_latent.pin_memory(), self.valid_latent.pin_memory()
        )


Encode = Callable[[Sequence[int], Sequence[bool]], LatentBatch]


def shard_file(folder: Path, shard: int) -> Path:
    """The file of shard number `shard`."""
    return folder / f"shard_{shard:05d}.h5"


def write_cache(
    folder: Path,
    encode: Encode,
    *,
    count: int,
    fingerprint: Mapping[str, object],
    dtype: str,
    shard_size: int,
    batch: int,
    rank: int = 0,
    world: int = 1,
) -> Iterator[int]:
    """Encode `count` samples into shards, this process taking every `world`-th; yields samples done.

    Shards that are there already with the same fingerprint are not made again. Raises CacheError if one
    carries another fingerprint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp = json.dumps({**fingerprint, "dtype": dtype, "shard_size": shard_size, "count": count}, sort_keys=True)
    for shard in range(rank, -(-count // shard_size), world):
        indices = range(shard * shard_size, min((shard + 1) * shard_size, count))
        file = shard_file(folder, shard)
        if file.exists():
            with h5py.File(file) as existing:
                check_fingerprint(file, str(existing.attrs["fingerprint"]), stamp)
            yield len(indices)
            continue
        partial = file.with_suffix(f".partial{rank}")
        with h5py.File(partial, "w") as out:
            out.attrs["fingerprint"] = stamp
            for start in range(0, len(indices), batch):
                chunk = indices[start : start + batch]
                for flip in (False, True):
                    latents = encode(chunk, [flip] * len(chunk))
                    for part in PARTS:
                        tensor = getattr(latents, part).cpu()
                        values = (
                            tensor.numpy() if part == "valid_latent" else tensor.float().numpy().astype(DTYPES[dtype])
                        )
                        store = out.require_dataset(
                            part,
                            (len(indices), FLIPS, *values.shape[1:]),
                            values.dtype,
                            chunks=(1, 1, *values.shape[1:]),
                        )
                        store[start : start + len(chunk), int(flip)] = values
                yield len(chunk)
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(file)


def check_fingerprint(file: Path, found: str, wanted: str) -> None:
    """Refuse a shard made from something else, naming every value that differs."""
    different = differences(json.loads(found), json.loads(wanted))
    if different:
        raise CacheError(
            f"{file} was made from something else. {listed(different, 'cache', 'this run')}. "
            f"Delete {file.parent} or give another cache.folder, and run scripts/cache_latents.py again"
        )


class LatentCache:
    """Reads a cache written by `write_cache`; opened lazily, so that it can be sent to worker processes.

    `names` are the data set's sample names, `fingerprint` what the cache must have been made from.
    Raises CacheError if shards are missing or were made from something else.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        fingerprint: Mapping[str, object],
        dtype: str,
        shard_size: int,
    ) -> None:
        self.folder = folder
        self.names = names
        self.shard_size = shard_size
        count = len(names)
        stamp = json.dumps({**fingerprint, "dtype": dtype, "shard_size": shard_size, "count": count}, sort_keys=True)
        missing = []
        for shard in range(-(-count // shard_size)):
            file = shard_file(folder, shard)
            if not file.is_file():
                missing.append(file.name)
                continue
            with h5py.File(file) as existing:
                check_fingerprint(file, str(existing.attrs["fingerprint"]), stamp)
        if missing:
            raise CacheError(
                f"the latent cache {folder.absolute()} lacks {len(missing)} of {-(-count // shard_size)} shards "
                f"({missing[0]} ...). Run: python scripts/cache_latents.py with the same +exp"
            )
        self._open: dict[int, tuple[h5py.Dataset, ...]] = {}  # of each shard, its PARTS
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}

    def batch(self, indices: Sequence[int], flips: Sequence[bool]) -> LatentBatch:
        """Read one micro-batch as float32 latents."""
        rows = [self._row(index, flip) for index, flip in zip(indices, flips, strict=True)]
        image, depth, valid = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        return LatentBatch(tuple(self.names[index] for index in indices), image.float(), depth.float(), valid)

    def _row(self, index: int, flip: bool) -> list[np.ndarray]:
        if self._owner != os.getpid():
            # A forked worker must not share its parent's file handles.
            self._open, self._owner = {}, os.getpid()
        shard, offset = divmod(index, self.shard_size)
        if shard not in self._open:
            # Looking a dataset up takes four times as long as reading a row. HDF5's own cache of 8 MiB a dataset would
            # grow with every shard and never be hit: a row is one chunk.
            file = h5py.File(shard_file(self.folder, shard), rdcc_nbytes=0)
            self._open[shard] = tuple(file[part] for part in PARTS)
        return [part[offset, int(flip)] for part in self._open[shard]]
