"""Hypersim's preparation, from raw files that this test writes to samples that the reader gives."""

import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
from raw_hypersim import HEIGHT, WIDTH, random_frame, write_frame, write_raw

from marigold.data.errors import DataError
from marigold.data.preparation.hypersim import Filter
from marigold.data.preparation.hypersim_recipe import planar_factor, read_cameras, tone_map
from marigold.data.training_sets import Hypersim

MATRIX = ",".join(f"M_cam_from_uv_{i}{j}" for i in range(3) for j in range(3))


@pytest.fixture
def raw(tmp_path) -> Path:
    return write_raw(tmp_path / "raw")


@pytest.fixture
def prepared(prepare):
    return lambda raw, out, *changes: prepare(
        "hypersim", f"raw={raw}", f"out={out}", "prepare.official=null", *changes
    )


def first_of(out: Path):
    return Hypersim(
        name="hypersim",
        root=str(out / "train"),
        split_list=str(out / "filename_list_train.txt"),
        min_depth=1e-5,
        max_depth=65.0,
        image_size=(HEIGHT, WIDTH),
    )[0]


def test_from_raw_files_to_samples(raw, tmp_path, prepared):
    out = tmp_path / "out"
    # By hand: a flat wall at 4 m; the distance grows to the corners, planar depth does not.
    x = np.arange(WIDTH) - (WIDTH - 1) / 2
    y = np.arange(HEIGHT)[:, None] - (HEIGHT - 1) / 2
    focal = 886.81 * WIDTH / 1024
    wall = 4 * np.sqrt(1 + (x / focal) ** 2 + (y / focal) ** 2)
    colour, _, entity = random_frame(np.random.default_rng(1))
    wall[3, 4] = 60.0
    wall[0, 0], wall[0, 1], wall[0, 2], entity[0, 3] = np.nan, np.inf, 90.0, -1
    write_frame(raw, "ai_001_001", "cam_00", 0, colour, wall.astype(np.float32), entity)

    needed = prepared(raw, out, "dry_run=true").needed
    assert not out.exists()
    summary = prepared(raw, out)
    assert needed == pytest.approx(summary.written, rel=0.2)
    assert [result.split.count for result in summary.lists] == [3, 1, 1]
    sample = first_of(out)
    assert sample.name == "ai_001_001/rgb_cam_00_fr0000.png"
    expected = np.full((HEIGHT, WIDTH), 4.0)
    expected[3, 4] = 60 * 4 / (4 * math.sqrt(1 + (x[4] / focal) ** 2 + (y[3, 0] / focal) ** 2))
    expected[0, :4] = 0
    assert np.abs(sample.depth[0].numpy() - expected).max() <= 1.01e-3  # truncated to millimetres
    assert (sample.valid[0].numpy() == (expected > 0)).all()
    facts = np.genfromtxt(out / "filename_meta_train.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")[0]
    assert facts["out_of_range"] == 3  # the nan, the inf and the 90 m
    assert facts["invalid_ratio"] == pytest.approx(1 / (HEIGHT * WIDTH))


def test_tone_mapping_by_hand():
    # Grey pixels 1..10: the 90th percentile of 1..11 is 10, so 10 becomes 0.8 after gamma.
    grey = np.arange(1, 12, dtype=np.float32).reshape(1, 11, 1).repeat(3, axis=2)
    image = tone_map(grey, np.ones((1, 11), bool))[0, :, 0]
    assert image[9] == int(0.8 * 255)
    assert image[0] == int(0.8 * (1 / 10) ** (1 / 2.2) * 255)
    # Pixels without geometry do not set the exposure; what is too bright saturates.
    known = np.ones((1, 11), bool)
    known[0, 10] = False
    assert tone_map(grey, known)[0, 10, 0] > image[10]
    assert tone_map(grey * 0, np.ones((1, 11), bool)).max() == 0
    assert tone_map(np.full((1, 2, 3), 0.5, np.float32), np.zeros((1, 2), bool)).min() == int(0.5 ** (1 / 2.2) * 255)
    odd = np.array([[[np.nan] * 3, [np.inf] * 3, [1.0] * 3]], np.float32)
    assert tone_map(odd, np.array([[False, False, True]]))[0, :, 0].tolist() == [0, 255, int(0.8 * 255)]


def test_planar_factor_of_a_scene_camera(tmp_path):
    # The nominal camera, written as the publisher's matrix, must give what 886.81 px give.
    tangent = 512 / 886.81
    nominal = ((tangent, 0.0, 0.0), (0.0, tangent * 3 / 4, 0.0), (0.0, 0.0, -1.0))
    np.testing.assert_allclose(planar_factor(768, 1024, nominal), planar_factor(768, 1024, None), rtol=1e-12)
    # A tilted image plane, one pixel: u = v = 0, so the ray is the last column (3, 0, -4): 4 / 5.
    assert planar_factor(1, 1, ((1.0, 0.0, 3.0), (0.0, 1.0, 0.0), (0.0, 0.0, -4.0)))[0, 0] == pytest.approx(0.8)
    # v points up: with depth growing with v, the upper row of two is the farther one.
    rows = planar_factor(2, 1, ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, -2.0)))[:, 0]
    assert rows == pytest.approx([1.5 / math.hypot(0.5, 1.5), 2.5 / math.hypot(0.5, 2.5)])
    path = tmp_path / "cameras.csv"
    path.write_text(f"scene_name,other,{MATRIX}\nai_001_001,x,1,2,3,4,5,6,7,8,9\n")
    assert read_cameras(path) == {"ai_001_001": ((1, 2, 3), (4, 5, 6), (7, 8, 9))}


def test_scene_cameras_change_the_depth(raw, tmp_path, prepared):
    cameras = tmp_path / "cameras.csv"
    rows = "".join(f"{scene},1,0,0,0,1,0,0,0,-1\n" for scene in ("ai_001_001", "ai_001_002", "ai_002_001"))
    cameras.write_text(f"scene_name,{MATRIX}\n{rows}")
    prepared(raw, tmp_path / "nominal")
    with pytest.raises(DataError, match="ai_003_001"):
        prepared(raw, tmp_path / "own", f"prepare.camera_csv={cameras}")
    prepared(raw, tmp_path / "own", f"prepare.camera_csv={cameras}", "prepare.scenes=[ai_001_001]")
    # 90 degrees of view instead of 60: corners are nearer to the image plane.
    nominal, own = first_of(tmp_path / "nominal").depth, first_of(tmp_path / "own").depth
    assert own[0, 0, 0] < 0.9 * nominal[0, 0, 0]
    with pytest.raises(DataError, match="out=DIR"):
        prepared(raw, tmp_path / "nominal", f"prepare.camera_csv={cameras}")


def test_filter_reasons():
    keep = Filter(0.5, 10, 0.03, ["train"], False)
    good = {"depth_min": 0.0, "depth_min_known": 2.0, "depth_max": 2.4, "rgb_min": 0, "rgb_max": 255}
    good["invalid_ratio"] = 0.03
    assert keep.reason("train", good) == ""  # the zeros of unknown pixels count, as in the published statistics
    assert "depth range" in Filter(0.5, 10, 0.03, ["train"], True).reason("train", good)
    assert "depth range" in keep.reason("train", good | {"depth_max": 0.4})
    assert "RGB range" in keep.reason("val", good | {"rgb_min": 250})
    assert "geometry" in keep.reason("train", good | {"invalid_ratio": 0.0301})
    assert keep.reason("val", good | {"invalid_ratio": 0.5}) == ""


def test_workers_and_the_publishers_zips_make_the_same_files(raw, tmp_path, prepared):
    prepared(raw, tmp_path / "one")
    zipped = tmp_path / "zipped"
    zipped.mkdir()
    (raw / "metadata_images_split_scene_v1.csv").rename(zipped / "metadata_images_split_scene_v1.csv")
    for scene in raw.iterdir():
        with zipfile.ZipFile(zipped / f"{scene.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in scene.rglob("*.hdf5"):
                archive.write(path, path.relative_to(raw))
    before = set(zipped.iterdir())
    prepared(zipped, tmp_path / "two", "workers=2")
    assert set(zipped.iterdir()) == before  # no index
    one, two = (
        {path.relative_to(out): path.read_bytes() for path in out.rglob("*.*") if path.is_file()}
        for out in (tmp_path / "one", tmp_path / "two")
    )
    assert len(one) == 10 + 3 + 3 + 1  # images, lists, facts, journal
    assert one == two


def test_broken_frames_are_named_and_too_many_are_an_error(raw, tmp_path, prepared):
    out = tmp_path / "out"
    cut = raw / "ai_001_001/images/scene_cam_00_final_hdf5/frame.0001.color.hdf5"
    cut.write_bytes(cut.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"1 of 5 images[^$]*frame\.0001\.color\.hdf5"):
        prepared(raw, out)
    assert not (out / "filename_list_train.txt").exists()
    summary = prepared(raw, out, "max_broken=0.2")
    assert (summary.already, list(summary.broken)) == (4, ["train/ai_001_001/cam_00/0001"])
    assert summary.lists[0].dropped == {"broken": 1}
    assert "frame.0001" in (out / "broken.txt").read_text()
    write_frame(raw, "ai_001_001", "cam_00", 1, *random_frame(np.random.default_rng(5)))
    assert prepared(raw, out).broken == {}  # repaired: taken up, and the report goes
    assert not (out / "broken.txt").exists()
    with pytest.raises(DataError, match=r"metadata_images_split_scene_v1\.csv"):
        prepared(tmp_path, tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "file"),
    [
        (lambda c, d, e: (c, d[:-1], e), r"final_hdf5/frame\.0000"),
        (lambda c, d, e: (c.astype(np.uint8), d, e), r"color\.hdf5.*uint8"),
        (lambda c, d, e: (c, d, e * 0), r"render_entity_id\.hdf5"),
    ],
)
def test_wrong_arrays(raw, tmp_path, prepared, change, file):
    write_frame(raw, "ai_001_001", "cam_00", 0, *change(*random_frame(np.random.default_rng(1))))
    with pytest.raises(DataError, match=file):
        prepared(raw, tmp_path / "out", "prepare.scenes=[ai_001_001]")
