"""Images of every mode and type become RGB in [0, 1] or are refused; files are found, and damaged ones named."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from marigold.pictures import PictureError, find_pictures, read_grey16, read_picture, to_image, write_grey16

RED = Image.new("RGB", (3, 2), (255, 0, 0))


def transparent_palette() -> Image.Image:
    file = io.BytesIO()
    Image.new("P", (3, 2), 0).save(file, format="GIF", transparency=0)
    return Image.open(file)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        *((RED.convert(mode), (1, 0, 0)) for mode in ("RGB", "P", "CMYK")),
        (RED.convert("RGBA").convert("RGBa"), (1, 0, 0)),
        *((Image.new(mode, (3, 2), 13107), (0.2, 0.2, 0.2)) for mode in ("I;16B", "I")),
        (Image.new("F", (3, 2), 0.2), (0.2, 0.2, 0.2)),
        # A fifth of red over white: 0.2 * (1, 0, 0) + 0.8 * (1, 1, 1).
        (Image.new("RGBA", (3, 2), (255, 0, 0, 51)), (1, 0.8, 0.8)),
        (torch.tensor([1, 0, 0, 0.2]).reshape(4, 1, 1).expand(4, 2, 3), (1, 0.8, 0.8)),
        (transparent_palette(), (1, 1, 1)),
    ],
)
def test_every_mode_becomes_rgb_over_white(picture: object, expected: tuple[float, ...]):
    wanted = torch.tensor(expected, dtype=torch.float32).reshape(3, 1, 1).expand(3, 2, 3)
    torch.testing.assert_close(to_image(picture), wanted, atol=0.01, rtol=0)


def test_exif_rotation_is_applied(tmp_path: Path):
    values = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned left, so the image is turned right
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    upright = np.rot90(values, 3)
    np.testing.assert_allclose(read_picture(tmp_path / "a.png").numpy() * 255, upright.transpose(2, 0, 1), atol=1e-4)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.float64, 1)])
def test_arrays_and_tensors_are_scaled_by_their_type(dtype: type, top: float):
    values = (np.array([[0, 0.25], [0.5, 1]]) * top).astype(dtype)
    expected = torch.from_numpy(values.astype(np.float64) / top).float().expand(3, 2, 2)
    for picture in (values, values[..., None], torch.from_numpy(values), torch.from_numpy(values)[None]):
        made = to_image(picture)
        torch.testing.assert_close(made, expected)
        made.fill_(7)  # it shares no memory with the image
    assert values.max() <= top


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


def test_16_bit_png_files_keep_their_bits_and_npy_files_are_arrays(tmp_path: Path):
    values = torch.rand(1, 5, 7, generator=torch.Generator().manual_seed(0))
    with (tmp_path / "a.png").open("wb") as file:
        write_grey16(file, values)
    torch.testing.assert_close(read_picture(tmp_path / "a.png")[:1], values, atol=0.51 / 65535, rtol=0)
    counts = read_grey16(tmp_path / "a.png")
    assert counts.dtype == np.uint16
    np.testing.assert_allclose(counts, values[0] * 65535, atol=0.51)
    np.save(tmp_path / "a.npy", counts)
    assert torch.equal(read_picture(tmp_path / "a.npy"), read_picture(tmp_path / "a.png"))


def test_an_unreadable_file_is_named(tmp_path: Path):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, format="PNG")
    (tmp_path / "text.png").write_bytes(b"not an image")
    (tmp_path / "short.png").write_bytes(file.getvalue()[:2000])
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + b"\0" * 4
    (tmp_path / "bomb.png").write_bytes(bomb)
    for damage in ("missing", "text", "short", "bomb"):
        with pytest.raises(PictureError, match=rf"{damage}\.png"):
            read_picture(tmp_path / f"{damage}.png")


def test_an_image_above_the_pixel_limit_is_not_decoded(tmp_path: Path):
    path = tmp_path / "long.png"
    Image.new("L", (11, 10)).save(path)
    assert read_picture(path, 110).shape == (3, 10, 11)
    path.write_bytes(path.read_bytes()[:60])  # the header with the size is there, the pixels are not
    with pytest.raises(PictureError, match=r"long\.png.*11 x 10"):
        read_picture(path, 109)


def test_finding_images(tmp_path: Path):
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "sub/notes.md", "odd[1].png", "empty/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    outside = tmp_path / "a.jpg"
    (tmp_path / "sub/list.txt").write_text(f"# mine\nc.webp\n\n  gone.jpg  \n../b.PNG\n{outside}\n")
    below = [outside.relative_to("/").as_posix(), (tmp_path / "b.PNG").relative_to("/").as_posix()]
    for source, expected in (
        ("", ["a.jpg", "b.PNG", "odd[1].png", "sub/c.webp"]),
        ("odd[1].png", ["odd[1].png"]),
        ("**/*.[jw]*", ["a.jpg", "sub/c.webp"]),
        # A list keeps its order and its missing files, and no place leads out of the output folder.
        ("sub/list.txt", ["c.webp", "gone.jpg", below[1], below[0]]),
    ):
        assert [place.as_posix() for place in find_pictures(tmp_path / source).values()] == expected
    for source in ("nothing/*.jpg", "empty"):
        with pytest.raises(PictureError, match=source.split("/")[0]):
            find_pictures(tmp_path / source)


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
    picture.getexif()[0x0112] = draw(st.integers(0, 255))
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


@settings(max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(ARRAYS | pil_images() | damaged_files())
def test_fuzzed_images_and_files_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, picture: object):
    path = tmp_path_factory.getbasetemp() / "fuzz.png"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's about NaN, and Pillow's about damage that it can read past
        try:
            if isinstance(picture, bytes):
                path.write_bytes(picture)
            image = read_picture(path) if isinstance(picture, bytes) else to_image(picture)
        except PictureError:
            return
    assert (image.dtype, image.shape[0]) == (torch.float32, 3)
    assert 0 <= image.min() <= image.max() <= 1
