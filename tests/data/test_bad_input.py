"""Files that are really broken: one clear error each, with set, sample, file and reason."""

import io
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from marigold.data.benchmarks import DIODE, NYU
from marigold.data.decode import decode_depth_png, decode_hdf5, decode_npy, decode_photo
from marigold.data.errors import DataError
from marigold.data.preparation.check import check, offence, write_report

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
DEPTH = RNG.integers(1000, 9000, (24, 32), dtype=np.uint16)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    with io.BytesIO() as file:
        image.save(file, format=kind, **options)
        return file.getvalue()


PNG = encoded(Image.fromarray(PHOTO))
JPG = encoded(Image.fromarray(PHOTO), "JPEG")
DEPTH_PNG = encoded(Image.fromarray(DEPTH))


def write_set(root: Path, photo: bytes = PNG, depth: bytes = DEPTH_PNG) -> NYU:
    (root / "s").mkdir(exist_ok=True)
    (root / "s/rgb.png").write_bytes(photo)
    (root / "s/depth.png").write_bytes(depth)
    (root / "list.txt").write_text("s/rgb.png s/depth.png\n")
    return NYU(
        name="nyu",
        root=str(root),
        split_list=str(root / "list.txt"),
        min_depth=1e-3,
        max_depth=10.0,
        image_size=(24, 32),
    )


def with_header(position: int, value: bytes) -> bytes:
    """The photo with other values in its header, and the checksum that belongs to them."""
    data = PNG[:position] + value + PNG[position + len(value) :]
    return data[:29] + struct.pack(">I", zlib.crc32(data[12:29])) + data[33:]


def with_idat(content: bytes) -> bytes:
    """The photo with other compressed pixels, and the checksum that belongs to them."""
    chunk = b"IDAT" + content
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return PNG[:33] + struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end


BAD_PHOTOS = {
    "truncated png": (PNG[: len(PNG) // 2], "not a whole PNG"),
    "png cut in its header": (PNG[:20], "cut off in its header"),
    "truncated jpg": (JPG[: len(JPG) // 2], "not a whole PNG or JPEG file .*[Tt]runcated"),
    "damaged png": (PNG[:100] + bytes(50) + PNG[150:], "not a whole PNG"),
    "zero bytes": (b"", "an empty file"),
    "text": (b"<html>404 not found</html>", "not an image"),
    "gif": (encoded(Image.fromarray(PHOTO).convert("P"), "GIF"), "not an image"),
    "16-bit rgb": (with_header(24, b"\x10"), "expected an 8-bit RGB photo, got a PNG of 16 bits"),
    "alpha": (encoded(Image.fromarray(PHOTO).convert("RGBA")), "got a PNG of 8 bits and colour type 6"),
    "grey": (encoded(Image.fromarray(PHOTO).convert("L")), "colour type 0"),
    "palette": (encoded(Image.fromarray(PHOTO).convert("P")), "colour type 3"),
    "grey jpg": (encoded(Image.fromarray(PHOTO).convert("L"), "JPEG"), "expected mode RGB, got L"),
    "cmyk jpg": (encoded(Image.fromarray(PHOTO).convert("CMYK"), "JPEG"), "expected mode RGB, got CMYK"),
    "another size": (encoded(Image.fromarray(PHOTO[:-1])), "photo of 23 x 32, expected 24 x 32"),
    "one pixel": (encoded(Image.fromarray(PHOTO[:1, :1])), "photo of 1 x 1, expected 24 x 32"),
    "bomb": (with_header(16, struct.pack(">II", 60_000, 60_000)), "60000 x 60000 pixels, more than"),
    "garbage with right checksums": (with_idat(bytes(range(200))), "not a whole PNG file .damaged"),
    "too few rows": (with_idat(zlib.compress(bytes(97 * 10))), "not a whole PNG file .damaged"),
    "a transparent colour": (
        encoded(Image.fromarray(PHOTO), transparency=(1, 2, 3)),
        "a PNG with a transparent colour",
    ),
    "large": (with_header(16, struct.pack(">II", 12_000, 12_000)), "144000000 pixels|12000 x 12000 pixels, more than"),
}


@pytest.mark.parametrize("kind", BAD_PHOTOS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_photos(tmp_path, kind):
    data, reason = BAD_PHOTOS[kind]
    with pytest.raises(DataError, match=reason) as caught:
        write_set(tmp_path, photo=data)[0]
    assert "nyu, sample 's/rgb.png'" in str(caught.value)


BAD_DEPTHS = {
    "truncated": (DEPTH_PNG[: len(DEPTH_PNG) // 2], "s/depth.png in .*not a whole PNG"),
    "zero bytes": (b"", "s/depth.png in .*an empty file"),
    "8 bits": (
        encoded(Image.fromarray((DEPTH >> 8).astype(np.uint8))),
        "expected a 16-bit grey depth PNG, got a PNG of 8 bits",
    ),
    "rgb": (PNG, "expected a 16-bit grey depth PNG, got a PNG of 8 bits and colour type 2"),
    "jpg": (JPG, "not a whole PNG file"),
    "another size": (encoded(Image.fromarray(DEPTH[:, :-1])), "depth of 24 x 31, photo of 24 x 32"),
}


@pytest.mark.parametrize("kind", BAD_DEPTHS)
def test_bad_depths(tmp_path, kind):
    data, reason = BAD_DEPTHS[kind]
    with pytest.raises(DataError, match=reason) as caught:
        write_set(tmp_path, depth=data)[0]
    assert "nyu, sample 's/rgb.png'" in str(caught.value)


def test_no_flipped_bit_in_a_png_goes_unseen():
    for decode, whole in ((decode_photo, PNG), (decode_depth_png, DEPTH_PNG)):
        for position in range(26, len(whole)):  # before that: signature and header, with errors of their own
            damaged = bytearray(whole)
            damaged[position] ^= 1 << position % 8
            with pytest.raises(DataError, match="not a whole PNG"):
                decode(bytes(damaged))


def test_missing_file(tmp_path):
    dataset = write_set(tmp_path)
    (tmp_path / "s/depth.png").unlink()
    with pytest.raises(DataError, match=r"nyu, sample 's/rgb.png'.*s/depth\.png: No such file"):
        dataset[0]


def test_exif_rotation_is_not_applied(tmp_path):
    """The depth is aligned with the stored pixels, so a rotation tag must not turn the photo."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.fromarray(PHOTO), "JPEG", exif=exif, quality=95)
    assert decode_photo(turned).shape == PHOTO.shape
    assert (decode_photo(turned) == decode_photo(encoded(Image.fromarray(PHOTO), "JPEG", quality=95))).all()


def test_one_pixel_is_read_where_no_size_is_expected():
    assert decode_photo(encoded(Image.fromarray(PHOTO[:1, :1]))).tolist() == PHOTO[:1, :1].tolist()


def test_whole_files_are_exact():
    assert (decode_photo(PNG) == PHOTO).all()
    assert (decode_depth_png(DEPTH_PNG) == DEPTH).all()


def npy(array: np.ndarray, **options) -> bytes:
    with io.BytesIO() as file:
        np.save(file, array, **options)
        return file.getvalue()


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "data",
    [b"", npy(DEPTH)[:-10], npy(DEPTH)[:30], b"text", npy(np.array([Harmful()], object), allow_pickle=True), PNG],
)
def test_bad_npy(data, capsys):
    with pytest.raises(DataError, match=r"not a whole \.npy file"):
        decode_npy(data)
    assert capsys.readouterr().out == ""


def hdf5(key: str) -> bytes:
    with io.BytesIO() as buffer:
        with h5py.File(buffer, "w") as file:
            file[key] = DEPTH
        return buffer.getvalue()


def test_bad_hdf5():
    assert (decode_hdf5(hdf5("dataset")) == DEPTH).all()
    for data in (b"", b"text", hdf5("dataset")[:500], hdf5("dataset")[:-100]):
        with pytest.raises(DataError, match="not a whole HDF5 file"):
            decode_hdf5(data)
    with pytest.raises(DataError, match="no dataset 'dataset' in the HDF5 file; it has other"):
        decode_hdf5(hdf5("other"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.0])
def test_a_float_depth_that_is_no_depth(tmp_path, value):
    (tmp_path / "a.png").write_bytes(PNG)
    depth = np.full((24, 32), 2.0, np.float32)
    depth[3, 4] = value
    np.save(tmp_path / "d.npy", depth)
    mask = np.ones((24, 32), np.uint8)
    np.save(tmp_path / "m.npy", mask)
    (tmp_path / "list.txt").write_text("a.png d.npy m.npy\n")
    split_list = str(tmp_path / "list.txt")
    dataset = DIODE(name="diode", root=str(tmp_path), split_list=split_list, min_depth=0.6, max_depth=350.0)
    with pytest.raises(DataError, match=r"diode, sample 'a.png': m\.npy: calls 1 pixel\(s\) valid"):
        dataset[0]
    mask[3, 4] = 0
    np.save(tmp_path / "m.npy", mask)
    sample = dataset[0]
    assert sample.depth[0, 3, 4] == 0
    assert int((~sample.valid).sum()) == 1


def test_check_names_every_offender(tmp_path):
    depths = {
        "whole": DEPTH_PNG,
        "invalid": encoded(Image.fromarray(DEPTH * 0)),
        "constant": encoded(Image.fromarray(DEPTH * 0 + 1000)),
        "cut": DEPTH_PNG[:200],
        "cut2": DEPTH_PNG[:300],
    }
    for name, data in depths.items():
        (tmp_path / f"{name}.png").write_bytes(PNG)
        (tmp_path / f"{name}_d.png").write_bytes(data)
    (tmp_path / "list.txt").write_text("".join(f"{name}.png {name}_d.png\n" for name in depths))
    dataset = NYU(
        name="nyu", root=str(tmp_path), split_list=str(tmp_path / "list.txt"), min_depth=1e-3, max_depth=10.0
    )
    assert offence(dataset, 0) is None
    report = tmp_path / "check.txt"
    for workers in (1, 2):
        result = check(dataset, workers=workers)
        found = {
            reason: [message.split("'")[1] for message in messages] for reason, messages in result.offenders.items()
        }
        assert write_report([result], report)
        assert found["no valid pixel"] == ["invalid.png"]
        assert found["constant depth"] == ["constant.png"]
        assert sorted(name for names in found.values() for name in names) == [
            "constant.png",
            "cut.png",
            "cut2.png",
            "invalid.png",
        ]
        assert len(report.read_text().splitlines()) == 4
        assert "cut2_d.png" in result.text()
    (tmp_path / "list.txt").write_text("whole.png whole_d.png\n")
    clean = NYU(name="nyu", root=str(tmp_path), split_list=str(tmp_path / "list.txt"), min_depth=1e-3, max_depth=10.0)
    assert not write_report([check(clean, workers=1)], report)
    assert not report.exists()
