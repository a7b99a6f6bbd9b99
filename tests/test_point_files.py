"""Files of known points: their values, and errors that name file, line and point."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marigold.config import ConfigError
from marigold.pictures import PictureError
from marigold.point_files import PointFiles, PointsError
from marigold.prediction_files import Job
from marigold.types import Camera

SIZE = (4, 6)
KNOWN = {(2, 1): 1.009, (5, 0): 65.535, (0, 3): 2.5}  # x, y -> metres


def points(folder: Path, **changes) -> PointFiles:
    return PointFiles(
        **{"from_": str(folder), "reference": None, "method": None, "unit": 0.001, "distance": "planar"} | changes
    )


def job(folder: Path, name: str = "sub/a") -> Job:
    return Job(folder / f"{name}.jpg", Path(name), {})


def write(path: Path, known=KNOWN, size=SIZE, unit=0.001) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        path.write_text("x,y,metres\n" + "".join(f"{x},{y},{metres}\n" for (x, y), metres in known.items()))
        return
    depth = np.zeros(size, np.float64)
    for (x, y), metres in known.items():
        depth[y, x] = metres
    if path.suffix == ".npy":
        np.save(path, depth)
    else:
        Image.fromarray((depth / unit).round().astype(np.uint16)).save(path)


def test_every_format_gives_the_same_points_to_the_last_bit(tmp_path: Path):
    found = {}
    for k, ending in enumerate((".csv", ".npy", ".png")):
        write(tmp_path / f"{k}/sub/a{ending}")
        found[ending] = points(tmp_path / f"{k}").read(job(tmp_path), SIZE, None)
    assert found[".csv"].places.tolist() == [[5, 0], [2, 1], [0, 3]]  # row by row
    assert torch.equal(found[".csv"].metres, torch.tensor([65.535, 1.009, 2.5]))
    for known in found.values():
        assert torch.equal(known.places, found[".csv"].places)
        assert torch.equal(known.metres, found[".csv"].metres)


def test_sub_pixel_places_the_unit_of_a_png_and_what_a_spreadsheet_adds(tmp_path: Path):
    write(tmp_path / "sub/a.png", unit=1 / 256)
    assert points(tmp_path, unit=1 / 256).read(job(tmp_path), SIZE, None).metres[2] == 2.5
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbfx, y, metres\r\n2.25, 3.5, 1\r\n\r\n-0.5, -0.5, 2\r\n")
    known = points(tmp_path).read(job(tmp_path, "b"), SIZE, None)
    assert (known.places.tolist(), known.metres.tolist()) == ([[-0.5, -0.5], [2.25, 3.5]], [2, 1])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "line 1"),
        ("x,y,depth\n1,1,1", "line 1.*x,y,metres.*depth"),
        ("x,y,metres\n1,1,2\n1,2", "line 3.*'1,2'"),
        ("x,y,metres\n1,one,2", "line 2"),
        ("x,y,metres\n\n1,1,nan", r"line 3.*\(1, 1\).*nan"),
        ("x,y,metres\n1,2,-3", r"line 2.*\(1, 2\).*-3"),
        ("x,y,metres\n5.51,2,1", r"line 2.*\(5.51, 2\).*4 x 6"),
        ("x,y,metres\n1,2,3\n2,2,3\n1,2,4", r"line 4.*\(1, 2\).*line 2"),
        ("x,y,metres\n", "no known point"),
    ],
)
def test_a_mistake_in_a_csv_is_named(tmp_path: Path, text: str, named: str):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(PointsError, match=rf"a\.csv.*{named}"):
        points(tmp_path).read(job(tmp_path, "a"), SIZE, None)


@pytest.mark.parametrize(
    ("value", "size", "named"),
    [
        (np.nan, SIZE, r"\(2, 1\).*nan"),
        (1.0, (6, 4), "6 x 4.*4 x 6"),
        (0.0, SIZE, "no kn"),
    ],
)
def test_a_mistake_in_a_map_is_named(tmp_path: Path, value: float, size: tuple[int, int], named: str):
    write(tmp_path / "a.npy", {(2, 1): value}, size)
    with pytest.raises(PointsError, match=rf"a\.npy.*{named}"):
        points(tmp_path).read(job(tmp_path, "a"), SIZE, None)


def test_files_are_found_by_name_and_there_is_exactly_one(tmp_path: Path):
    with pytest.raises(PointsError, match=r"a\.jpg.*sub/a\.csv.*sub/a\.npy.*sub/a\.png"):
        points(tmp_path).file_of(job(tmp_path))
    write(tmp_path / "sub/a.csv")
    write(tmp_path / "sub/a.png")
    with pytest.raises(PointsError, match=r"more than one.*a\.csv.*a\.png"):
        points(tmp_path).file_of(job(tmp_path))
    beside = Job(tmp_path / "sub/a.png", Path("sub/a"), {})  # the image itself
    assert points(tmp_path).file_of(beside) == tmp_path / "sub/a.csv"
    Image.new("RGB", (6, 4)).save(tmp_path / "b.png")
    with pytest.raises(PictureError, match=r"b\.png"):
        points(tmp_path).read(job(tmp_path, "b"), SIZE, None)


def test_a_reference_of_another_size_lies_over_the_image_and_is_thinned(tmp_path: Path):
    write(tmp_path / "a.npy", {(0, 0): 1.0, (2, 1): 3.0}, (2, 3))  # half the size: its corners are the image's
    known = points(None, from_=None, reference=str(tmp_path)).read(job(tmp_path, "a"), SIZE, None)
    assert known.places.tolist() == [[0.5, 0.5], [4.5, 2.5]]
    assert known.metres.tolist() == [1, 3]
    np.save(tmp_path / "b.npy", np.ones((300, 400), np.float32))
    known = points(None, from_=None, reference=str(tmp_path)).read(job(tmp_path, "b"), (300, 400), None)
    assert 1000 < len(known.metres) <= 2000
    assert known.places.amax(0).tolist() > [390, 290]


def test_distances_along_the_ray_become_planar_depth(tmp_path: Path):
    # A 3-4-5 triangle: 3 px beside the principal point at a focal length of 4 px.
    camera = Camera(4.0, 4.0, 1.5, 1.5)
    write(tmp_path / "a.csv", {(1, 1): 5.0, (4, 1): 5.0, (1, 3.5): 5.0})
    measured = points(tmp_path, distance="ray")
    known = measured.read(job(tmp_path, "a"), SIZE, camera)
    expected = [5.0, 4.0, 5 / np.hypot(1, 2.5 / 4)]
    np.testing.assert_allclose(known.metres.numpy(), expected, rtol=1e-6)
    with pytest.raises(PointsError, match=r"a\.jpg.*points\.distance"):
        measured.read(job(tmp_path, "a"), SIZE, None)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"reference": "."}, "points.from"),
        ({"method": "kriging"}, "points.method.*residual"),
        ({"from_": None, "reference": ".", "method": "residual"}, "points.method.*fit"),
        ({"unit": 0.0}, "points.unit"),
        ({"from_": "nowhere"}, "nowhere"),
    ],
)
def test_settings_without_meaning_are_refused(tmp_path: Path, changes: dict, key: str):
    with pytest.raises(ConfigError, match=key):
        points(tmp_path, **changes)
