import math

import numpy as np
import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from marigold.config import ConfigError
from marigold.depth.camera import CameraSettings

NONE = {"fov": None, "focal": None, "assumed_fov": 60.0}
# 20 mm, and 100 px per mm at 1600 x 1200, so 25 at 400 x 300: 500 px.
PLANE = {"FocalLength": IFDRational(200, 10), "ExifImageWidth": 1600, "ExifImageHeight": 1200}
PER_INCH, PER_CM = {"FocalPlaneXResolution": IFDRational(2540)}, {"FocalPlaneXResolution": IFDRational(1000)}
EQUIVALENT = 27 / math.hypot(36, 24) * 500  # a diagonal of 500 px for 43.27 mm, whichever way the image is turned
ASSUMED = 200 * math.sqrt(3)


def photo(path, orientation, **tags):
    """A file of 400 x 300 pixels, as they are stored, with these EXIF tags."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base[name].value: value for name, value in tags.items()})
    Image.new("RGB", (400, 300)).save(path, exif=exif.tobytes())
    return path


@pytest.mark.parametrize(
    ("given", "orientation", "tags", "focal", "named"),
    [
        # A given camera counts before EXIF.
        ({"fov": 90.0}, 1, {"FocalLengthIn35mmFilm": 50}, 200, "camera.fov"),
        ({"focal": 512.5}, 1, {"FocalLengthIn35mmFilm": 50}, 512.5, "camera.focal"),
        ({}, 1, {"FocalLengthIn35mmFilm": 27}, EQUIVALENT, "FocalLengthIn35mmFilm"),
        ({}, 6, {"FocalLengthIn35mmFilm": 27}, EQUIVALENT, "FocalLengthIn35mmFilm"),
        ({}, 1, {**PLANE, **PER_INCH, "FocalPlaneResolutionUnit": 2}, 500, "FocalPlaneXResolution"),
        ({}, 8, {**PLANE, **PER_INCH}, 500, "FocalPlaneXResolution"),
        ({}, 8, {**PLANE, **PER_CM, "FocalPlaneResolutionUnit": 3}, 500, "FocalPlaneXResolution"),
        # What says nothing: a length without the size of the sensor, and zeros.
        ({}, 1, {}, ASSUMED, "assumed"),
        ({}, 1, {"FocalLength": IFDRational(5)}, ASSUMED, "assumed"),
        ({}, 1, {"FocalLengthIn35mmFilm": 0, "FocalLength": IFDRational(0, 0)}, ASSUMED, "assumed"),
        ({}, 1, {**PLANE, "FocalPlaneXResolution": IFDRational(0)}, ASSUMED, "assumed"),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_the_camera_is_the_given_one_or_that_of_exif_or_assumed(
    tmp_path, suffix, given, orientation, tags, focal, named
):
    height, width = (400, 300) if orientation > 4 else (300, 400)
    path = photo(tmp_path / f"a{suffix}", orientation, **tags)
    camera, source = CameraSettings(**{**NONE, **given}).of(path, height, width)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((focal, focal, width / 2, height / 2))
    assert named in source
    assert f"{2 * math.degrees(math.atan(width / 2 / camera.fx)):.1f} degrees" in source


def test_an_array_has_no_exif(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 4, 3), np.uint8))
    camera, source = CameraSettings(**NONE).of(tmp_path / "a.npy", 300, 400)
    assert (camera.fx, "assumed" in source) == (pytest.approx(ASSUMED), True)


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
        CameraSettings(**NONE | values)
