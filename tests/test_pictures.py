"""Images of every mode and kind become RGB in [0, 1] or are refused; files are found, and damaged ones named."""

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageCms

from marigold.pictures import PictureError, find_pictures, read_grey16, read_picture, to_image, write_grey16, write_rgb

RED = (255, 0, 0)


def one(*colour: float) -> torch.Tensor:
    return torch.tensor(colour, dtype=torch.float32).reshape(3, 1, 1).expand(3, 2, 3)


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "RGBa"])
def test_red_is_red_in_every_colour_mode(mode: str):
    picture = Image.new("RGB", (3, 2), RED).convert("RGBA" if mode == "RGBa" else mode).convert(mode)
    torch.testing.assert_close(to_image(picture), one(1, 0, 0), atol=0.01, rtol=0)


def test_lab_is_converted():
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.new("RGB", (3, 2), (200, 40, 90)), *profiles, outputMode="LAB")
    torch.testing.assert_close(to_image(lab), one(200 / 255, 40 / 255, 90 / 255), atol=0.03, rtol=0)


@pytest.mark.parametrize(("mode", "value"), [("L", 51), ("F", 0.2), ("I;16B", 13107), ("I", 13107)])
def test_grey_is_repeated(mode: str, value: object):
    torch.testing.assert_close(to_image(Image.new(mode, (3, 2), value)), one(0.2, 0.2, 0.2), atol=1e-6, rtol=0)


def transparent_palette() -> Image.Image:
    file = io.BytesIO()
    Image.new("P", (3, 2), 0).save(file, format="GIF", transparency=0)
    return Image.open(file)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("RGBA", (3, 2), (255, 0, 0, 51)), (1, 0.8, 0.8)),
        (np.tile(np.array([1, 0, 0, 0.2]), (2, 3, 1)), (1, 0.8, 0.8)),
        (torch.tensor([1, 0, 0, 0.2]).reshape(4, 1, 1).expand(4, 2, 3), (1, 0.8, 0.8)),
        (transparent_palette(), (1, 1, 1)),
    ],
    ids=["PIL", "array", "tensor", "palette"],
)
def test_alpha_is_composited_over_white(picture: object, expected: tuple[float, ...]):
    """A fifth of red over white: 0.2 * (1, 0, 0) + 0.8 * (1, 1, 1)."""
    torch.testing.assert_close(to_image(picture), one(*expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("orientation", "turns"), [(3, 2), (6, 3)])
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, turns: int):
    """3: upside down; 6: the camera was turned left, so the image is turned right."""
    values = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(values, turns)
    np.testing.assert_allclose(read_picture(tmp_path / "a.png").numpy() * 255, upright.transpose(2, 0, 1), atol=1e-4)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.float64, 1)])
def test_arrays_and_tensors_are_scaled_by_their_type(dtype: type, top: float):
    values = (np.array([[0, 0.25], [0.5, 1]]) * top).astype(dtype)
    expected = torch.from_numpy(values.astype(np.float64) / top).float().expand(3, 2, 2)
    for picture in (values, values[..., None], torch.from_numpy(values), torch.from_numpy(values)[None]):
        torch.testing.assert_close(to_image(picture), expected)


def test_the_result_shares_no_memory_with_the_image():
    values = torch.zeros(3, 2, 2)
    to_image(values).fill_(1)
    assert values.sum() == 0


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((2, 2, 5)),
        np.zeros((0, 4)),
        np.zeros((2, 2), dtype=np.int32),
        np.full((2, 2), np.nan),
        np.full((2, 2), 1.5),
        torch.zeros(2, 3, 4, 4, 4),
        Image.new("I", (2, 2), 70000),
        Image.new("RGB", (0, 2)),
    ],
)
def test_other_shapes_types_and_ranges_are_refused(picture: object):
    with pytest.raises(PictureError):
        to_image(picture)


def test_a_16_bit_file_keeps_its_bits(tmp_path: Path):
    values = torch.rand(1, 5, 7, generator=torch.Generator().manual_seed(0))
    with (tmp_path / "a.png").open("wb") as file:
        write_grey16(file, values)
    torch.testing.assert_close(read_picture(tmp_path / "a.png")[:1], values, atol=0.51 / 65535, rtol=0)
    counts = read_grey16(tmp_path / "a.png")
    assert counts.dtype == np.uint16
    np.testing.assert_allclose(counts, values[0] * 65535, atol=0.51)


def test_an_npy_file_is_read_as_a_png_of_the_same_values(tmp_path: Path):
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    with (tmp_path / "a.png").open("wb") as file:
        write_rgb(file, values)
    np.save(tmp_path / "a.npy", values)
    assert torch.equal(read_picture(tmp_path / "a.png"), read_picture(tmp_path / "a.npy"))


def test_an_unreadable_file_is_named(tmp_path: Path):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, format="PNG")
    (tmp_path / "empty.png").touch()
    (tmp_path / "short.png").write_bytes(file.getvalue()[:2000])
    for damage in ("missing", "empty", "short"):
        with pytest.raises(PictureError, match=rf"{damage}\.png"):
            read_picture(tmp_path / f"{damage}.png")


def test_an_image_above_the_pixel_limit_is_not_decoded(tmp_path: Path):
    path = tmp_path / "long.png"
    Image.new("L", (11, 10)).save(path)
    assert read_picture(path, 110).shape == (3, 10, 11)
    path.write_bytes(path.read_bytes()[:60])  # the header with the size is there, the pixels are not
    with pytest.raises(PictureError, match=r"long\.png.*11 x 10"):
        read_picture(path, 109)


def test_a_decompression_bomb_is_refused(tmp_path: Path):
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + b"\0" * 4)
    with pytest.raises(PictureError, match="bomb"):
        read_picture(path)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def places(source: object) -> list[str]:
    return [place.as_posix() for place in find_pictures(source).values()]


def test_finding_images(tmp_path: Path):
    touch(tmp_path, "b.PNG", "a.jpg", "sub/c.webp", "sub/notes.md", "odd[1].png")
    assert places(tmp_path) == ["a.jpg", "b.PNG", "odd[1].png", "sub/c.webp"]
    assert places(tmp_path / "odd[1].png") == ["odd[1].png"]
    assert places(tmp_path / "**/*.[jw]*") == ["a.jpg", "sub/c.webp"]
    (tmp_path / "empty").mkdir()
    for source in ("nothing/*.jpg", "empty"):
        with pytest.raises(PictureError, match=source.split("/")[0]):
            find_pictures(tmp_path / source)


def test_a_list_of_names_keeps_its_order_and_missing_files(tmp_path: Path):
    touch(tmp_path, "a.jpg", "sub/b.jpg")
    (tmp_path / "list.txt").write_text("# mine\nsub/b.jpg\n\n  a.jpg  \ngone.jpg\n")
    assert places(tmp_path / "list.txt") == ["sub/b.jpg", "a.jpg", "gone.jpg"]
    assert next(iter(find_pictures(tmp_path / "list.txt"))) == tmp_path / "sub/b.jpg"


def test_places_never_lead_out_of_the_output(tmp_path: Path):
    touch(tmp_path, "outside.jpg", "lists/inside.jpg")
    for name in ("../outside.jpg", str(tmp_path / "outside.jpg"), "sub/../inside.jpg"):
        (tmp_path / "lists/list.txt").write_text(name)
        (place,) = places(tmp_path / "lists/list.txt")
        assert not place.startswith("/")
        assert ".." not in place


def check_or_refused(take: Callable[[], torch.Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's about NaN, and Pillow's about damage that it can read past
        try:
            image = take()
        except PictureError:
            return
    assert (image.dtype, image.shape[0]) == (torch.float32, 3)
    assert 0 <= image.min() <= image.max() <= 1


fuzzed = settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
ARRAYS = hnp.arrays(
    st.one_of(hnp.scalar_dtypes(), hnp.array_dtypes()) | st.sampled_from([np.uint8, np.uint16, np.float32]),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
)
MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "F"]
MODES += ["I;16", "I;16L", "I;16B"]


@st.composite
def pil_images(draw: st.DrawFn) -> Image.Image:
    mode, size = draw(st.sampled_from(MODES)), draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    length = len(Image.new(mode, size).tobytes())
    picture = Image.frombytes(mode, size, draw(st.binary(min_size=length, max_size=length)))
    orientation = draw(st.none() | st.integers(0, 255))
    if orientation is not None:
        picture.getexif()[0x0112] = orientation
    return picture


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    file = io.BytesIO()
    container = draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000", "ICO", "TGA"]))
    values = np.random.default_rng(0).integers(0, 256, (13, 17), dtype=np.uint8)
    Image.fromarray(values).save(file, format=container)
    data = bytearray(file.getvalue())
    for _ in range(draw(st.integers(0, 6))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))] if draw(st.booleans()) else data)


@fuzzed
@given(ARRAYS | pil_images())
def test_fuzzed_arrays_and_images(picture: object):
    check_or_refused(lambda: to_image(picture))


@fuzzed
@given(data=damaged_files())
def test_fuzzed_files(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.getbasetemp() / "fuzz.png"
    path.write_bytes(data)
    check_or_refused(lambda: read_picture(path))
