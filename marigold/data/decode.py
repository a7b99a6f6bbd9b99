"""Bytes -> arrays, strict about what the sets define: 8-bit RGB photos, 16-bit grey depth, float arrays.

Nothing is converted on the way: a grey, palette, CMYK or alpha photo and an 8-bit depth are errors, because
in these sets they can only be a wrong or damaged file. EXIF rotation is not applied: the depth is aligned
with the stored pixel grid.

A PNG's checksums are verified here, since decoders are lax about them: of single flipped bits Pillow misses some in
the last bytes, and the faster pyspng nearly all.
"""

import io
import struct
import zlib

import h5py
import numpy as np
from PIL import Image

from marigold.data.errors import DataError

# ETH3D's photos have 24 million pixels; a header that promises more than this is not decoded.
MAX_PIXELS = 100_000_000

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_PNG, _PNG_GREY, _PNG_RGB = b"\x89PNG\r\n\x1a\n", 0, 2


def decode_photo(data: bytes) -> np.ndarray:
    """A PNG or JPEG as uint8 (H, W, 3); raises DataError unless it is a whole 8-bit RGB image."""
    if data[:8] == _PNG and _png_kind(data) != (8, _PNG_RGB):
        bits, colour = _png_kind(data)
        raise DataError(f"expected an 8-bit RGB photo, got a PNG of {bits} bits and colour type {colour}")
    return _decode(data, ("PNG", "JPEG"), "RGB")


def decode_depth_png(data: bytes) -> np.ndarray:
    """A 16-bit grey PNG as uint16 (H, W); raises DataError for any other, above all for an 8-bit one."""
    if data[:8] == _PNG and _png_kind(data) != (16, _PNG_GREY):
        bits, colour = _png_kind(data)
        raise DataError(f"expected a 16-bit grey depth PNG, got {bits} bits and colour type {colour}")
    return _decode(data, ("PNG",), "I;16").astype(np.uint16, copy=False)


def decode_npy(data: bytes) -> np.ndarray:
    """The array of a `.npy` file; pickled objects are refused."""
    try:
        with io.BytesIO(data) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, TypeError) as error:
        raise DataError(f"not a whole .npy file of numbers ({error})") from error


def decode_raw_float32(data: bytes, size: tuple[int, int]) -> np.ndarray:
    """Headerless little-endian float32 in row-major order as (H, W)."""
    height, width = size
    if len(data) != 4 * height * width:
        raise DataError(f"expected {height} x {width} float32 = {4 * height * width:,} bytes, got {len(data):,}")
    return np.frombuffer(data, dtype="<f4").reshape(height, width)


def decode_hdf5(data: bytes, key: str = "dataset") -> np.ndarray:
    """The array under `key` of a whole HDF5 file."""
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            if not isinstance(file.get(key), h5py.Dataset):
                raise DataError(f"no dataset {key!r} in the HDF5 file; it has {', '.join(file) or 'nothing'}")
            return np.asarray(file[key][()])
    except (OSError, RuntimeError) as error:
        raise DataError(f"not a whole HDF5 file ({error})") from error


def _png_kind(data: bytes) -> tuple[int, int]:
    # IHDR is always first: length, "IHDR", width, height, then bit depth and colour type at bytes 24 and 25.
    # Pillow would silently halve a 16-bit RGB, so the header is asked and not the decoder.
    if len(data) < 26:
        raise DataError(f"a PNG of {len(data)} bytes, cut off in its header")
    return data[24], data[25]


def _check_png(data: bytes) -> None:
    """Walk the chunks (length, type, content, CRC of type and content); raises DataError at the first bad one."""
    view = memoryview(data)
    at, kind = len(_PNG), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise DataError("not a whole PNG file (it ends before its end mark)")
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        kind = data[at + 4 : at + 8]
        if end + 4 > len(data):
            raise DataError("not a whole PNG file (truncated)")
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise DataError("not a whole PNG file (damaged: wrong checksum)")
        at = end + 4


def _decode(data: bytes, formats: tuple[str, ...], mode: str) -> np.ndarray:
    if not data:
        raise DataError("an empty file")
    if data[: len(_PNG)] == _PNG:
        _check_png(data)
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS:,}")
            if image.mode != mode:
                raise DataError(f"expected mode {mode}, got {image.mode}")
            return np.array(image)
    except DataError:
        raise
    except _BROKEN as error:
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else f"damaged: {error}"
        raise DataError(f"not a whole {' or '.join(formats)} file ({reason})") from error
