"""Decoding the files of the data sets strictly: 8-bit RGB images, 16-bit grey depth, float arrays.

Nothing is converted: a grey, palette, CMYK or alpha image and an 8-bit depth are errors, because in these sets they
can only be a wrong or damaged file. EXIF rotation is not applied: the depth is aligned with the stored pixel grid.

A PNG's checksums are verified here, since decoders are lax about them: Pillow misses some single flipped bits in the
last bytes, and faster decoders miss nearly all. kornia-rs then decodes in a third of Pillow's time.
"""

import io
import struct
import zlib

import h5py
import numpy as np
from kornia_rs.io import decode_image_png_u8, decode_image_png_u16
from PIL import Image

from marigold.data.errors import DataError

# ETH3D's images have 24 million pixels; a file with more than this in its header is not decoded.
MAX_PIXELS = 100_000_000

_PNG, _PNG_GREY, _PNG_RGB = b"\x89PNG\r\n\x1a\n", 0, 2
_PNG_HEADER = 33  # bytes: signature and IHDR chunk


def decode_photo(data: bytes) -> np.ndarray:
    """A PNG or JPEG as uint8 (H, W, 3); raises DataError unless it is a whole 8-bit RGB image."""
    if data[:8] == _PNG:
        return _decode_png(data, 8, _PNG_RGB, "an 8-bit RGB image")
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            _check_size(image.width, image.height)
            if image.mode != "RGB":
                raise DataError(f"expected mode RGB, got {image.mode}")
            return np.array(image)
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        raise DataError(f"neither a PNG nor a JPEG, {_kind(data)}") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"not a whole JPEG file (damaged: {error})") from error


def decode_depth_png(data: bytes) -> np.ndarray:
    """A 16-bit grey PNG as uint16 (H, W); raises DataError for any other file, such as an 8-bit PNG."""
    return _decode_png(data, 16, _PNG_GREY, "a 16-bit grey depth PNG")


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


def _decode_png(data: bytes, bits: int, colour: int, wanted: str) -> np.ndarray:
    """Decode a PNG of exactly this kind; raises DataError for another, and for a damaged or huge one."""
    # IHDR is always first: length, "IHDR", width, height, bit depth, colour type. It is checked because decoders
    # convert silently: Pillow halves a 16-bit RGB, for one.
    if data[:8] != _PNG:
        raise DataError(f"expected {wanted}, {_kind(data)}")
    if len(data) < _PNG_HEADER:
        raise DataError(f"a PNG of {len(data)} bytes, cut off in its header")
    width, height, its_bits, its_colour = struct.unpack_from(">IIBB", data, 16)
    if (its_bits, its_colour) != (bits, colour):
        raise DataError(f"expected {wanted}, got a PNG of {its_bits} bits and colour type {its_colour}")
    _check_size(width, height)
    _check_png(data)
    try:
        if colour == _PNG_RGB:
            return np.asarray(decode_image_png_u8(data, (height, width), "rgb"))
        return np.asarray(decode_image_png_u16(data, (height, width), "mono"))[..., 0]
    except Exception as error:
        if type(error) is Exception:  # kornia-rs has no class of its own
            raise DataError(f"not a whole PNG file (damaged: {error})") from error
        raise


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")


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
        if kind == b"tRNS":
            raise DataError("a PNG with a transparent colour, which no set has")
        at = end + 4


def _kind(data: bytes) -> str:
    return f"got a file that begins with {data[:8]!r}" if data else "got an empty file"
