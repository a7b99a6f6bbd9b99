"""A synthetic copy of each benchmark, in its own file formats, evaluated against numpy alone."""

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from PIL import Image

from marigold.evaluation.predictors import of_files
from marigold.evaluation.rows import Row, evaluate, gather_rows, summarise
from marigold.evaluation_set import open_set, protocol_for
from numpy_reference import line, metrics, thin_width

CONFIGS = Path(__file__).parents[2] / "configs"
PER_PIXEL = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "delta1", "delta2", "delta3", "i_rmse", "silog", "mae")


def configured(dataset, root, *overrides):
    """The data set and the protocol as scripts/eval.py has them."""
    places = [f"paths.data={root}", f"dataset.reader.root={root}", f"dataset.reader.split_list={root}/list.txt"]
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("eval", [f"dataset={dataset}", *places, *overrides])
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
    """Affine depth in [0, 1] that is wrong enough for the clipping to bite at both ends."""
    known = np.where(depth > 0, depth, depth[depth > 0].mean())
    noise, offset = rng.standard_normal((2, *depth.shape))
    noisy = known * (1 + 0.15 * noise) + 0.2 * known.mean() * offset
    return ((noisy - noisy.min()) / (noisy.max() - noisy.min())).astype(np.float32)


def save(root, name, array, kind=None):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "raw":
        path.write_bytes(array.astype("<f4").tobytes())
    elif path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path, **({"format": kind} if kind else {}))


def write_set(root, rng, lines, size, low, high, unit, ending="png", split_list="list.txt"):
    """Photos, depth files and predictions for every line; returns the depth in metres as it can be read back."""
    truth = {}
    for text in lines:
        names = text.split()
        if names[1] == "None":
            continue
        depth = scene(rng, size, low, high)
        save(root, names[0], rng.integers(0, 255, (*size, 3), dtype=np.uint8), "JPEG" if ending == "raw" else None)
        if ending == "png":
            depth[:3] = high * 1.01  # just beyond the range
            counts = np.round(depth * unit).astype(np.uint16)
            save(root, names[1], counts)
            depth = counts.astype(np.float32) / unit
        elif ending == "raw":
            save(root, names[1], np.where(depth > 0, depth, np.inf), "raw")
        else:
            mask = (rng.random(size) < 0.9) & (depth > 0)
            depth[mask & (rng.random(size) < 0.01)] = 400.0  # the mask alone decides
            save(root, names[1], depth[..., None])
            save(root, names[2], mask.astype(np.float32))
            depth = np.where(mask, depth, 0)
        truth[names[0]] = depth
        save(root / "predictions", str(Path(names[0]).with_suffix(".npy")), predict(rng, depth))
    (root / split_list).write_text("\n".join(lines) + "\n")
    return truth


def evaluated(root, dataset, protocol):
    predict = of_files(root / "predictions", "affine_depth", 1.0).at_seed(0)
    rows = evaluate(predict, dataset, protocol, metrics=PER_PIXEL)
    return {row.name: row.metrics for row in gather_rows(list(rows), len(dataset))}


def assert_same(rows, expected):
    assert set(rows) == set(expected)
    for name, values in expected.items():
        for metric, value in values.items():
            assert rows[name][metric] == pytest.approx(value, rel=2e-5), (name, metric)


@pytest.mark.parametrize("dataset", ["nyu", "scannet"])
def test_nyu_and_scannet(tmp_path, dataset):
    rng = np.random.default_rng(3)
    lines = ["test/a/rgb_0001.png test/a/depth_0001.png test/a/filled_0001.png"]
    truth = write_set(tmp_path, rng, lines, (480, 640), 0.5, 10.0, 1000)
    expected = {}
    for name, depth in truth.items():
        valid = (depth > 1e-3) & (depth < 10)
        if dataset == "nyu":
            crop = np.zeros_like(valid)
            crop[45:471, 41:601] = True
            valid &= crop
        pred = np.load(tmp_path / "predictions" / Path(name).with_suffix(".npy"))
        aligned = line(pred, depth, valid)
        assert aligned[valid].min() < 1e-3  # otherwise the clip is not tested
        expected[name] = metrics(np.clip(aligned, 1e-3, 10), depth, valid)
    assert_same(evaluated(tmp_path, *configured(dataset, tmp_path)), expected)


@pytest.mark.parametrize(("crop", "rows"), [("eigen", (117, 321)), ("garg", (143, 349))])
def test_kitti_crops_apply_after_the_benchmark_crop(tmp_path, crop, rows):
    rng = np.random.default_rng(4)
    lines = ["d/0000.png d/depth_0000.png 721.5", "d/0001.png None 721.5"]
    truth = write_set(tmp_path, rng, lines, (375, 1242), 2.0, 80.0, 256)
    depth = truth["d/0000.png"][23:375, 13:1229]  # the lowest 352 rows, the middle 1216 columns
    save(tmp_path / "predictions", "d/0000.npy", predict(rng, depth))
    valid = np.zeros((352, 1216), dtype=bool)
    # The fractions of the field, of 352x1216.
    fractions = {"eigen": (0.3324324, 0.91351351), "garg": (0.40810811, 0.99189189)}[crop]
    assert tuple(int(352 * part) for part in fractions) == rows
    valid[rows[0] : rows[1], int(1216 * 0.0359477) : int(1216 * 0.96405229)] = True
    valid &= (depth > 1e-5) & (depth < 80)
    aligned = line(np.load(tmp_path / "predictions/d/0000.npy"), depth, valid)
    overrides = () if crop == "eigen" else (f"dataset.evaluation.crop_rows=[{rows[0]},{rows[1]}]",)
    dataset, protocol = configured("kitti", tmp_path, *overrides)
    assert dataset.names == ["d/0000.png"]  # the line without ground truth does not count
    expected = {"d/0000.png": metrics(np.clip(aligned, 1e-5, 80), depth, valid)}
    assert_same(evaluated(tmp_path, dataset, protocol), expected)


@pytest.mark.parametrize(
    ("size", "longest"), [((270, 405), 102), pytest.param((4032, 6048), 1024, marks=pytest.mark.slow)]
)
def test_eth3d_fits_on_every_row_but_a_thinned_width(tmp_path, size, longest):
    rng = np.random.default_rng(5)
    name = "rgb/office/images/dslr_images/DSC_0219.JPG"
    lines = [f"{name} depth/office_dslr_depth/office/ground_truth_depth/dslr_images/DSC_0219.JPG"]
    depth = write_set(tmp_path, rng, lines, size, 1.0, 30.0, 1, "raw")[name]
    pred = np.load(tmp_path / "predictions" / Path(name).with_suffix(".npy"))
    unseen = np.ones(size[1], dtype=bool)
    unseen[thin_width(np.arange(size[1])[None].repeat(size[0], 0), longest)[0]] = False
    pred[:, unseen] *= 0.8  # so that a fit on other pixels gives another line
    save(tmp_path / "predictions", str(Path(name).with_suffix(".npy")), pred)
    valid = depth > 1e-5
    thin_pred, thin_depth, thin_valid = (thin_width(values, longest) for values in (pred, depth, valid))
    x = thin_pred[thin_valid].astype(np.float64)
    (scale, shift), *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), thin_depth[thin_valid], rcond=None)
    expected = metrics(np.clip(scale * pred.astype(np.float64) + shift, 1e-5, None), depth, valid)
    whole = metrics(np.clip(line(pred, depth, valid), 1e-5, None), depth, valid)
    assert abs(expected["rmse"] - whole["rmse"]) > 1e-3
    overrides = (
        f"dataset.reader.image_size=[{size[0]},{size[1]}]",
        f"dataset.evaluation.alignment_max_resolution={longest}",
    )
    assert_same(evaluated(tmp_path, *configured("eth3d", tmp_path, *overrides)), {name: expected})


def test_diode_is_evaluated_where_its_mask_says_and_in_two_groups(tmp_path):
    rng = np.random.default_rng(6)
    lines = [f"{kind}/s/0.png {kind}/s/0_depth.npy {kind}/s/0_depth_mask.npy" for kind in ("indoors", "outdoor")]
    truth = write_set(tmp_path, rng, lines, (768, 1024), 0.7, 60.0, 1, "npy")
    expected = {}
    for name, depth in truth.items():
        valid = depth > 0
        assert depth.max() == 400.0
        aligned = line(np.load(tmp_path / "predictions" / Path(name).with_suffix(".npy")), depth, valid)
        expected[name] = metrics(np.clip(aligned, 0.6, 350), depth, valid)
    dataset, protocol = configured("diode", tmp_path)
    found = evaluated(tmp_path, dataset, protocol)
    assert_same(found, expected)
    rows = [Row(name, scores) for name, scores in found.items()]
    groups = summarise(rows, groups=protocol.benchmark.groups).groups
    for label, kind in (("indoor", "indoors"), ("outdoor", "outdoor")):
        alone = expected[f"{kind}/s/0.png"]["abs_rel"]
        assert (groups[label].count, groups[label].metrics["abs_rel"].mean) == (1, pytest.approx(alone, rel=2e-5))
