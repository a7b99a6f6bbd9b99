"""Find images and read them as float32 RGB in [0, 1], channels first, upright."""

import glob
import io
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float, UInt8, UInt16
from PIL import ExifTags, Image, ImageOps, PngImagePlugin
from torch import Tensor

Picture = Image.Image | np.ndarray | Tensor

# Endings of images in a folder; a file given by name is read whatever its ending.
SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
# The background of transparent pixels: white, as in browsers.
BACKGROUND = 1.0
# Errors that Pillow's decoders raise for damaged files, besides the documented ones.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


_FOCAL_TAGS = (
    ExifTags.Base.FocalLengthIn35mmFilm,
    ExifTags.Base.FocalLength,
    ExifTags.Base.FocalPlaneXResolution,
    ExifTags.Base.FocalPlaneResolutionUnit,
    ExifTags.Base.ExifImageWidth,
    ExifTags.Base.ExifImageHeight,
)
_MILLIMETRES = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # per FocalPlaneResolutionUnit


class PictureError(ValueError):
    """An image that cannot be read, or has values of unknown range; the message names it and the reason."""


def read_picture(path: str | Path, max_pixels: int | None = None) -> Float[Tensor, "3 H W"]:
    """Read an image file of any format that Pillow knows, as `to_image` does; a `.npy` file is an array.

    Of several frames it takes the first. Raises PictureError with the file's name if the file is missing,
    damaged, cut short, or too large to be an image; or of more than `max_pixels`, before they are decoded.
    """
    path = Path(path)
    try:
        if path.suffix == ".npy":
            return to_image(np.load(path, allow_pickle=False))
        with Image.open(path) as picture:
            if max_pixels is not None and picture.width * picture.height > max_pixels:
                raise PictureError(f"{picture.width} x {picture.height} pixels; at most {max_pixels} are taken")
            picture.load()
            return to_image(picture)
    except _DAMAGE as error:
        raise _unreadable(path, "an image", error) from error


def exif_focal(path: str | Path) -> tuple[float, str] | None:
    """The focal length in px that an image file's EXIF data give, and by which of their tags; None if by none.

    FocalLengthIn35mmFilm compares diagonals, FocalPlaneXResolution counts the pixels of the size that EXIF states;
    so neither depends on how the image is turned or was resized. Raises PictureError, with the file's name, for a
    file that is damaged. Source: Exif 3.0, section 4.6.6 (CIPA DC-008), and CIPA DCG-001 for the diagonal.
    """
    if Path(path).suffix == ".npy":
        return None
    try:
        with Image.open(path) as picture:
            size, tags = picture.size, picture.getexif().get_ifd(ExifTags.IFD.Exif)
        values = {tag: float(tags.get(tag, 0)) for tag in _FOCAL_TAGS}
    except _DAMAGE as error:
        raise _unreadable(path, "an image", error) from error
    # Written so that NaN, Pillow's 0/0, counts as missing.
    equivalent, length, resolution, unit, *stated = (value if value > 0 else 0.0 for value in values.values())
    if equivalent:
        # The same ratio to the diagonal as on 36 x 24 mm film.
        return equivalent / math.hypot(36, 24) * math.hypot(*size), "EXIF: FocalLengthIn35mmFilm"
    if length and resolution:
        # In pixels of the size that EXIF states; the file may have been resized since.
        scale = max(size) / (max(stated) or max(size))
        millimetres = _MILLIMETRES.get(int(unit), _MILLIMETRES[2])  # inches are the default
        return length / millimetres * resolution * scale, "EXIF: FocalLength and FocalPlaneXResolution"
    return None


def find_pictures(source: str | Path) -> dict[Path, Path]:
    """List the images of a file, a folder with its subfolders, a glob, or a .txt list of names.

    Returns file -> its place below the folder, below the glob's fixed part or below the list's folder, sorted
    except for a list. A list has one name per line, relative to its own folder; blank lines and lines that start
    with # do not count, and its files need not exist. Raises PictureError if there is nothing.
    """
    path = Path(source)
    if path.is_dir():
        root, files = path, [file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    elif path.is_file() and path.suffix == ".txt":
        lines = [line.strip() for line in path.read_text().splitlines()]
        root = path.parent
        return {root / line: _place(root / line, root) for line in lines if line and not line.startswith("#")}
    elif path.is_file():
        root, files = path.parent, [path]
    elif glob.has_magic(str(source)):
        root = Path(*path.parts[: [glob.has_magic(part) for part in path.parts].index(True)])
        files = [Path(name) for name in glob.glob(str(source), recursive=True)]
        files = [file for file in files if file.is_file()]
    else:
        raise PictureError(f"{source}: no such file, folder or list")
    if not files:
        raise PictureError(f"{source}: no images there (in folders, files ending in {' '.join(sorted(SUFFIXES))})")
    return {file: _place(file, root) for file in sorted(files)}


def read_grey16(path: str | Path) -> UInt16[np.ndarray, "H W"]:
    """Read the counts of a 16-bit grey PNG; raises PictureError with the file's name for anything else."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if not picture.mode.startswith("I;16"):
                raise PictureError(f"it has mode {picture.mode}")
            return np.asarray(picture).astype(np.uint16)
    except _DAMAGE as error:
        raise _unreadable(path, "a 16-bit grey PNG", error) from error


def write_grey16(file: BinaryIO, values: Float[Tensor, "1 H W"], comment: str | None = None) -> None:
    """Write values in [0, 1] as a 16-bit grey PNG, times 65535, with a comment in its header; others are clipped."""
    counts = (values[0].double().cpu().clip(0, 1) * 65535).round().numpy().astype(np.uint16)
    header = PngImagePlugin.PngInfo()
    if comment is not None:
        header.add_text("Comment", comment)
    Image.fromarray(counts).save(file, format="PNG", pnginfo=header)


def write_rgb(file: BinaryIO, values: np.ndarray) -> None:
    """Write uint8 (H, W, 3) as a PNG."""
    Image.fromarray(values).save(file, format="PNG")


def write_exr(path: Path, depth: Float[Tensor, "1 H W"], comment: str) -> None:
    """Write depth as channel Z of an OpenEXR file, float32 without loss; needs the extra [exr]."""
    import OpenEXR  # optional

    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage, "comments": comment}
    OpenEXR.File(header, {"Z": depth[0].float().cpu().contiguous().numpy()}).write(str(path))


def jpeg(image: Float[Tensor, "3 H W"]) -> bytes:
    """An image in [0, 1] as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(eight_bits(image)).save(file, format="JPEG", quality=92)
    return file.getvalue()


def to_image(picture: Picture) -> Float[Tensor, "3 H W"]:
    """Turn an image into float32 RGB in [0, 1].

    PIL images may have any mode and are turned upright as their EXIF tag says. Arrays are (H, W) or
    (H, W, C), tensors (H, W) or (C, H, W), with C = 1 (grey), 2 (grey, alpha), 3 or 4 (RGB, alpha); their
    values are uint8, uint16 or floats in [0, 1]. Alpha is composited over white. Raises PictureError for
    other shapes and types, for an empty image and for floats that are not finite or outside [0, 1].
    """
    if isinstance(picture, Image.Image):
        values = _from_pil(picture)
    elif isinstance(picture, Tensor):
        array = picture.detach().cpu()
        # numpy has no bfloat16.
        array = array.float() if array.dtype == torch.bfloat16 else array
        values = array.numpy() if array.ndim != 3 else np.moveaxis(array.numpy(), 0, -1)
    else:
        values = picture
    return torch.from_numpy(_rgb(_unit_range(_with_channels(values))).transpose(2, 0, 1).copy())


def resize_lanczos(image: Float[Tensor, "3 H W"], size: tuple[int, int]) -> Float[Tensor, "3 h w"]:
    """Resize an image in [0, 1] to (h, w) `size` with Lanczos' filter, in 8 bits, as Pillow does."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return to_image(Image.fromarray(eight_bits(image)).resize((size[1], size[0]), Image.Resampling.LANCZOS))


def eight_bits(image: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """An image in [0, 1], rounded to 8 bits; values outside are clipped."""
    return (image.cpu().clip(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _unreadable(path: str | Path, what: str, error: Exception) -> PictureError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return PictureError(f"{path}: cannot be read as {what}: {reason}")


def _place(file: Path, root: Path) -> Path:
    """The path of a file relative to `root`; a file outside keeps its whole path, so that paths are unique."""
    whole, base = file.resolve(), root.resolve()
    return whole.relative_to(base) if whole.is_relative_to(base) else whole.relative_to(whole.anchor)


def _from_pil(picture: Image.Image) -> np.ndarray:
    if 0 in picture.size:
        raise PictureError(f"an empty image: {picture.width} x {picture.height} pixels")
    upright = ImageOps.exif_transpose(picture)
    mode = upright.mode
    if mode.startswith("I;16"):
        # Pillow's big-endian mode gives a big-endian array.
        return np.asarray(upright).astype(np.uint16)
    if mode == "I":
        # Pillow opens some 16-bit files as 32-bit integers.
        values = np.asarray(upright)
        if values.min() < 0 or values.max() > 65535:
            raise PictureError(f"an image of integers from {values.min()} to {values.max()}, not of 16 bits")
        return values.astype(np.uint16)
    if mode == "F":
        return np.asarray(upright)  # a float array, checked to be in [0, 1]
    if mode == "La":
        upright = upright.convert("LA")  # the only conversion from it that Pillow has
    # The transparency of palettes is in `info`, as in PNG and GIF.
    transparent = "transparency" in upright.info or mode in ("LA", "La", "PA", "RGBA", "RGBa")
    return np.asarray(upright.convert("RGBA" if transparent else "RGB"))


def _with_channels(values: np.ndarray) -> np.ndarray:
    shape = values.shape
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or not 1 <= values.shape[2] <= 4:
        raise PictureError(
            f"an image of shape {tuple(shape)}; expected an array (H, W) or (H, W, C) or a tensor (H, W) or "
            "(C, H, W), with 1 to 4 channels"
        )
    if 0 in values.shape:
        raise PictureError(f"an empty image: shape {tuple(shape)}")
    return values


def _unit_range(values: np.ndarray) -> np.ndarray:
    if values.dtype in (np.uint8, np.uint16):
        return values.astype(np.float32) / np.float32(np.iinfo(values.dtype).max)
    if values.dtype.kind != "f":
        raise PictureError(f"an image of {values.dtype}; expected uint8, uint16 or floats in [0, 1]")
    low, high = values.min(), values.max()
    # Written so that NaN fails, too.
    if not (low >= 0 and high <= 1):
        raise PictureError(f"an image with floats from {low:g} to {high:g}; expected finite values in [0, 1]")
    return values.astype(np.float32)


def _rgb(values: np.ndarray) -> np.ndarray:
    channels = values.shape[2]
    if channels in (2, 4):  # the last one is alpha: alpha c + (1 - alpha) white
        alpha = values[..., -1:]
        values = values[..., :-1] * alpha + BACKGROUND * (1 - alpha)
    return values if values.shape[2] == 3 else np.repeat(values, 3, axis=2)
