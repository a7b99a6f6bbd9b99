"""The latent cache gives what was written, quickly, and its memory does not grow with what was read."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from marigold.data.latent_cache import IMAGE, LATENTS, PIXELS, CacheError, LatentBatch, LatentCache, Store, write_cache

COUNT, SHARD, SHAPE = 2000, 50, (4, 16, 16)


def number(index, flip, variant=0):
    return index + COUNT * flip + 2 * COUNT * variant


def encode(indices, flips, variants, parts):
    """Latents and pixels that say which sample, flip and variant they are of; no other parts than these."""
    numbers = torch.tensor([number(*which) for which in zip(indices, flips, variants, strict=True)]).float()
    image = numbers[:, None, None, None].expand(-1, *SHAPE)
    flags = (numbers % 2 == 0)[:, None, None, None].expand(-1, 1, *SHAPE[1:])
    made = {"image_latent": image, "depth_latent": -image, "valid_latent": flags}
    made |= {"depth_norm": image[:, :1] / 1e5, "valid": ~flags, "half_range": numbers / 3}
    return LatentBatch(tuple(map(str, indices)), **{part: made[part] for part in parts})


def stores(folder, *names, count=7, variants=0, dtype="float32", shard_size=3, **depends_on):
    parts = {"image": IMAGE, "depth": LATENTS, "log_depth": LATENTS, "depth-pixels": PIXELS}
    return [Store(folder / name, parts[name], depends_on, count, variants, dtype, shard_size) for name in names]


def write(chosen, encode=encode, **how):
    return list(write_cache(chosen, encode, batch=2, **how))


def read(chosen):
    return LatentCache([str(index) for index in range(chosen[0].count)], chosen)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*.h5")}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_rows_are_what_was_written_and_memory_is_flat_over_20_000_reads(tmp_path):
    chosen = stores(tmp_path, "image", "depth", count=COUNT, shard_size=SHARD)
    for _ in write_cache(chosen, encode, batch=SHARD):
        pass
    cache = read(chosen)
    rng = np.random.default_rng(0)
    before = 0
    for step in range(20_000):
        index, flip = int(rng.integers(COUNT)), bool(rng.integers(2))
        batch = cache.batch([index], [flip], [0])
        if step % 20 == 0:
            assert batch.image_latent[0, 0, 0, 0] == -batch.depth_latent[0, 3, 2, 1] == number(index, flip)
        if step == 2000:  # every shard is open by now
            before = resident_bytes()
    assert resident_bytes() - before < 4 * 2**20


def test_every_variant_and_flip_is_a_row_of_its_own_and_parts_that_are_not_cached_are_none(tmp_path):
    chosen = stores(tmp_path, "image", "depth-pixels", variants=3)
    assert write(chosen) == [2, 1, 2, 1, 1]
    cache = pickle.loads(pickle.dumps(read(chosen)))  # as a spawned worker gets it
    every = [(index, flip, variant) for index in range(7) for flip in (False, True) for variant in range(3)]
    indices, flips, variants = zip(*every, strict=True)
    batch, wanted = cache.batch(indices, flips, variants), encode(indices, flips, variants, (*IMAGE, *PIXELS))
    assert batch.names == wanted.names
    for part in (*IMAGE, *PIXELS):
        assert getattr(batch, part).dtype == getattr(wanted, part).dtype
        assert torch.equal(getattr(batch, part), getattr(wanted, part)), part
    assert batch.depth_latent is None
    assert batch.valid_latent is None


def test_half_precision_rounds_all_but_the_half_range(tmp_path):
    chosen = stores(tmp_path, "depth-pixels", dtype="float16")
    write(chosen)
    batch, wanted = read(chosen).batch([3], [True], [0]), encode([3], [True], [0], PIXELS)
    assert torch.equal(batch.depth_norm, wanted.depth_norm.half().float())
    assert not torch.equal(batch.depth_norm, wanted.depth_norm)
    assert torch.equal(batch.half_range, wanted.half_range)
    assert torch.equal(batch.valid, wanted.valid)


def test_another_mapping_shares_the_image_latents(tmp_path):
    made = []

    def noted(indices, flips, variants, parts):
        made.append(tuple(parts))
        return encode(indices, flips, variants, parts)

    write(stores(tmp_path, "image", "depth"), noted)
    before = contents(tmp_path)
    assert set(made) == {(*IMAGE, *LATENTS)}
    made.clear()
    write(stores(tmp_path, "image", "log_depth", "depth-pixels"), noted)
    assert set(made) == {(*LATENTS, *PIXELS)}
    assert {path: contents(tmp_path)[path] for path in before} == before


def test_processes_share_the_shards(tmp_path):
    chosen = stores(tmp_path, "image", "depth")
    for rank in range(2):
        write(chosen, rank=rank, world=2)
        missing = [[1], []][rank]
        assert [store.absent() for store in chosen] == [missing, missing]
    alone = stores(tmp_path / "alone", "image", "depth")
    write(alone)
    assert list(contents(tmp_path / "alone").values()) == [
        content for path, content in contents(tmp_path).items() if "alone" not in path.parts
    ]


def test_a_shard_that_was_not_finished_is_not_there(tmp_path):
    def full(indices, flips, variants, parts):
        if 4 in indices:
            raise OSError("no space left on device")
        return encode(indices, flips, variants, parts)

    chosen = stores(tmp_path, "image", "depth")
    with pytest.raises(OSError, match="no space"):
        write(chosen, full)
    assert [store.absent() for store in chosen] == [[1, 2], [1, 2]]
    with pytest.raises(CacheError, match=rf"{chosen[1].folder}.* 2 of 3 .*scripts/cache_latents\.py"):
        read(chosen)
    assert write(chosen) == [3, 2, 1, 1]
    assert read(chosen).batch([4], [False], [0]).image_latent[0, 0, 0, 0] == 4


def test_what_was_made_from_something_else_is_refused_before_anything_is_written(tmp_path):
    write(stores(tmp_path, "image", vae="one", size=8))
    before = contents(tmp_path)
    other = stores(tmp_path, "depth", "image", vae="two", size=8, dtype="float16")
    for use in (write, read):
        with pytest.raises(CacheError) as caught:
            use(other)
        assert "vae: cache 'one', this run 'two'" in str(caught.value)
        assert "dtype: cache 'float32', this run 'float16'" in str(caught.value)
        assert "size" not in str(caught.value)
    assert contents(tmp_path) == before


def test_images_of_different_sizes_are_refused(tmp_path):
    def varied(indices, flips, variants, parts):
        batch = encode(indices, flips, variants, parts)
        return replace(batch, image_latent=batch.image_latent[..., : 16 - indices[0]])

    with pytest.raises(CacheError, match=r"image.*transform\.size"):
        write(stores(tmp_path, "image"), varied)
