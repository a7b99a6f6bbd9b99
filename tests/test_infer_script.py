import subprocess
import sys
from pathlib import Path

import numpy as np
import OpenEXR
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import ExifTags, Image

from marigold import infer
from marigold.config import ConfigError
from marigold.depth.metric import metric_depth
from marigold.model.guided import guided
from marigold.model.pipeline import MarigoldDepth
from marigold.model.recipe import Switches
from marigold.model.settings import DepthSettings
from marigold.pictures import read_grey16, read_picture
from marigold.prediction_files import Distances, plan, write
from marigold.types import Camera, Prediction

ROOT = Path(__file__).parent.parent


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos, one in a subfolder, and a file that is none."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(["a.jpg", "sub/b.png"]):
        values = np.random.default_rng(seed).integers(0, 256, (24, 33, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / name)
    return folder


def run(*overrides: str) -> bool:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return infer.run(compose("infer", overrides=list(overrides)))


def arguments(photos: object, output: Path, checkpoint: Path) -> list[str]:
    return [f"input='{photos}'", f"output={output}", f"checkpoint={checkpoint}"]


def written(output: Path) -> list[str]:
    return sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())


def test_every_kind_of_file(photos: Path, tmp_path: Path, checkpoint: Path):
    output = tmp_path / "out"
    everything = [
        "save.uncertainty=true",
        "save.point_cloud=true",
        "save.mesh=true",
        "save.viewer=true",
        "save.exr=true",
        "sampler.ensemble_size=3",
    ]
    assert run(*arguments(photos, output, checkpoint), *everything)
    kinds = {"depth_npy": "npy", "depth_png": "png", "depth_colour": "png", "uncertainty_npy": "npy"}
    kinds |= {"point_cloud": "ply", "mesh": "glb", "viewer": "html", "exr": "exr"}
    expected = [f"{kind}/{name}.{ending}" for kind, ending in kinds.items() for name in ("a", "sub/b")]
    assert written(output) == sorted(expected)
    model = MarigoldDepth.from_pretrained(checkpoint)
    prediction = model(read_picture(photos / "sub/b.png")[None], ensemble_size=3)
    depth = np.load(output / "depth_npy/sub/b.npy")
    assert (depth.dtype, depth.shape) == (np.float32, (24, 33))
    np.testing.assert_array_equal(depth, prediction.depth[0, 0].numpy())
    np.testing.assert_array_equal(np.load(output / "uncertainty_npy/sub/b.npy"), prediction.uncertainty[0, 0].numpy())
    with Image.open(output / "depth_png/sub/b.png") as picture:
        grey = np.asarray(picture)
    np.testing.assert_allclose(grey / 65535, depth, atol=0.51 / 65535)
    assert read_picture(output / "depth_colour/sub/b.png").shape == (3, 24, 33)


def test_what_stands_in_space_has_the_camera_that_the_log_names(
    photos: Path, tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FocalLengthIn35mmFilm.value] = 26
    Image.open(photos / "a.jpg").save(photos / "a.jpg", exif=exif)
    caplog.set_level("INFO", "marigold.infer")
    kinds = ["save.point_cloud=true", "save.exr=true", "distances.near=2", "distances.far=6"]
    for name, focal, given in (
        ("exif", 26 / np.hypot(36, 24) * np.hypot(33, 24), []),
        ("given", 100.0, ["camera.focal=100"]),
    ):
        assert run(*arguments(photos / "a.jpg", tmp_path / name, checkpoint), *kinds, *given)
        assert "a.jpg" in caplog.text
        assert f"{focal:.1f} px" in caplog.text
        _, _, body = (tmp_path / name / "point_cloud/a.ply").read_bytes().partition(b"end_header\n")
        vertices = np.frombuffer(body, [("position", "<f4", 3), ("colour", "u1", 3)])["position"].reshape(33, 24, 3)
        x, y, z = np.moveaxis(vertices, -1, 0)  # upright: 24 px wide
        np.testing.assert_allclose(x / z, np.broadcast_to((np.arange(24) + 0.5 - 12) / focal, z.shape), rtol=1e-5)
        np.testing.assert_allclose(
            (y / z).T, np.broadcast_to((np.arange(33) + 0.5 - 16.5) / focal, z.T.shape), atol=1e-6
        )
        np.testing.assert_allclose(z, 2 + 4 * np.load(tmp_path / name / "depth_npy/a.npy"), rtol=1e-6)
        exr = OpenEXR.File(str(tmp_path / name / "exr/a.exr")).channels()["Z"].pixels
        assert exr.dtype == np.float32
        np.testing.assert_array_equal(exr, z)
    assert "EXIF" in caplog.text
    assert "camera.focal" in caplog.text


def test_metres_count_before_the_assumed_distances(tmp_path: Path):
    metres = torch.full((1, 3, 4), 5.0)
    metres[0, 0, 0] = 0  # unknown
    kinds = ("point_cloud", "mesh", "viewer", "exr")
    (tmp_path / "a.png").touch()
    (job,) = plan(tmp_path / "a.png", tmp_path / "out", kinds)
    prediction = Prediction(torch.rand(1, 1, 3, 4), None, "affine_depth")
    write(job, torch.rand(3, 3, 4), prediction, Camera.centred(4.0, 3, 4), Distances(1, 4), metres)
    _, _, body = job.files["point_cloud"].read_bytes().partition(b"end_header\n")
    assert len(body) == 11 * 15
    np.testing.assert_array_equal(OpenEXR.File(str(job.files["exr"])).channels()["Z"].pixels, metres[0].numpy())
    assert "11 of 12 points, in metres" in job.files["viewer"].read_text()
    assert job.files["mesh"].read_bytes().startswith(b"glTF")


def test_an_extra_that_is_not_installed_is_named(photos, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(infer, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"\[exr\]"):
        run(*arguments(photos, tmp_path / "out", checkpoint), "save.exr=true")


def test_an_unreadable_picture_is_reported_and_the_others_are_done(
    photos: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
):
    (photos / "broken.png").write_bytes(b"not a picture")
    output = tmp_path / "out"
    assert not run(*arguments(photos, output, checkpoint))
    said = capsys.readouterr()
    assert "2 done, 0 skipped (done before), 1 failed" in said.out
    assert "broken.png: cannot be read" in said.err
    assert [name for name in written(output) if name.endswith("npy")] == ["depth_npy/a.npy", "depth_npy/sub/b.npy"]


def test_what_is_done_is_skipped_unless_overwritten(
    photos: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
):
    output = tmp_path / "out"
    run(*arguments(photos, output, checkpoint))
    (output / "depth_npy/a.npy").write_bytes(b"mine")
    (output / "depth_png/sub/b.png").unlink()
    run(*arguments(photos, output, checkpoint))
    assert "1 done, 1 skipped" in capsys.readouterr().out
    assert (output / "depth_npy/a.npy").read_bytes() == b"mine"
    assert (output / "depth_png/sub/b.png").exists()
    run(*arguments(photos, output, checkpoint), "overwrite=true")
    assert np.load(output / "depth_npy/a.npy").shape == (24, 33)


def test_globs_lists_and_single_files(photos: Path, tmp_path: Path, checkpoint: Path):
    (photos / "list.txt").write_text("sub/b.png\n")
    for source, expected in (
        (photos / "**/*.png", "depth_npy/sub/b.npy"),
        (photos / "list.txt", "depth_npy/sub/b.npy"),
        (photos / "a.jpg", "depth_npy/a.npy"),
    ):
        output = tmp_path / f"out_{source.suffix}_{source.stem.strip('*')}"
        assert run(*arguments(source, output, checkpoint), "save.png=false", "save.colour=false")
        assert written(output) == [expected]


def test_pictures_of_one_name_do_not_overwrite_each_other(photos: Path, tmp_path: Path, checkpoint: Path):
    Image.new("RGB", (16, 16)).save(photos / "a.png")
    output = tmp_path / "out"
    assert run(*arguments(photos, output, checkpoint), "save.png=false", "save.colour=false")
    assert written(output) == ["depth_npy/a.jpg.npy", "depth_npy/a.png.npy", "depth_npy/sub/b.npy"]


def test_output_below_the_input_is_not_input_the_next_time(photos: Path, checkpoint: Path):
    output = photos / "depth"
    for _ in range(2):
        run(*arguments(photos, output, checkpoint))
    assert len(written(output)) == 6


def test_a_picture_does_not_depend_on_the_others(photos: Path, tmp_path: Path, checkpoint: Path):
    run(*arguments(photos, tmp_path / "both", checkpoint))
    run(*arguments(photos / "sub", tmp_path / "one", checkpoint))
    both, one = np.load(tmp_path / "both/depth_npy/sub/b.npy"), np.load(tmp_path / "one/depth_npy/b.npy")
    np.testing.assert_array_equal(both, one)


PLACES = [(3, 2), (20, 5), (30, 20), (7, 17), (15, 11), (28, 9)]  # x, y
COUNTS = [1009, 2500, 4321, 3003, 1750, 2222]  # millimetres


def known_points(folder: Path, names: tuple[str, ...], ending: str = ".csv", factor: int = 1) -> Path:
    """A folder of point files for the images of those names, the same points in each."""
    depth = np.zeros((24, 33), dtype=np.int64)
    lines = ["x,y,metres"]
    for (x, y), count in zip(PLACES, COUNTS, strict=True):
        depth[y, x] = count * factor
        lines.append(f"{x},{y},{count * factor / 1000}")
    for name in names:
        path = folder / (name + ending)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(depth.astype(np.uint16)).save(path) if ending == ".png" else path.write_text("\n".join(lines))
    return folder


def test_known_points_give_metres_the_same_from_a_csv_and_a_png(photos: Path, tmp_path: Path, checkpoint: Path):
    for ending in (".csv", ".png"):
        points = known_points(tmp_path / f"points{ending}", ("a", "sub/b"), ending)
        output = tmp_path / f"out{ending}"
        assert run(*arguments(photos, output, checkpoint), f"points.from={points}", "save.point_cloud=true")
    for folder, kind in (("depth_metres", "npy"), ("depth_metres_png", "png"), ("uncertainty_metres", "npy")):
        for name in ("a", "sub/b"):
            one, two = ((tmp_path / f"out{e}" / folder / f"{name}.{kind}").read_bytes() for e in (".csv", ".png"))
            assert one == two
    model = MarigoldDepth.from_pretrained(checkpoint)
    image = read_picture(photos / "sub/b.png")
    prediction = model(image[None])
    expected = metric_depth(prediction, torch.tensor(PLACES).float(), torch.tensor(COUNTS) / 1000, image=image)
    output = tmp_path / "out.csv"
    depth = np.load(output / "depth_metres/sub/b.npy")
    assert (depth.dtype, depth.shape) == (np.float32, (24, 33))
    np.testing.assert_array_equal(depth, expected.depth[0].numpy())
    np.testing.assert_array_equal(np.load(output / "uncertainty_metres/sub/b.npy"), expected.uncertainty[0].numpy())
    np.testing.assert_allclose(read_grey16(output / "depth_metres_png/sub/b.png") / 1000, depth, atol=0.51e-3)
    with Image.open(output / "depth_metres_png/sub/b.png") as picture:
        assert picture.text["Comment"].startswith("0.001 metres")
    vertex = np.dtype([("position", "<f4", 3), ("colour", "u1", 3)])
    vertices = np.frombuffer((output / "point_cloud/sub/b.ply").read_bytes().split(b"end_header\n")[1], vertex)
    np.testing.assert_array_equal(vertices["position"][:, 2], depth.ravel())


@pytest.mark.parametrize(("factor", "reach"), [(1, 0), (20, 65.535), (100, 256)])
def test_far_metres_are_never_wrapped(photos: Path, tmp_path: Path, checkpoint: Path, factor, reach, caplog):
    points = known_points(tmp_path / "points", ("b",), factor=factor)
    only = [f"save.{kind}=false" for kind in ("npy", "png", "colour")]
    run(*arguments(photos / "sub", tmp_path / "out", checkpoint), *only, f"points.from={points}", "points.method=fit")
    depth = np.load(tmp_path / "out/depth_metres/b.npy")
    assert depth.max() > reach
    unit = 1 / 256 if reach else 0.001
    counts = read_grey16(tmp_path / "out/depth_metres_png/b.png")
    np.testing.assert_allclose(counts * unit, depth.clip(max=65535 * unit), atol=0.51 * unit)
    assert any("depth_metres_png" in record.getMessage() for record in caplog.records) == bool(reach)


def test_another_models_metric_depth_gives_scale_and_shift(photos: Path, tmp_path: Path, checkpoint: Path):
    prediction = MarigoldDepth.from_pretrained(checkpoint)(read_picture(photos / "sub/b.png")[None])
    wanted = 2 + 3 * prediction.depth[0, 0].numpy()
    (tmp_path / "theirs").mkdir()
    np.save(tmp_path / "theirs/b.npy", wanted)
    assert run(*arguments(photos / "sub", tmp_path / "out", checkpoint), f"points.reference={tmp_path}/theirs")
    np.testing.assert_allclose(np.load(tmp_path / "out/depth_metres/b.npy"), wanted, rtol=1e-4)


def test_distances_along_the_ray_need_a_camera_that_is_known(
    photos: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
):
    chosen = [f"points.from={known_points(tmp_path / 'points', ('b',))}", "points.distance=ray"]
    assert not run(*arguments(photos / "sub", tmp_path / "out", checkpoint), *chosen)
    assert "points.distance=ray" in capsys.readouterr().err
    assert run(*arguments(photos / "sub", tmp_path / "out", checkpoint), *chosen, "camera.focal=20")
    image = read_picture(photos / "sub/b.png")
    prediction = MarigoldDepth.from_pretrained(checkpoint)(image[None])
    slopes = (torch.tensor(PLACES) - torch.tensor([16.0, 11.5])) / 20  # 33 x 24 pixels
    planar = torch.tensor(COUNTS) / 1000 / (1 + slopes.square().sum(1)).sqrt()
    expected = metric_depth(prediction, torch.tensor(PLACES).float(), planar, image=image).depth[0]
    np.testing.assert_allclose(np.load(tmp_path / "out/depth_metres/b.npy"), expected, rtol=1e-4)


def test_guided_writes_its_own_metres_and_refuses_a_model_before_the_first_image(
    photos: Path, tmp_path: Path, checkpoint: Path
):
    points = known_points(tmp_path / "points", ("b",))
    chosen = [f"points.from={points}", "points.method=guided", "sampler.steps=2"]
    assert run(*arguments(photos / "sub", tmp_path / "out", checkpoint), *chosen)
    model = MarigoldDepth.from_pretrained(checkpoint)
    image = read_picture(photos / "sub/b.png")[None]
    order = sorted(range(len(PLACES)), key=lambda k: PLACES[k][::-1])  # as it is read: row by row
    places, metres = torch.tensor(PLACES).float()[order], (torch.tensor(COUNTS) / 1000)[order]
    expected = guided(model, image, places, metres, steps=2).depth[0, 0]
    np.testing.assert_array_equal(np.load(tmp_path / "out/depth_metres/b.npy"), expected)
    assert not (tmp_path / "out/uncertainty_metres").exists()
    disparity = MarigoldDepth(model.backbone, DepthSettings(Switches("disparity"))).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="guided"):
        run(*arguments(photos / "sub", tmp_path / "never", disparity), *chosen)
    assert not (tmp_path / "never").exists()


def test_a_mistake_in_the_points_is_named_and_the_others_are_done(
    photos: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture
):
    points = known_points(tmp_path / "points", ("a", "sub/b"))
    (points / "a.csv").write_text("x,y,metres\n3,2,1.5\n33,2,1.5\n")
    assert not run(*arguments(photos, tmp_path / "out", checkpoint), f"points.from={points}")
    said = capsys.readouterr()
    assert "1 done, 0 skipped (done before), 1 failed" in said.out
    assert "a.csv, line 3" in said.err
    (points / "a.csv").unlink()
    with pytest.raises(ValueError, match=r"a\.jpg.*a\.csv"):
        run(*arguments(photos, tmp_path / "never", checkpoint), f"points.from={points}")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["points.from=nowhere"], "nowhere"),
        (["points.from=.", "points.method=spline"], "points.method"),
        (["points.unit=near"], "unit"),
        ([*(f"save.{kind}=false" for kind in ("npy", "png", "colour"))], "save"),
        (["precision=float8"], "precision"),
        (["sampler.steps=many"], "steps"),
        (["save.uncertainty=true"], "ensemble_size"),
        (["checkpoint=missing/folder/here"], "no model at"),
        (["input=missing"], "missing"),
        (["camera.fov=180"], r"camera\.fov"),
    ],
)
def test_a_wrong_value_is_one_error(
    photos: Path, tmp_path: Path, checkpoint: Path, overrides: list[str], message: str
):
    with pytest.raises(ValueError, match=message):
        run(*arguments(photos, tmp_path / "out", checkpoint), *overrides)
    assert not (tmp_path / "out").exists()


def test_every_key_of_the_configuration_is_read():
    keys = OmegaConf.load(ROOT / "configs/infer.yaml").keys() - {"defaults", "hydra"}
    assert keys == set(infer.InferConfig.__dataclass_fields__)


def test_half_precision(photos: Path, tmp_path: Path, checkpoint: Path):
    for precision in ("float32", "bfloat16"):
        run(*arguments(photos, tmp_path / precision, checkpoint), f"precision={precision}")
    exact, half = (np.load(tmp_path / name / "depth_npy/a.npy") for name in ("float32", "bfloat16"))
    assert 0 < np.abs(exact - half).max() < 0.05


@pytest.mark.slow
def test_from_the_command_line(photos: Path, tmp_path: Path, checkpoint: Path):
    (photos / "broken.png").write_bytes(b"not a picture")
    command = [sys.executable, "scripts/infer.py", *arguments(photos, tmp_path / "out", checkpoint)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    assert "broken.png" in finished.stderr
    assert len(written(tmp_path / "out")) == 6
    misspelt = subprocess.run([*command, "sampler.step=1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert misspelt.returncode == 1
    assert "step" in misspelt.stderr


@pytest.mark.slow
def test_two_processes_do_the_same_pictures(photos: Path, tmp_path: Path, checkpoint: Path):
    run(*arguments(photos, tmp_path / "one", checkpoint))
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["scripts/infer.py", *arguments(photos, tmp_path / "two", checkpoint)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert written(tmp_path / "one") == written(tmp_path / "two")
    for name in written(tmp_path / "one"):
        if name.endswith(".npy"):
            one, two = np.load(tmp_path / "one" / name), np.load(tmp_path / "two" / name)
            torch.testing.assert_close(torch.from_numpy(one), torch.from_numpy(two), atol=1e-5, rtol=0)
