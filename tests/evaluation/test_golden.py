"""A synthetic copy of each benchmark, in its own file formats, evaluated against numpy alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from marigold.evaluation.predictors import of_files
from marigold.evaluation.rows import evaluate, gather_rows, summarise
from marigold.evaluation_set import open_set, protocol_for
from numpy_reference import line, metrics, thin_width
from runs import composed

PER_PIXEL = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "delta1", "delta2", "delta3", "i_rmse", "silog", "mae")
WHOLE = np.s_[:, :]


@dataclass
class Case:
    """A benchmark as published: its files, and the pixels, fit and clip of its evaluation.

    `unit`: counts per metre of 16-bit pngs, None for files of floats.
    """

    dataset: str
    lines: list[str]
    size: tuple[int, int]
    reach: tuple[float, float]
    unit: int | None
    clip: tuple[float, float]
    valid: tuple[float, float] | None = None  # the clip's range unless it is given
    cut: tuple[slice, slice] = WHOLE
    window: tuple[slice, slice] = WHOLE
    longest: int | None = None
    overrides: tuple[str, ...] = ()


NYU = ["test/a/rgb_0001.png test/a/depth_0001.png test/a/filled_0001.png"]
# A line without ground truth does not count.
KITTI = ["2011_09_26/d/0.png 2011_09_26/d/depth_0.png 721.5", "2011_09_26/d/1.png None 721.5"]
ETH3D = ["rgb/office/images/dslr_images/D.JPG depth/office_dslr_depth/office/ground_truth_depth/dslr_images/D.JPG"]
DIODE = [f"{kind}/s/0.png {kind}/s/0_depth.npy {kind}/s/0_depth_mask.npy" for kind in ("indoors", "outdoor")]
MIDDLE = np.s_[23:375, 13:1229]  # the lowest 352 rows, the middle 1216 columns
SMALL = ("dataset.reader.image_size=[270,405]", "dataset.evaluation.alignment_max_resolution=102")
OPEN = (0, np.inf)
CASES = (
    Case("nyu", NYU, (480, 640), (0.5, 10), 1000, (1e-3, 10), window=np.s_[45:471, 41:601]),
    Case("scannet", NYU, (480, 640), (0.5, 10), 1000, (1e-3, 10)),
    # Eigen's crop: rows and columns by fractions of 352x1216.
    Case(
        "kitti", KITTI, (375, 1242), (2, 80), 256, (1e-5, 80), cut=MIDDLE,
        window=np.s_[int(352 * 0.3324324) : int(352 * 0.91351351), int(1216 * 0.0359477) : int(1216 * 0.96405229)],
    ),
    Case("eth3d", ETH3D, (270, 405), (1, 30), None, (1e-5, np.inf), longest=102, overrides=SMALL),
    Case("diode", DIODE, (768, 1024), (0.7, 60), None, (0.6, 350), valid=OPEN),  # its mask alone decides
)  # fmt: skip


def configured(case, root, *overrides):
    """The data set and the protocol as scripts/eval.py has them."""
    places = [f"paths.data={root}", f"dataset.reader.root={root}", f"dataset.reader.split_list={root}/list.txt"]
    config = composed("eval", f"dataset={case.dataset}", *places, *case.overrides, *overrides)
    chosen = open_set(config, None, protocol_for(config, "affine_depth"))
    return chosen.samples, chosen.protocol


def scene(rng, size, low, high):
    """Smooth depth with a step, some of it out of range at both ends, and some unknown (0)."""
    rows, cols = np.mgrid[0 : size[0], 0 : size[1]]
    depth = low + (high - low) * (0.2 + 0.6 * rows / size[0] + 0.1 * np.sin(cols / 17)) ** 2
    depth += np.where(cols > size[1] // 2, 0.1 * (high - low), 0)
    depth = (depth * (1 + 0.02 * rng.standard_normal(size))).astype(np.float32)
    depth[rng.random(size) < 0.05] = 0
    return depth


def predict(rng, depth):
    """Affine depth in [0, 1] that is wrong enough for the clipping to change it."""
    known = np.where(depth > 0, depth, depth[depth > 0].mean())
    noise, offset = rng.standard_normal((2, *depth.shape))
    noisy = known * (1 + 0.15 * noise) + 0.2 * known.mean() * offset
    return ((noisy - noisy.min()) / (noisy.max() - noisy.min())).astype(np.float32)


def write_files(case, root):
    """Images, depth files and predictions for every line; returns name -> depth in metres, 0 where unknown."""
    rng, truth = np.random.default_rng(3), {}
    for text in case.lines:
        image, *names = text.split()
        if names[0] == "None":
            continue
        for name in (image, *names, f"predictions/{image}"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
        depth = scene(rng, case.size, *case.reach)
        pixels = Image.fromarray(rng.integers(0, 255, (*case.size, 3), dtype=np.uint8))
        pixels.save(root / image, format="JPEG" if case.dataset == "eth3d" else None)
        if case.unit:
            depth[:3] = case.reach[1] * 1.01  # just beyond the range
            counts = np.round(depth * case.unit).astype(np.uint16)
            Image.fromarray(counts).save(root / names[0])
            depth = counts.astype(np.float32) / case.unit
        elif case.dataset == "eth3d":
            (root / names[0]).write_bytes(np.where(depth > 0, depth, np.inf).astype("<f4").tobytes())
        else:
            mask = (rng.random(case.size) < 0.9) & (depth > 0)
            depth[mask & (rng.random(case.size) < 0.01)] = 400.0
            np.save(root / names[0], depth[..., None])
            np.save(root / names[1], mask.astype(np.float32))
            depth = np.where(mask, depth, 0)
        truth[image] = depth[case.cut]
        np.save(root / "predictions" / Path(image).with_suffix(".npy"), predict(rng, truth[image]))
    (root / "list.txt").write_text("\n".join(case.lines) + "\n")
    return truth


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.dataset)
def test_a_benchmark_scores_what_numpy_gives_it(case, tmp_path):
    truth = write_files(case, tmp_path)
    samples, protocol = configured(case, tmp_path)
    predictor = of_files(tmp_path / "predictions", "affine_depth", 1.0).at_seed(0)
    rows = gather_rows(list(evaluate(predictor, samples, protocol, metrics=PER_PIXEL)), len(samples))
    assert [row.name for row in rows] == sorted(truth)
    for row in rows:
        depth = truth[row.name]
        valid = np.zeros(depth.shape, dtype=bool)
        valid[case.window] = True
        low, high = case.valid or case.clip
        valid &= (depth > low) & (depth < high)
        pred = np.load(tmp_path / "predictions" / Path(row.name).with_suffix(".npy"))
        # Every row, but a thinned width: what the reference does on ETH3D.
        aligned = line(pred, depth, valid, lambda values: thin_width(values, case.longest) if case.longest else values)
        clipped = np.clip(aligned, *case.clip)
        if case.unit == 1000:
            assert aligned[valid].min() < case.clip[0]  # otherwise the clip is not tested
        if case.longest:
            assert abs(clipped - np.clip(line(pred, depth, valid), *case.clip)).max() > 1e-3
        assert row.metrics == pytest.approx(metrics(clipped, depth, valid), rel=2e-5)
    groups = summarise(rows, groups=protocol.benchmark.groups).groups
    assert {name: part.count for name, part in groups.items()} == (
        {"indoor": 1, "outdoor": 1} if case.dataset == "diode" else {}
    )
