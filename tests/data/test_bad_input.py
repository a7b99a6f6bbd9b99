"""Reading a bad file gives a DataError that names data set, sample and file."""

import io
import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
from mini_archives import encoded, npy
from PIL import Image

from marigold.data.benchmarks import NYU
from marigold.data.decode import decode_depth_png, decode_hdf5, decode_npy, decode_photo
from marigold.data.errors import DataError
from marigold.data.preparation.check import check, write_report

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 12, 3), dtype=np.uint8)
DEPTH = RNG.integers(1000, 9000, (8, 12), dtype=np.uint16)
PNG, JPG, DEPTH_PNG = encoded(PIXELS), encoded(PIXELS, "JPEG"), encoded(DEPTH)


def nyu(root: Path, samples: dict[str, tuple[bytes, bytes]], **options) -> NYU:
    """A set of images and depth by name, in files NAME_rgb.png and NAME_d.png."""
    for name, (image, depth) in samples.items():
        (root / f"{name}_rgb.png").write_bytes(image)
        (root / f"{name}_d.png").write_bytes(depth)
    (root / "list.txt").write_text("".join(f"{name}_rgb.png {name}_d.png\n" for name in samples))
    split_list = str(root / "list.txt")
    return NYU(name="nyu", root=str(root), split_list=split_list, min_depth=1e-3, max_depth=10.0, **options)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_size(height: int, width: int) -> bytes:
    """The PNG with another size in its header, and the right checksum."""
    return PNG[:8] + chunk(b"IHDR", struct.pack(">II", width, height) + PNG[24:29]) + PNG[33:]


def with_idat(content: bytes) -> bytes:
    """The PNG with other compressed pixels, and the right checksum."""
    return PNG[:33] + chunk(b"IDAT", content) + chunk(b"IEND", b"")


BAD_IMAGES = {
    "truncated png": PNG[: len(PNG) // 2],
    "png cut in its header": PNG[:20],
    "truncated jpg": JPG[: len(JPG) // 2],
    "text": b"<html>404 not found</html>",
    "grey": encoded(PIXELS, mode="L"),
    "cmyk jpg": encoded(PIXELS, "JPEG", "CMYK"),
    "another size": encoded(PIXELS[:-1]),
    "bomb": with_size(60_000, 60_000),
    "garbage with right checksums": with_idat(bytes(range(200))),
    "too few rows": with_idat(zlib.compress(bytes(37 * 3))),
    "a transparent colour": encoded(PIXELS, transparency=(1, 2, 3)),
}
BAD_DEPTHS = {
    "truncated": DEPTH_PNG[: len(DEPTH_PNG) // 2],
    "zero bytes": b"",
    "8 bits": encoded((DEPTH >> 8).astype(np.uint8)),
    "another size": encoded(DEPTH[:, :-1]),
    "missing": b"",
}
BAD = {f"image: {kind}": (data, DEPTH_PNG) for kind, data in BAD_IMAGES.items()}
BAD |= {f"depth: {kind}": (PNG, data) for kind, data in BAD_DEPTHS.items()}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_images_and_depths(tmp_path, kind):
    dataset = nyu(tmp_path, {"x": BAD[kind]}, image_size=(8, 12))
    if kind == "depth: missing":
        (tmp_path / "x_d.png").unlink()
    with pytest.raises(DataError, match=rf"nyu.*x_rgb\.png.*{'x_d' if 'depth:' in kind else ''}"):
        dataset[0]


@pytest.mark.parametrize(
    ("decode", "data", "pixels"), [(decode_photo, PNG, PIXELS), (decode_depth_png, DEPTH_PNG, DEPTH)]
)
def test_whole_files_are_exact_and_no_flipped_bit_goes_unseen(decode, data, pixels):
    assert (decode(data) == pixels).all()
    for position in range(26, len(data)):  # before that: signature and header, tested above
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(DataError):
            decode(bytes(damaged))


def test_exif_rotation_is_not_applied():
    """The depth is aligned with the stored pixels, so a rotation tag must not turn the image."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = (decode_photo(encoded(PIXELS, "JPEG", quality=95, **more)) for more in ({"exif": exif}, {}))
    assert turned.shape == PIXELS.shape
    assert (turned == plain).all()


def hdf5(key: str) -> bytes:
    with io.BytesIO() as buffer:
        with h5py.File(buffer, "w") as file:
            file[key] = DEPTH
        return buffer.getvalue()


class Harmful:
    def __reduce__(self):
        return print, ("executed",)


BAD_NPY = [b"", npy(DEPTH)[:-10], npy(DEPTH)[:30], npy(np.array([Harmful()], object), allow_pickle=True)]
BAD_HDF5 = [b"text", hdf5("dataset")[:-100], hdf5("other")]


def test_bad_arrays(capsys):
    assert (decode_hdf5(hdf5("dataset")) == DEPTH).all()
    assert (decode_npy(npy(DEPTH)) == DEPTH).all()
    for decode, data in [(decode_npy, data) for data in BAD_NPY] + [(decode_hdf5, data) for data in BAD_HDF5]:
        with pytest.raises(DataError):
            decode(data)
    assert capsys.readouterr().out == ""


def test_check_names_every_bad_sample(tmp_path):
    samples = {
        "whole": (PNG, DEPTH_PNG),
        "invalid": (PNG, encoded(DEPTH * 0)),
        "constant": (PNG, encoded(DEPTH * 0 + 1000)),
        "cut": (PNG, DEPTH_PNG[:100]),
    }
    report = tmp_path / "check.txt"
    result = check(nyu(tmp_path, samples), workers=1)
    assert write_report([result], report)
    lines = report.read_text().splitlines()
    assert len(lines) == 3
    for name in samples:
        assert any(f"'{name}_rgb.png'" in line for line in lines) == (name != "whole")
        assert (f"'{name}_rgb.png'" in result.text()) == (name != "whole")
    assert not write_report([check(nyu(tmp_path, {"whole": samples["whole"]}), workers=1)], report)
    assert not report.exists()
