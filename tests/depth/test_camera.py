import math

import pytest
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from marigold.config import ConfigError
from marigold.depth.camera import CameraSettings

NONE = {"fov": None, "focal": None, "assumed_fov": 60.0}
# 20 mm, and 100 px per mm at 1600 x 1200, so 25 at 400 x 300: 500 px.
PLANE = {"FocalLength": IFDRational(200, 10), "ExifImageWidth": 1600, "ExifImageHeight": 1200}
PER_INCH, PER_CM = {"FocalPlaneXResolution": IFDRational(2540)}, {"FocalPlaneXResolution": IFDRational(1000)}
FILM = {"FocalLengthIn35mmFilm": 27}
EQUIVALENT = 27 / math.hypot(36, 24) * 500  # a diagonal of 500 px for 43.27 mm, however the image is turned
ASSUMED = 200 * math.sqrt(3)


@pytest.mark.parametrize(
    ("given", "orientation", "tags", "focal", "source"),
    [
        # A given camera counts before EXIF.
        ({"fov": 90.0}, 1, FILM, 200, "camera.fov"),
        ({"focal": 512.5}, 1, FILM, 512.5, "camera.focal"),
        ({}, 1, FILM, EQUIVALENT, "FocalLengthIn35mmFilm"),
        ({}, 6, FILM, EQUIVALENT, "FocalLengthIn35mmFilm"),
        ({}, 8, {**PLANE, **PER_INCH}, 500, "FocalPlaneXResolution"),
        ({}, 1, {**PLANE, **PER_CM, "FocalPlaneResolutionUnit": 3}, 500, "FocalPlaneXResolution"),
        # Useless: a length without the size of the sensor, and zeros.
        ({}, 1, {"FocalLength": IFDRational(5)}, ASSUMED, "assumed"),
        ({}, 1, {"FocalLengthIn35mmFilm": 0, "FocalLength": IFDRational(0, 0)}, ASSUMED, "assumed"),
        ({}, 1, {**PLANE, "FocalPlaneXResolution": IFDRational(0)}, ASSUMED, "assumed"),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_camera_is_given_or_from_exif_or_assumed(tmp_path, suffix, given, orientation, tags, focal, source):
    exif, path = Image.Exif(), tmp_path / f"a{suffix}"
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.Exif).update({ExifTags.Base[name].value: value for name, value in tags.items()})
    Image.new("RGB", (400, 300)).save(path, exif=exif.tobytes())  # the pixels as they are stored, not upright
    height, width = (400, 300) if orientation > 4 else (300, 400)
    camera, said = CameraSettings(**{**NONE, **given}).of(path, height, width)
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == pytest.approx((focal, focal, width / 2, height / 2))
    assert source in said
    assert f"{2 * math.degrees(math.atan(width / 2 / camera.fx)):.1f} degrees" in said


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("fov", {"fov": float("nan")}),
        ("focal", {"focal": 0.0}),
        ("focal", {"focal": 100.0, "fov": 60.0}),
        ("assumed_fov", {"assumed_fov": 180.0}),
    ],
)
def test_impossible_cameras_are_refused(key, values):
    with pytest.raises(ConfigError, match=rf"camera\.{key}"):
        CameraSettings(**NONE | values)
