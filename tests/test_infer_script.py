"""scripts/infer.py: which files it writes of which images, their content, and one line for every mistake."""

from pathlib import Path

import numpy as np
import OpenEXR
import pytest
import torch
from PIL import ExifTags, Image

from marigold import infer
from marigold.depth.metric import metric_depth
from marigold.model.guided import guided
from marigold.model.pipeline import MarigoldDepth
from marigold.model.recipe import Switches
from marigold.model.settings import DepthSettings
from marigold.pictures import PictureError, read_grey16, read_picture
from marigold.prediction_files import Distances, plan, write
from marigold.types import Camera, Prediction
from runs import call_script, composed


@pytest.fixture
def photos(tmp_path):
    """Two images, one in a subfolder."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(["a.jpg", "sub/b.png"]):
        values = np.random.default_rng(seed).integers(0, 256, (24, 33, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / name)
    return folder


@pytest.fixture
def predict(checkpoint):
    """predict(source, output, *overrides) -> whether every image was done."""
    return lambda *given: infer.run(composed("infer", *arguments(checkpoint, *given)))


def arguments(checkpoint, source, output, *overrides):
    return [f"input='{source}'", f"output={output}", f"checkpoint={checkpoint}", *overrides]


@pytest.fixture(scope="module")
def model(checkpoint):
    return MarigoldDepth.from_pretrained(checkpoint)


def written(output):
    return sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())


def test_every_kind_of_file(photos, tmp_path, predict, model):
    output = tmp_path / "out"
    asked = [f"save.{kind}=true" for kind in ("uncertainty", "point_cloud", "mesh", "viewer", "exr")]
    assert predict(photos, output, *asked, "sampler.ensemble_size=3")
    kinds = {"depth_npy": "npy", "depth_png": "png", "depth_colour": "png", "uncertainty_npy": "npy"}
    kinds |= {"point_cloud": "ply", "mesh": "glb", "viewer": "html", "exr": "exr"}
    expected = [f"{kind}/{name}.{ending}" for kind, ending in kinds.items() for name in ("a", "sub/b")]
    assert written(output) == sorted(expected)
    prediction = model(read_picture(photos / "sub/b.png")[None], ensemble_size=3)
    depth = np.load(output / "depth_npy/sub/b.npy")
    assert (depth.dtype, depth.shape) == (np.float32, (24, 33))
    np.testing.assert_array_equal(depth, prediction.depth[0, 0].numpy())
    np.testing.assert_array_equal(np.load(output / "uncertainty_npy/sub/b.npy"), prediction.uncertainty[0, 0].numpy())
    np.testing.assert_allclose(read_grey16(output / "depth_png/sub/b.png") / 65535, depth, atol=0.51 / 65535)
    assert read_picture(output / "depth_colour/sub/b.png").shape == (3, 24, 33)


def vertices(path):
    """Positions of a point cloud's vertices, (N, 3)."""
    _, _, body = path.read_bytes().partition(b"end_header\n")
    return np.frombuffer(body, [("position", "<f4", 3), ("colour", "u1", 3)])["position"]


def depth_of(exr):
    return OpenEXR.File(str(exr)).channels()["Z"].pixels


def test_points_are_placed_by_the_exif_camera_of_the_upright_image(photos, tmp_path, predict):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm.value] = 26
    Image.open(photos / "a.jpg").save(photos / "a.jpg", exif=exif)
    output = tmp_path / "out"
    focal = 26 / np.hypot(36, 24) * np.hypot(33, 24)
    kinds = ["save.point_cloud=true", "save.exr=true", "distances.near=2", "distances.far=6"]
    assert predict(photos / "a.jpg", output, *kinds)
    x, y, z = np.moveaxis(vertices(output / "point_cloud/a.ply").reshape(33, 24, 3), -1, 0)  # 24 pixels wide
    columns, rows = np.arange(24) + 0.5 - 12, np.arange(33) + 0.5 - 16.5
    np.testing.assert_allclose(x / z, np.broadcast_to(columns / focal, z.shape), rtol=1e-5)
    np.testing.assert_allclose((y / z).T, np.broadcast_to(rows / focal, z.T.shape), atol=1e-6)
    np.testing.assert_allclose(z, 2 + 4 * np.load(output / "depth_npy/a.npy"), rtol=1e-6)
    np.testing.assert_array_equal(depth_of(output / "exr/a.exr"), z)


def test_images_of_one_name_keep_their_ending_and_output_is_never_input(photos):
    (photos / "a.png").touch()
    (photos / "depth").mkdir()
    (photos / "depth/c.png").touch()
    jobs = plan(photos, photos / "depth", ["npy"])
    names = ("a.jpg", "a.png", "sub/b")
    assert [job.files["npy"] for job in jobs] == [photos / f"depth/depth_npy/{name}.npy" for name in names]
    with pytest.raises(PictureError, match="photos"):
        plan(photos, photos, ["npy"])


def test_half_precision(photos, tmp_path, predict):
    for precision in ("float32", "bfloat16"):
        assert predict(photos / "a.jpg", tmp_path / precision, f"precision={precision}")
    exact, half = (np.load(tmp_path / name / "depth_npy/a.npy") for name in ("float32", "bfloat16"))
    assert 0 < np.abs(exact - half).max() < 0.05


@pytest.mark.slow
def test_two_processes_write_the_same_files_and_a_wrong_key_is_one_line(photos, tmp_path, predict, checkpoint):
    (photos / "broken.png").write_bytes(b"not an image")
    assert not predict(photos, tmp_path / "one")
    words = arguments(checkpoint, photos, tmp_path / "two")
    done = call_script("infer.py", *words, processes=2)
    assert done.returncode == 1, done.stderr
    assert "broken.png" in done.stderr
    assert written(tmp_path / "one") == written(tmp_path / "two")
    for name in ("a", "sub/b"):
        one, two = (np.load(tmp_path / folder / f"depth_npy/{name}.npy") for folder in ("one", "two"))
        np.testing.assert_allclose(one, two, atol=1e-5)
    misspelt = call_script("infer.py", *words, "sampler.step=1")
    assert (misspelt.returncode, "Traceback" in misspelt.stderr) == (1, False)
    assert "step" in misspelt.stderr


PLACES = [(3, 2), (20, 5), (30, 20), (7, 17), (15, 11), (28, 9)]  # x, y
COUNTS = [1009, 2500, 4321, 3003, 1750, 2222]  # millimetres


def known_points(folder: Path, names: tuple[str, ...], ending: str = ".csv") -> Path:
    """A folder of point files for the images of those names, the same points in each."""
    depth = np.zeros((24, 33), dtype=np.int64)
    lines = ["x,y,metres"]
    for (x, y), count in zip(PLACES, COUNTS, strict=True):
        depth[y, x] = count
        lines.append(f"{x},{y},{count / 1000}")
    for name in names:
        path = folder / (name + ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(depth.astype(np.uint16)).save(path) if ending == ".png" else path.write_text("\n".join(lines))
    return folder


def test_known_points_give_metres_the_same_from_a_csv_and_a_png(photos, tmp_path, predict, model):
    for ending in (".csv", ".png"):
        points = known_points(tmp_path / f"points{ending}", ("a", "sub/b"), ending)
        assert predict(photos, tmp_path / f"out{ending}", f"points.from={points}", "save.point_cloud=true")
    for folder, kind in (("depth_metres", "npy"), ("depth_metres_png", "png"), ("uncertainty_metres", "npy")):
        for name in ("a", "sub/b"):
            one, two = ((tmp_path / f"out{e}" / folder / f"{name}.{kind}").read_bytes() for e in (".csv", ".png"))
            assert one == two
    image, output = read_picture(photos / "sub/b.png"), tmp_path / "out.csv"
    expected = metric_depth(model(image[None]), torch.tensor(PLACES).float(), torch.tensor(COUNTS) / 1000, image=image)
    depth = np.load(output / "depth_metres/sub/b.npy")
    assert (depth.dtype, depth.shape) == (np.float32, (24, 33))
    np.testing.assert_array_equal(depth, expected.depth[0].numpy())
    np.testing.assert_array_equal(np.load(output / "uncertainty_metres/sub/b.npy"), expected.uncertainty[0].numpy())
    np.testing.assert_allclose(read_grey16(output / "depth_metres_png/sub/b.png") / 1000, depth, atol=0.51e-3)
    with Image.open(output / "depth_metres_png/sub/b.png") as picture:
        assert picture.text["Comment"].startswith("0.001 metres")
    np.testing.assert_array_equal(vertices(output / "point_cloud/sub/b.ply")[:, 2], depth.ravel())


@pytest.mark.parametrize(("farthest", "clipped"), [(65.5, 65.5), (200.0, 200.0), (300.0, 65535 / 256)])
def test_metres_take_precedence_over_the_assumed_distances_and_never_wrap(tmp_path, farthest, clipped):
    metres = torch.linspace(0, farthest, 12).reshape(1, 3, 4)  # the first is unknown
    (tmp_path / "a.png").touch()
    (job,) = plan(tmp_path / "a.png", tmp_path / "out", ("point_cloud", "mesh", "viewer", "exr", "metres_png"))
    prediction = Prediction(torch.rand(1, 1, 3, 4), None, "affine_depth")
    write(job, torch.rand(3, 3, 4), prediction, Camera.centred(4.0, 3, 4), Distances(1, 4), metres)
    assert len(vertices(job.files["point_cloud"])) == 11
    np.testing.assert_array_equal(depth_of(job.files["exr"]), metres[0].numpy())
    assert "11 of 12 points, in metres" in job.files["viewer"].read_text()
    assert job.files["mesh"].read_bytes().startswith(b"glTF")
    with Image.open(job.files["metres_png"]) as picture:
        unit = float(picture.text["Comment"].split()[0])
    counts = read_grey16(job.files["metres_png"])
    np.testing.assert_allclose(counts * unit, metres[0].clip(max=clipped), atol=0.51 * unit)


def test_another_models_metric_depth_gives_scale_and_shift(photos, tmp_path, predict, model):
    wanted = 2 + 3 * model(read_picture(photos / "sub/b.png")[None]).depth[0, 0].numpy()
    (tmp_path / "theirs").mkdir()
    np.save(tmp_path / "theirs/b.npy", wanted)
    assert predict(photos / "sub", tmp_path / "out", f"points.reference={tmp_path}/theirs")
    np.testing.assert_allclose(np.load(tmp_path / "out/depth_metres/b.npy"), wanted, rtol=1e-4)


def test_distances_along_the_ray_need_a_camera_that_is_known(photos, tmp_path, predict, capsys):
    points = known_points(tmp_path / "points", ("b",))
    assert not predict(photos / "sub", tmp_path / "out", f"points.from={points}", "points.distance=ray")
    assert "points.distance=ray" in capsys.readouterr().err
    assert predict(photos / "sub", tmp_path / "out", f"points.from={points}", "points.distance=ray", "camera.focal=20")


def test_guided_writes_its_own_metres_and_refuses_a_model_before_the_first_image(photos, tmp_path, predict, model):
    points = known_points(tmp_path / "points", ("b",))
    chosen = [f"points.from={points}", "points.method=guided", "sampler.steps=2"]
    assert predict(photos / "sub", tmp_path / "out", *chosen)
    order = sorted(range(len(PLACES)), key=lambda k: PLACES[k][::-1])  # row by row, as they are read
    places, metres = torch.tensor(PLACES).float()[order], (torch.tensor(COUNTS) / 1000)[order]
    expected = guided(model, read_picture(photos / "sub/b.png")[None], places, metres, steps=2).depth[0, 0]
    np.testing.assert_array_equal(np.load(tmp_path / "out/depth_metres/b.npy"), expected)
    assert not (tmp_path / "out/uncertainty_metres").exists()
    disparity = MarigoldDepth(model.backbone, DepthSettings(Switches("disparity"))).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="guided"):
        predict(photos / "sub", tmp_path / "never", *chosen, f"checkpoint={disparity}")
    assert not (tmp_path / "never").exists()


def test_failed_images_are_reported_and_finished_ones_skipped_unless_overwritten(photos, tmp_path, predict, capsys):
    (photos / "broken.png").write_bytes(b"not an image")
    points = known_points(tmp_path / "points", ("a", "broken", "sub/b"))
    (points / "a.csv").write_text("x,y,metres\n3,2,1.5\n33,2,1.5\n")
    output = tmp_path / "out"
    assert not predict(photos, output, f"points.from={points}")
    said = capsys.readouterr()
    assert "1 done, 0 skipped (done before), 2 failed" in said.out
    assert all(name in said.err for name in ("broken.png", "a.csv, line 3"))
    known_points(points, ("a",))
    (photos / "broken.png").unlink()
    (output / "depth_npy/sub/b.npy").write_bytes(b"mine")
    assert predict(photos, output, f"points.from={points}")
    assert "1 done, 1 skipped" in capsys.readouterr().out
    assert (output / "depth_npy/sub/b.npy").read_bytes() == b"mine"
    assert predict(photos, output, f"points.from={points}", "overwrite=true")
    assert np.load(output / "depth_npy/sub/b.npy").shape == (24, 33)
    (points / "a.csv").unlink()
    with pytest.raises(ValueError, match=r"a\.jpg.*a\.csv"):
        predict(photos, tmp_path / "never", f"points.from={points}")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["points.from=nowhere"], "nowhere"),
        ([*(f"save.{kind}=false" for kind in ("npy", "png", "colour"))], "save"),
        (["precision=float8"], "precision"),
        (["save.uncertainty=true"], "ensemble_size"),
        (["checkpoint=missing/folder/here"], "missing"),
        (["save.exr=true"], r"\[exr\]"),
    ],
)
def test_a_wrong_value_is_one_error(photos, tmp_path, predict, overrides, key, monkeypatch):
    monkeypatch.setattr(infer, "find_spec", lambda name: None)  # no extra is installed
    with pytest.raises(ValueError, match=key):
        predict(photos, tmp_path / "out", *overrides)
    assert not (tmp_path / "out").exists()
