"""Labels of a teacher: the same targets as from the depth that they were made of, and labels that are refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mini_archives import encoded, unpack
from PIL import Image

from marigold.data.errors import DataError, MissingDataError
from marigold.data.teacher import TeacherLabels, fit_label, stand_in_depth
from marigold.data.transforms import Target, Transform, training_example
from marigold.depth.mapping import MAPPINGS
from marigold.types import DepthSample


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_the_target_is_the_labels_own_normalisation(mapping):
    rng = np.random.default_rng(3)
    raw = rng.lognormal(sigma=1.5, size=(1, 40, 56)).astype(np.float32)  # a few values far from all others
    raw[0, :4], raw[0, 10, 10] = np.nan, np.inf
    label = torch.from_numpy(raw)
    known = label.isfinite()
    depth = stand_in_depth(label, known, mapping)
    assert ((depth[known] >= 1) & (depth[known] < 10.001)).all()
    assert (depth[~known] == 0).all()
    sample = DepthSample("a", torch.zeros(3, 40, 56), depth, known)
    _, depth_norm, valid, _ = training_example(sample, Transform(None, False, 0.02), Target(mapping), flip=False)
    values = raw[known.numpy()].astype(np.float64)
    low, high = np.quantile(values, (0.02, 0.98))
    wanted = np.clip((values - low) / (high - low) * 2 - 1, -1, 1)
    np.testing.assert_allclose(depth_norm[valid].numpy(), wanted, atol=1e-5)


def bilinear(values):
    """Four times as large, by the distances between the pixels' centres, rows first."""
    for axis, new in ((0, 4 * values.shape[0]), (1, 4 * values.shape[1])):
        old = values.shape[axis]
        at = (np.arange(new) + 0.5) * old / new - 0.5
        values = np.apply_along_axis(lambda line, at=at, old=old: np.interp(at, np.arange(old), line), axis, values)
    return values


def test_a_small_label_is_bilinear_where_all_is_known_and_else_the_nearest_pixel():
    values = np.random.default_rng(0).random((4, 6))
    whole, gaps = np.ones((4, 6), bool), np.ones((4, 6), bool)
    gaps[2, 3] = False
    nearest = np.repeat(np.repeat(values, 4, axis=0), 4, axis=1)
    for known in (whole, gaps):
        label = torch.from_numpy(np.where(known, values, np.nan).astype(np.float32))[None]
        fitted, still = fit_label(label, torch.from_numpy(known)[None], (16, 24))
        assert np.array_equal(still[0].numpy(), np.repeat(np.repeat(known, 4, axis=0), 4, axis=1))
        clean = bilinear(known.astype(float)) == 1
        wanted = np.where(clean, bilinear(values), nearest)
        np.testing.assert_allclose(fitted[still].numpy(), wanted[still[0].numpy()], atol=1e-6)
    assert clean.mean() < 1
    same, all_of_it = torch.rand(1, 4, 6), torch.ones(1, 4, 6) > 0
    assert fit_label(same, all_of_it, (4, 6))[0] is same
    small, _ = fit_label(same, all_of_it, (2, 3))
    assert small.shape == (1, 2, 3)
    with pytest.raises(DataError, match=r"4 x 6.*9 x 6"):
        fit_label(same, all_of_it, (9, 6))


@pytest.fixture
def images(tmp_path):
    """images(*names) writes noise, and a label of each below tmp_path/labels."""

    def images(*names, size=(16, 24)):
        kinds = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}
        for seed, name in enumerate(names):
            pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
            unpack(tmp_path / "images", {name: encoded(pixels, kinds[Path(name).suffix])})
            save_label((tmp_path / "labels" / name).with_suffix(".npy"), pixels[..., 0])

    return images


def save_label(file, values):
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, values.astype(np.float32))


def taught(folder, space="affine_depth", **reader):
    given = {"root": str(folder / "images"), "labels": str(folder / "labels"), **reader}
    return TeacherLabels(name="taught", space=space, **given)


def test_every_image_below_the_root_or_those_of_a_list(tmp_path, images):
    images("b.png", "my photo.jpg", "sub/a.webp", "labels/a.png")
    labels = {"labels": str((tmp_path / "labels").rename(tmp_path / "images/labels/new"))}
    assert taught(tmp_path, labels=str(tmp_path / "images/labels")).names == ["b.png", "my photo.jpg", "sub/a.webp"]
    (tmp_path / "list.txt").write_text("sub/a.webp depth/a.png\n\nb.png\n")
    listed = taught(tmp_path, **labels, split_list=str(tmp_path / "list.txt"))
    listed.check_files()
    assert [sample.name for sample in listed] == ["sub/a.webp", "b.png"]


def test_an_image_is_upright_as_its_prediction_is(tmp_path, images):
    images("a.png")
    turned, exif = Image.open(tmp_path / "images/a.png"), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned.save(tmp_path / "images/a.png", exif=exif)
    with pytest.raises(DataError, match=r"a\.png.*16 x 24.*24 x 16"):
        taught(tmp_path)[0]
    save_label(tmp_path / "labels/a.npy", np.random.default_rng(0).random((24, 16)))
    assert taught(tmp_path)[0].image.shape == (3, 24, 16)


def test_content_is_that_of_the_labels_wherever_they_lie(tmp_path, images):
    images("a.png", "b.png", size=(96, 128))
    content = taught(tmp_path).content
    (tmp_path / "labels").rename(tmp_path / "moved")
    moved = {"labels": str(tmp_path / "moved")}
    assert taught(tmp_path, **moved).content == content
    values = np.load(tmp_path / "moved/b.npy")
    for place in ((0, 0), (48, 64), (-1, -1)):
        other = values.copy()
        other[place] += 1
        np.save(tmp_path / "moved/b.npy", other)
        changed = taught(tmp_path, **moved).content
        assert changed["lines"] == content["lines"]
        assert changed["labels"] != content["labels"]


def test_what_counts_in_metres(tmp_path, images):
    images("a.png", size=(2, 4))
    save_label(tmp_path / "labels/a.npy", np.array([[0, -1, np.nan, np.inf], [0.5, 1, 2, 9]]))
    sample = taught(tmp_path, "metric_depth", min_depth=0.5, max_depth=9.0)[0]
    assert sample.valid[0].tolist() == [[False] * 4, [False, True, True, False]]
    assert sample.depth[0].tolist() == [[0, 0, 0, 0], [0.5, 1, 2, 9]]
    assert taught(tmp_path, "metric_depth")[0].valid[0].tolist() == [[False] * 4, [True] * 4]
    affine = taught(tmp_path, "affine_log_depth")[0]
    assert affine.valid[0].tolist() == [[True, True, False, False], [True] * 4]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"space": "depth"}, DataError, "space=depth"),
        ({"root": "labels"}, MissingDataError, "labels"),
        ({"labels": "nothing", "how_to_get": "Ask me"}, MissingDataError, r"1 of 1 .*a\.png[^$]*Ask me"),
    ],
)
def test_wrong_settings_and_missing_files(tmp_path, images, monkeypatch, change, kind, words):
    images("a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=words):
        taught(Path(), **change).check_files()
    with pytest.raises(TypeError, match="space"):  # no default: metres would be a guess
        TeacherLabels(name="taught", root="images", labels="labels")


def test_labels_that_cannot_be_used(tmp_path, images):
    images("a.png", "b.jpg", "b.png")
    with pytest.raises(DataError, match=r"b\.npy.*b\.jpg.*b\.png.*b\.png\.npy"):  # the label of both
        taught(tmp_path).check_files()
    save_label(tmp_path / "labels/b.png.npy", np.full((16, 24), np.nan))
    assert not taught(tmp_path)[2].valid.any()
    for values in (np.full((16, 24), 7), np.zeros((16, 24, 3))):
        save_label(tmp_path / "labels/a.npy", values)
        with pytest.raises(DataError, match=r"sample 'a\.png'"):
            taught(tmp_path)[0]
    (tmp_path / "labels/a.npy").unlink()
    counts = np.arange(16 * 24, dtype=np.uint16).reshape(16, 24)
    Image.fromarray(counts).save(tmp_path / "labels/a.png")
    assert taught(tmp_path, "metric_depth", unit=0.5)[0].depth[0, 1, 2] == 0.5 * counts[1, 2]
