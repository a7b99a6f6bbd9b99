"""Training examples made from images: flipped, normalised, resized, batched. Nothing is drawn here."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from marigold.depth.mapping import normalize_depth
from marigold.types import DepthSample


@dataclass(frozen=True)
class Transform:
    """How one data set's samples become training examples.

    `size` is (height, width) in pixels after the resize, None for the sample's own size; both must be
    multiples of 8. `antialias` resizes the photo with an antialiased bilinear filter; otherwise it takes the
    nearest pixel, as depth and validity always do. `quantile` is that of the depth normalisation.
    """

    size: tuple[int, int] | None
    antialias: bool
    quantile: float


@dataclass(frozen=True)
class PixelBatch:
    """Training examples of one data set as pictures: B of them, and their names."""

    names: tuple[str, ...]
    image_norm: Float[Tensor, "B 3 H W"]
    depth_norm: Float[Tensor, "B 1 H W"]
    valid: Bool[Tensor, "B 1 H W"]

    def pin_memory(self) -> "PixelBatch":
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        return PixelBatch(
            self.names, self.image_norm.pin_memory(), self.depth_norm.pin_memory(), self.valid.pin_memory()
        )


def training_example(
    sample: DepthSample, transform: Transform, *, flip: bool
) -> tuple[Float[Tensor, "3 H W"], Float[Tensor, "1 H W"], Bool[Tensor, "1 H W"]]:
    """Turn a sample into `image_norm`, `depth_norm` and `valid`, mirrored left to right if `flip`.

    Depth is normalised at full resolution, before the resize. Invalid depth keeps what the formula gives it
    (moving it to the far plane, as the paper's code can, never reached the tensors that it trained on), and
    `valid` keeps it out of the loss. Raises ValueError naming the sample if its depth cannot be normalised or
    its size is not a multiple of 8 (paper, section 3.3).
    """
    image, depth, valid = sample.image, sample.depth, sample.valid
    if flip:
        image, depth, valid = image.flip(-1), depth.flip(-1), valid.flip(-1)
    try:
        depth_norm = normalize_depth(depth, valid, quantile=transform.quantile)
    except ValueError as error:
        raise ValueError(f"{sample.name}: {error}") from error
    size = transform.size if transform.size != tuple(image.shape[-2:]) else None
    if size is not None and not transform.antialias:
        image = resize(image, size, antialias=False)  # picking pixels first changes no bit and leaves fewer to map
    image_norm = (image * 2).sub_(1)
    if size is not None and transform.antialias:
        image_norm = resize(image_norm, size, antialias=True)
    if size is not None:
        depth_norm = resize(depth_norm, size, antialias=False)
        valid = resize(valid.float(), size, antialias=False) > 0.5
    height, width = image_norm.shape[-2:]
    if height % 8 or width % 8:
        raise ValueError(f"{sample.name}: {height}x{width} pixels; training needs multiples of 8, set a size or crop")
    return image_norm, depth_norm, valid


def resize(picture: Float[Tensor, "C H W"], size: tuple[int, int], antialias: bool) -> Float[Tensor, "C h w"]:
    """Resize to (height, width): antialiased bilinear, or the nearest pixel to each new pixel's centre."""
    if antialias:
        return F.interpolate(picture[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    return F.interpolate(picture[None], size, mode="nearest-exact")[0]


class PixelExamples:
    """A data set whose examples are read, flipped, normalised and resized each time."""

    def __init__(self, samples: Sequence[DepthSample], names: Sequence[str], transform: Transform) -> None:
        self.samples = samples
        self.names = names
        self.transform = transform

    def batch(self, indices: Sequence[int], flips: Sequence[bool]) -> PixelBatch:
        """Read one micro-batch; raises ValueError naming the sample that cannot be used."""
        examples = [
            training_example(self.samples[index], self.transform, flip=flip)
            for index, flip in zip(indices, flips, strict=True)
        ]
        # Stacks; in a DataLoader's worker straight into the memory that is shared with the trainer.
        image_norm, depth_norm, valid = (default_collate(list(part)) for part in zip(*examples, strict=True))
        return PixelBatch(tuple(self.names[index] for index in indices), image_norm, depth_norm, valid)
