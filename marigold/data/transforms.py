"""Training examples made from samples: augmented, flipped, normalised, resized, batched.

Only the augmentation is random here: a function of the seed, the sample and the variant.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import default_collate

from marigold.data.augmentation import NO_AUGMENTATION, Augmentation, augment, resize
from marigold.data.mixture import AUGMENTATION
from marigold.depth.mapping import normalize
from marigold.types import DepthSample


@dataclass(frozen=True)
class Transform:
    """How one data set's samples become training examples.

    `size` is (height, width) in pixels after the resize, None for the sample's own size; both must be
    multiples of 8. `antialias` resizes the image with an antialiased bilinear filter; otherwise it takes the
    nearest pixel, as depth and validity always do. `quantile` belongs to the depth normalisation.
    """

    size: tuple[int, int] | None
    antialias: bool
    quantile: float


@dataclass(frozen=True)
class Target:
    """The training target of every sample of a run.

    mapping: a name in `marigold.depth.mapping.MAPPINGS`. far: `mask`, or `supervise`, with which known pixels beyond
    the valid range (the sky) count in the loss as the far end. seed: of the augmentation.
    """

    mapping: str = "depth"
    far: str = "mask"
    augmentation: Augmentation = NO_AUGMENTATION
    seed: int = 0


@dataclass(frozen=True)
class PixelBatch:
    """Training examples of one data set as images: B of them, and their names.

    `half_range` times `depth_norm` is the mapped depth up to a shift.
    """

    names: tuple[str, ...]
    image_norm: Float[Tensor, "B 3 H W"]
    depth_norm: Float[Tensor, "B 1 H W"]
    valid: Bool[Tensor, "B 1 H W"]
    half_range: Float[Tensor, "B"]

    def pin_memory(self) -> "PixelBatch":
        """The same batch in page-locked memory; torch's DataLoader calls this."""
        return replace(self, **{key: part.pin_memory() for key, part in vars(self).items() if key != "names"})


def training_example(
    sample: DepthSample, transform: Transform, target: Target, *, flip: bool
) -> tuple[Float[Tensor, "3 H W"], Float[Tensor, "1 H W"], Bool[Tensor, "1 H W"], Float[Tensor, ""]]:
    """Turn a sample into `image_norm`, `depth_norm`, `valid` and `half_range`, mirrored left to right if `flip`.

    Depth is normalised at full resolution, before the resize, by the quantiles of its valid pixels. Invalid depth
    keeps the formula's value (moving it to the far plane, an option of the paper's code, never affected the tensors
    that it trained on), and `valid` keeps it out of the loss, except beyond all valid depth if `target.far` is
    `supervise`. Raises ValueError naming the sample if its depth cannot be normalised or its size is not a multiple
    of 8 (paper, section 3.3).
    """
    image, depth, valid = sample.image, sample.depth, sample.valid
    if flip:
        image, depth, valid = image.flip(-1), depth.flip(-1), valid.flip(-1)
    try:
        # Before the resize, whose pixels have other quantiles.
        depth_norm, half_range = normalize(depth, valid, transform.quantile, target.mapping)
    except ValueError as error:
        raise ValueError(f"{sample.name}: {error}") from error
    if target.far == "supervise":
        valid = valid | (depth > torch.where(valid, depth, 0).amax())  # also beyond the quantiles, so at the far end
    size = transform.size if transform.size != tuple(image.shape[-2:]) else None
    if size is not None and not transform.antialias:
        image = resize(image, size, antialias=False)  # picking first changes no bit and leaves fewer pixels
    image_norm = (image * 2).sub_(1)
    if size is not None and transform.antialias:
        image_norm = resize(image_norm, size, antialias=True)
    if size is not None:
        depth_norm = resize(depth_norm, size, antialias=False)
        valid = resize(valid.float(), size, antialias=False) > 0.5
    height, width = image_norm.shape[-2:]
    if height % 8 or width % 8:  # Stable Diffusion's VAE halves the sides three times
        raise ValueError(f"{sample.name}: {height}x{width} pixels; training needs multiples of 8, set a size or crop")
    return image_norm, depth_norm, valid, half_range[0]


@dataclass(eq=False)
class PixelExamples:
    """A data set whose examples are read, augmented, flipped, normalised and resized each time."""

    samples: Sequence[DepthSample]
    names: Sequence[str]
    transform: Transform
    target: Target

    def __post_init__(self) -> None:
        self.read: Callable[[int], DepthSample] = self.samples.__getitem__

    def batch(self, indices: Sequence[int], flips: Sequence[bool], variants: Sequence[int]) -> PixelBatch:
        """Read one micro-batch; raises ValueError naming the sample that cannot be used, or two of different sizes."""
        examples = [
            training_example(self._sample(index, variant), self.transform, self.target, flip=flip)
            for index, flip, variant in zip(indices, flips, variants, strict=True)
        ]
        by_size = {
            tuple(example[0].shape[-2:]): self.names[index] for index, example in zip(indices, examples, strict=True)
        }
        if len(by_size) > 1:
            found = " and ".join(f"{name} of {height}x{width}" for (height, width), name in list(by_size.items())[:2])
            raise ValueError(f"images of different sizes in one set, {found} pixels; give the set a transform.size")
        # Stacks; in a DataLoader's worker straight into the memory that is shared with the trainer.
        parts = (default_collate(list(part)) for part in zip(*examples, strict=True))
        return PixelBatch(tuple(self.names[index] for index in indices), *parts)

    def _sample(self, index: int, variant: int) -> DepthSample:
        target, sample = self.target, self.read(index)
        if not target.augmentation.variants:
            return sample
        return augment(sample, target.augmentation, (target.seed, AUGMENTATION, index, variant))
