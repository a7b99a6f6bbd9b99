"""The latent cache gives what was written, quickly, and its memory does not grow with what was read."""

import os
from pathlib import Path

import numpy as np
import torch

from marigold.data.latent_cache import LatentBatch, LatentCache, write_cache

COUNT, SHARD, SHAPE = 2000, 50, (4, 16, 16)


def encode(indices, flips):
    """Latents that say which sample and flip they are of."""
    numbers = torch.tensor([index + COUNT * flip for index, flip in zip(indices, flips, strict=True)]).float()
    image = numbers[:, None, None, None].expand(-1, *SHAPE)
    valid = torch.ones(len(indices), 1, *SHAPE[1:], dtype=torch.bool)
    return LatentBatch(tuple(map(str, indices)), image, -image, valid)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_rows_are_what_was_written_and_memory_is_flat_over_20_000_reads(tmp_path):
    settings = {"dtype": "float32", "shard_size": SHARD}
    for _ in write_cache(tmp_path, encode, count=COUNT, fingerprint={"a": 1}, batch=SHARD, **settings):
        pass
    cache = LatentCache(tmp_path, [str(index) for index in range(COUNT)], {"a": 1}, **settings)
    rng = np.random.default_rng(0)
    before = 0
    for read in range(20_000):
        index, flip = int(rng.integers(COUNT)), bool(rng.integers(2))
        batch = cache.batch([index], [flip])
        if read % 20 == 0:
            assert batch.image_latent[0, 0, 0, 0] == -batch.depth_latent[0, 3, 2, 1] == index + COUNT * flip
        if read == 2000:  # every shard is open by now
            before = resident_bytes()
    assert resident_bytes() - before < 4 * 2**20
