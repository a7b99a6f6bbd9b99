"""Samples per second through the whole training path, beside a plain loop of Pillow, torch.quantile and interpolate.

Pairs of 768x1024 PNGs (8-bit image, 16-bit depth) are read from a folder, a tar and a zip, decoded, flipped,
normalised, resized to 480x640 and collated; and latents of that size are read from the cache.
"""

import argparse
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader

from marigold.data.latent_cache import IMAGE, LATENTS, LatentBatch, LatentCache, Store, write_cache
from marigold.data.mixture import ExampleSource, Mixture, MixtureDataset
from marigold.data.training_sets import Hypersim
from marigold.data.transforms import PixelExamples, Target, Transform

SIZE, TRAINED, LATENT = (768, 1024), (480, 640), (60, 80)
PAIRS, BATCH = 32, 2


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py data", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="every row is measured this often, in turn; best counts")
    parser.add_argument("--batches", type=int, default=24, help="timed micro-batches of two")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        roots, lines = write_pairs(Path(made))
        rows: dict[str, Callable[[], float]] = {"plain loop": lambda: plain_loop(roots["folder"], lines)}
        per_core = {"plain loop": 1}
        for name, source in {**sources(roots), "latent cache": cached(Path(made))}.items():
            for workers in (1, 2):
                label = f"{name}, {workers} worker{'s' * (workers > 1)}"
                count = options.batches * (20 if name == "latent cache" else 1)
                rows[label] = lambda source=source, workers=workers, count=count: speed(source, workers, count)  # type: ignore[misc]
                per_core[label] = workers
        best = dict.fromkeys(rows, 0.0)
        for _ in range(options.rounds):
            for label, measure in rows.items():
                best[label] = max(best[label], measure())
        print(f"{'':26s}{'samples/s':>11s}{'per core, x the plain loop':>28s}")
        for label, value in best.items():
            print(f"{label:26s}{value:11.1f}{value / per_core[label] / best['plain loop']:28.1f}")


def write_pairs(folder: Path) -> tuple[dict[str, Path], Path]:
    """Smooth images with noise, which compress like photographs (about 1.4 and 1.2 MB), stored three ways."""
    rng = np.random.default_rng(0)
    root, lines = folder / "pairs", folder / "list.txt"
    root.mkdir()
    listed = []
    for index in range(PAIRS):
        names = [f"rgb_{index:03d}.png", f"depth_{index:03d}.png"]
        for name, channels, top in zip(names, (3, 1), (255, 9000), strict=True):
            planes = [Image.fromarray((rng.random((48, 64)) * 255).astype(np.uint8)) for _ in range(channels)]
            smooth = np.stack([np.asarray(plane.resize(SIZE[::-1], Image.Resampling.BICUBIC)) for plane in planes], -1)
            noisy = np.clip(smooth + rng.normal(0, 4, smooth.shape), 1, 255) / 255 * top
            pixels = noisy.astype(np.uint8) if channels == 3 else noisy[..., 0].astype(np.uint16)
            Image.fromarray(pixels).save(root / name, compress_level=4)
        listed.append(" ".join(names))
    lines.write_text("".join(f"{line}\n" for line in listed))
    with tarfile.open(folder / "pairs.tar", "w") as tar, zipfile.ZipFile(folder / "pairs.zip", "w") as zipped:
        for path in sorted(root.iterdir()):
            tar.add(path, path.name)
            zipped.write(path, path.name)
    return {"folder": root, "tar": folder / "pairs.tar", "zip": folder / "pairs.zip"}, lines


def hypersim(root: Path, lines: Path) -> Hypersim:
    return Hypersim(name="pairs", root=str(root), split_list=str(lines), min_depth=1e-5, max_depth=65.0)


def sources(roots: dict[str, Path]) -> dict[str, PixelExamples]:
    transform = Transform(TRAINED, False, 0.02)
    found = {}
    for name, root in roots.items():
        samples = hypersim(root, roots["folder"].parent / "list.txt")
        found[name] = PixelExamples(samples, samples.names, transform, Target())
    return found


def cached(folder: Path) -> LatentCache:
    """A cache of 512 samples with random latents of the size that 480x640 images have."""
    count, rng = 512, torch.Generator().manual_seed(0)

    def encode(
        indices: Sequence[int], flips: Sequence[bool], variants: Sequence[int], parts: Sequence[str]
    ) -> LatentBatch:
        shape = (len(indices), 4, *LATENT)
        valid = torch.ones(len(indices), 1, *LATENT, dtype=torch.bool)
        return LatentBatch((), torch.randn(shape, generator=rng), torch.randn(shape, generator=rng), valid)

    stores = [
        Store(folder / "cache" / name, parts, {"made by": "benchmark"}, count, 0, "float16", 256)
        for name, parts in (("image", IMAGE), ("depth", LATENTS))
    ]
    for _ in write_cache(stores, encode, batch=8):
        pass
    return LatentCache([f"sample {index}" for index in range(count)], stores)


def speed(source: ExampleSource, workers: int, count: int) -> float:
    """Samples per second after the workers have started."""
    data = MixtureDataset(Mixture([len(source.names)], [1.0], BATCH, 0.5, seed=0), [source])
    warm = 4 * workers
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(warm + count),
        num_workers=workers,
        collate_fn=_as_it_is,
        multiprocessing_context="spawn",
        worker_init_fn=_one_thread,
    )
    batches = iter(loader)
    for _ in range(warm):
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return BATCH * count / (time.perf_counter() - start)


def _as_it_is(batch):
    return batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def plain_loop(root: Path, lines: Path) -> float:
    """What a loader looks like that nobody has measured."""
    names = [line.split() for line in lines.read_text().splitlines()][:8]
    start = time.perf_counter()
    for rgb_name, depth_name in names:
        rgb = torch.from_numpy(np.array(Image.open(root / rgb_name))).permute(2, 0, 1) / 255.0 * 2 - 1
        depth = torch.from_numpy(np.array(Image.open(root / depth_name)).astype(np.float32) / 1000)[None]
        valid = (depth > 1e-5) & (depth < 65)
        low, high = torch.quantile(depth[valid], torch.tensor([0.02, 0.98]))
        normalised = ((depth - low) / (high - low) * 2 - 1).clip(-1, 1)
        pictures = torch.cat([rgb, normalised, valid.float()]).flip(-1)
        F.interpolate(pictures[None], TRAINED, mode="nearest-exact")
    return len(names) / (time.perf_counter() - start)


if __name__ == "__main__":
    main(sys.argv[1:])
