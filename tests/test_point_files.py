"""Files of known points: what is read, and that every mistake is named by file, line and point."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from marigold.config import ConfigError
from marigold.point_files import PointFiles, PointsError
from marigold.prediction_files import Job
from marigold.types import Camera

SIZE = (4, 6)


def points(folder: Path | None, **changes) -> PointFiles:
    given = {"from_": folder and str(folder), "reference": None, "method": None, "unit": 0.001, "distance": "planar"}
    return PointFiles(**given | changes)


def read(folder: Path, camera: Camera | None = None, **changes):
    return points(folder, **changes).read(Job(folder / "a.jpg", Path("a"), {}), SIZE, camera)


def depth_map(unit: float = 1.0) -> np.ndarray:
    depth = np.zeros(SIZE, np.float32)
    depth[1, 2], depth[0, 5], depth[3, 0] = 1.009, 65.535, 2.5
    return depth / unit


def test_all_kinds_of_files_hold_the_same_to_the_last_bit(tmp_path: Path):
    (tmp_path / "1").mkdir()
    # With the mark and the blanks of a spreadsheet
    (tmp_path / "1/a.csv").write_bytes(b"\xef\xbb\xbfx, y, metres\r\n2, 1, 1.009\r\n\r\n5,0,65.535\r\n0,3,2.5\r\n")
    for folder, unit in (("2", 0.001), ("3", 1 / 256)):
        (tmp_path / folder).mkdir()
        Image.fromarray(depth_map(unit).round().astype(np.uint16)).save(tmp_path / folder / "a.png")
    (tmp_path / "4").mkdir()
    np.save(tmp_path / "4/a.npy", depth_map())
    expected = read(tmp_path / "1")
    assert expected.places.tolist() == [[5, 0], [2, 1], [0, 3]]  # row by row
    assert torch.equal(expected.metres, torch.tensor([65.535, 1.009, 2.5]))
    for folder in ("2", "4"):
        assert all(torch.equal(*pair) for pair in zip(read(tmp_path / folder), expected, strict=True))
    assert read(tmp_path / "3", unit=1 / 256).metres[2] == 2.5


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("x,y,depth\n1,1,1", "line 1.*x,y,metres.*depth"),
        ("x,y,metres\n1,1,2\n1,2", "line 3.*'1,2'"),
        ("x,y,metres\n1,one,2", "line 2"),
        ("x,y,metres\n\n1,1,nan", r"line 3.*\(1, 1\).*nan"),
        ("x,y,metres\n1,2,0", r"line 2.*\(1, 2\).* 0 "),
        ("x,y,metres\n5.51,2,1", r"line 2.*\(5.51, 2\).*4 x 6"),
        ("x,y,metres\n1,2,3\n2,2,3\n1,2,4", r"line 4.*\(1, 2\).*line 2"),
        ("x,y,metres\n", "no known point"),
    ],
)
def test_a_mistake_in_a_csv_is_named(tmp_path: Path, text: str, named: str):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(PointsError, match=rf"a\.csv.*{named}"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("depth", "named"),
    [(depth_map() * -1, r"\(5, 0\).*-65"), (np.ones((6, 4)), "6 x 4.*4 x 6"), (np.zeros(SIZE), "no known")],
)
def test_a_mistake_in_a_map_is_named(tmp_path: Path, depth: np.ndarray, named: str):
    np.save(tmp_path / "a.npy", depth)
    with pytest.raises(PointsError, match=rf"a\.npy.*{named}"):
        read(tmp_path)


def test_files_are_found_by_name_and_there_is_exactly_one(tmp_path: Path):
    with pytest.raises(PointsError, match=r"a\.jpg.*a\.csv.*a\.npy.*a\.png"):
        read(tmp_path)
    for ending in (".csv", ".png"):
        (tmp_path / f"a{ending}").touch()
    with pytest.raises(PointsError, match=r"a\.csv.*a\.png"):
        read(tmp_path)
    beside = Job(tmp_path / "a.png", Path("a"), {})  # the image itself
    assert points(tmp_path).file_of(beside) == tmp_path / "a.csv"


def test_a_reference_of_another_size_lies_over_the_image_and_is_thinned(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.array([[1.0, 0, 0], [0, 0, 3]]))  # half the size: its corners are the image's
    known = read(tmp_path, from_=None, reference=str(tmp_path))
    assert known.places.tolist() == [[0.5, 0.5], [4.5, 2.5]]
    assert known.metres.tolist() == [1, 3]
    np.save(tmp_path / "a.npy", np.ones((300, 400), np.float32))
    known = read(tmp_path, from_=None, reference=str(tmp_path))
    assert 1000 < len(known.metres) <= 2000
    assert known.places.amax(0).tolist() > [5, 3]


def test_distances_along_the_ray_become_planar_depth(tmp_path: Path):
    # A 3-4-5 triangle: 3 px beside the principal point at a focal length of 4 px.
    (tmp_path / "a.csv").write_text("x,y,metres\n1,1,5\n4,1,5\n1,3.5,5")
    known = read(tmp_path, Camera(4.0, 4.0, 1.5, 1.5), distance="ray")
    np.testing.assert_allclose(known.metres.numpy(), [5.0, 4.0, 5 / np.hypot(1, 2.5 / 4)], rtol=1e-6)
    with pytest.raises(PointsError, match=r"a\.jpg.*points\.distance"):
        read(tmp_path, distance="ray")


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
