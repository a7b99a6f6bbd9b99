import math

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from marigold.config import ConfigError
from marigold.depth.camera import CameraSettings
from marigold.types import Camera

ASSUMED = CameraSettings(fov=None, focal=None, assumed_fov=60.0)


def photo(path, size=(400, 300), orientation=1, **tags):
    """A picture file of (width, height) `size` as it is stored, with these EXIF tags."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base[name].value: value for name, value in tags.items()})
    Image.new("RGB", size).save(path, exif=exif.tobytes())
    return path


def check(camera: Camera, focal: float, height: int, width: int) -> None:
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((focal, focal, width / 2, height / 2))


def test_a_given_camera_counts_before_exif(tmp_path):
    path = photo(tmp_path / "a.jpg", FocalLengthIn35mmFilm=50)
    camera, source = CameraSettings(fov=90.0, focal=None, assumed_fov=60.0).of(path, 300, 400)
    check(camera, 200, 300, 400)
    assert "camera.fov" in source
    camera, source = CameraSettings(fov=None, focal=512.5, assumed_fov=60.0).of(path, 300, 400)
    assert (camera, "camera.focal" in source) == (Camera(512.5, 512.5, 200, 150), True)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_equivalent_focal_length_compares_diagonals(tmp_path, suffix, orientation):
    # A diagonal of 500 px for 43.27 mm, whichever way the photo is turned.
    path = photo(tmp_path / f"a{suffix}", orientation=orientation, FocalLengthIn35mmFilm=27)
    height, width = (300, 400) if orientation == 1 else (400, 300)
    camera, source = ASSUMED.of(path, height, width)
    assert "FocalLengthIn35mmFilm" in source
    check(camera, 27 / math.hypot(36, 24) * 500, height, width)
    assert f"{2 * math.degrees(math.atan(width / 2 / camera.fx)):.1f} degrees" in source


@pytest.mark.parametrize(
    ("unit", "resolution"),
    [({"FocalPlaneResolutionUnit": 2}, 2540), ({}, 2540), ({"FocalPlaneResolutionUnit": 3}, 1000)],
)
def test_the_focal_plane_gives_the_focal_length_of_a_resized_photo(tmp_path, unit, resolution):
    # 100 px per mm at 1600 x 1200, so 25 at 400 x 300: 20 mm are 500 px.
    plane = {"FocalPlaneXResolution": IFDRational(resolution), "ExifImageWidth": 1600, "ExifImageHeight": 1200}
    for orientation in (1, 8):
        path = photo(tmp_path / "a.jpg", orientation=orientation, FocalLength=IFDRational(200, 10), **plane, **unit)
        camera, source = ASSUMED.of(path, 300, 400)
        assert camera.fx == pytest.approx(500)
        assert "FocalPlaneXResolution" in source


def test_without_a_focal_length_it_is_assumed_and_said(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 3), np.uint8))
    unknown = {"FocalLengthIn35mmFilm": 0, "FocalLength": IFDRational(0, 0), "FocalPlaneXResolution": IFDRational(0)}
    for path in (
        tmp_path / "a.npy",
        photo(tmp_path / "plain.jpg"),
        photo(tmp_path / "length.jpg", FocalLength=IFDRational(5)),  # says nothing without the size of the sensor
        photo(tmp_path / "zeros.jpg", **unknown),
    ):
        camera, source = ASSUMED.of(path, 300, 400)
        check(camera, 200 * math.sqrt(3), 300, 400)
        assert "assumed" in source


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("fov", {"fov": 180.0}),
        ("fov", {"fov": float("nan")}),
        ("focal", {"focal": 0.0}),
        ("focal", {"focal": 100.0, "fov": 60.0}),
        ("assumed_fov", {"assumed_fov": -1.0}),
    ],
)
def test_values_that_no_camera_has_are_refused(key, values):
    with pytest.raises(ConfigError, match=rf"camera\.{key}"):
        CameraSettings(**{"fov": None, "focal": None, "assumed_fov": 60.0} | values)
