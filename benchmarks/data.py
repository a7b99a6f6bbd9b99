"""Samples per second through the whole training path, beside a plain loop of Pillow, torch.quantile and interpolate.

Pairs of 768x1024 PNGs (8-bit photo, 16-bit depth) are read from a folder, a tar and a zip, decoded, flipped,
normalised, resized to 480x640 and collated; and latents of that size are read from the cache. Then where one
sample's time goes, and what a loader over a list of 54,000 lines costs.
"""

import argparse
import io
import json
import os
import subprocess
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

from marigold.data.decode import decode_depth_png, decode_photo
from marigold.data.latent_cache import IMAGE, LATENTS, LatentBatch, LatentCache, Store, write_cache
from marigold.data.mixture import ExampleSource, Mixture, MixtureDataset
from marigold.data.training_sets import Hypersim
from marigold.data.transforms import PixelExamples, Target, Transform, resize
from marigold.depth.mapping import normalize_depth

SIZE, TRAINED, LATENT = (768, 1024), (480, 640), (60, 80)
PAIRS, BATCH = 32, 2
MANY = 54_000  # lines of Hypersim's training list
CHILD = """
import resource, sys, time
start = time.perf_counter()
from marigold.data.training_sets import Hypersim
imported, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = Hypersim(name="many", root=sys.argv[1], split_list=sys.argv[2], min_depth=1e-5, max_depth=65.0)
data.storage.read(data.names[-1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
private = sum(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("Private"))
print(time.perf_counter() - imported, (peak - before) / 1024, peak / 1024, private / 1024)
"""


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmark.py data", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="every row is measured this often, in turn; best counts")
    parser.add_argument("--batches", type=int, default=24, help="timed micro-batches of two")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
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
        stages = profile(roots["folder"], lines)
        print("\none sample, milliseconds: " + ", ".join(f"{name} {1e3 * cost:.1f}" for name, cost in stages.items()))
        seconds, more, whole, private = many_members(Path(made))
        print(
            f"{MANY:,} lines and as many pairs in an indexed tar: open and read one in {seconds:.2f} s, "
            f"{more:.0f} MiB more, {whole:.0f} MiB in all, of which {private:.0f} MiB are not shared libraries"
        )
    if options.output:
        report = {"samples_per_second": best, "stages_s": stages, "many": [seconds, more, whole, private]}
        options.output.write_text(json.dumps(report, indent=1))


def write_pairs(folder: Path) -> tuple[dict[str, Path], Path]:
    """Smooth pictures with noise, which compress like photos (about 1.4 and 1.2 MB), stored three ways."""
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
    """A cache of 512 samples with random latents of the size that 480x640 pictures have."""
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


def profile(root: Path, lines: Path, repetitions: int = 9) -> dict[str, float]:
    """Least seconds of each stage of one sample; `rest` is what the whole path takes beyond them."""
    samples = hypersim(root, lines)
    source = PixelExamples(samples, samples.names, Transform(TRAINED, False, 0.02), Target())
    names = lines.read_text().split()[:2]
    photo, depth_png = (samples.storage.read(name) for name in names)
    sample = samples[0]
    picture, depth = decode_photo(photo), decode_depth_png(depth_png)
    normalised = normalize_depth(sample.depth, sample.valid)

    def resized() -> None:
        for part in (sample.image, normalised, sample.valid.float()):
            resize(part, TRAINED, antialias=False)

    stages = {
        "read": lambda: [samples.storage.read(name) for name in names],
        "decode photo": lambda: decode_photo(photo),
        "decode depth": lambda: decode_depth_png(depth_png),
        "to tensors": lambda: (
            torch.from_numpy(picture).permute(2, 0, 1).contiguous().to(torch.float32).div_(255),
            depth.astype(np.float32) / np.float32(1000),
        ),
        "normalise depth": lambda: normalize_depth(sample.depth, sample.valid),
        "resize": resized,
    }
    costs = {name: _least(stage, repetitions) for name, stage in stages.items()}
    whole = _least(lambda: source.batch([0], [True], [0]), repetitions)
    return {**costs, "rest": whole - sum(costs.values()), "whole": whole}


def _least(function: Callable[[], object], repetitions: int) -> float:
    costs = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        costs.append(time.perf_counter() - start)
    return min(costs)


def many_members(folder: Path) -> tuple[float, ...]:
    """Seconds to open and read one, MiB for it, MiB of the process, its private MiB: of a tar indexed before."""
    archive, lines = folder / "many.tar", folder / "many.txt"
    listed = []
    with tarfile.open(archive, "w") as tar:
        for index in range(MANY):
            names = [f"ai_{index // 100:03d}/{kind}_cam_00_fr{index % 100:04d}.png" for kind in ("rgb", "depth")]
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = 1
                tar.addfile(member, io.BytesIO(b"x"))
            listed.append(" ".join(names))
    lines.write_text("".join(f"{line}\n" for line in listed))
    command = [sys.executable, "-c", CHILD, str(archive), str(lines)]
    for _ in range(2):  # the first run indexes
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return tuple(float(word) for word in done.stdout.split())


if __name__ == "__main__":
    main(sys.argv[1:])
