"""Augmented versions of a training sample: crops, and colours as of other cameras."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from marigold.data.errors import DataError
from marigold.types import DepthSample

ATTEMPTS = 10  # crops that are drawn before the whole image is kept


@dataclass(frozen=True)
class Augmentation:
    """Augmented versions of every training sample, `variants` of them; 0 for none.

    crop: the smallest share of the sides that a crop keeps, 1 for no crop. photometric: the strength of changes of
    colour, in [0, 1].
    """

    variants: int
    crop: float
    photometric: float

    def __post_init__(self) -> None:
        for key, good in (
            ("variants", self.variants >= 0),
            ("crop", 0 < self.crop <= 1),
            ("photometric", 0 <= self.photometric <= 1),
        ):
            if not good:
                raise DataError(f"recipe.augmentation.{key}={getattr(self, key)}: out of its range")


NO_AUGMENTATION = Augmentation(variants=0, crop=1.0, photometric=0.0)


def resize(image: Float[Tensor, "C H W"], size: tuple[int, int], antialias: bool) -> Float[Tensor, "C h w"]:
    """Resize to (height, width): antialiased bilinear, or the nearest pixel to each new pixel's centre."""
    if antialias:
        return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    return F.interpolate(image[None], size, mode="nearest-exact")[0]


def augment(sample: DepthSample, settings: Augmentation, key: Sequence[int]) -> DepthSample:
    """The version of a sample drawn with `key`: the same bits for the same key.

    A crop of the image's shape keeps a share of both sides that is uniform in [crop, 1], at a uniform place, and is
    resized to the sample's size: the image bilinearly, depth and validity to the nearest pixel. Depth stays in metres;
    `camera` becomes None. Colours of strength s: gamma 2**(+-s), gains of the channels 1 +- s/5, saturation 1 +- s,
    contrast 1 +- s/2, brightness +-s/5, each uniform in these bounds; with probability s/4 the channels change places;
    normal noise of a standard deviation uniform in [0, s/20] on each value.
    """
    rng = np.random.default_rng(key)
    if settings.crop < 1:
        sample = _crop(sample, settings.crop, rng)
    if settings.photometric > 0:
        sample = replace(sample, image=_recolour(sample.image, settings.photometric, rng))
    return sample


def _crop(sample: DepthSample, smallest: float, rng: np.random.Generator) -> DepthSample:
    height, width = size = (sample.image.shape[-2], sample.image.shape[-1])
    maps = torch.cat([sample.depth, sample.valid.float()])
    known = int((sample.valid & (sample.depth > 0)).count_nonzero())
    for _ in range(ATTEMPTS):
        share = rng.uniform(smallest, 1)  # one for both sides, so that nothing is stretched
        rows, columns = max(1, round(share * height)), max(1, round(share * width))
        top, left = (int(rng.integers(1 + rest)) for rest in (height - rows, width - columns))
        window = (..., slice(top, top + rows), slice(left, left + columns))
        depth, valid = resize(maps[window], size, antialias=False).split(1)
        if _teaches(depth[(valid > 0.5) & (depth > 0)], known):
            image = resize(sample.image[window], size, antialias=True)
            return replace(sample, image=image.clamp_(0, 1), depth=depth, valid=valid > 0.5, camera=None)
    return sample


def _teaches(depth: Float[Tensor, "N"], known: int) -> bool:
    """Whether a crop has at least half as many pixels of valid depth as the image, and these have a range.

    A crop of only sky, or of a wall seen head-on, could not be normalised.
    """
    if 2 * len(depth) < known or len(depth) == 0:
        return False
    # Quartiles: a few pixels around a wall's edge are not enough to learn from.
    low, high = np.quantile(depth.numpy(), (0.25, 0.75))
    return bool(low < high)


def _recolour(image: Float[Tensor, "3 H W"], strength: float, rng: np.random.Generator) -> Float[Tensor, "3 H W"]:
    # numpy, whose results do not depend on the number of threads; Python's floats leave float32 as it is.
    gamma, saturation, contrast, brightness = (strength * rng.uniform(-1, 1, 4)).tolist()
    gains = 1 + strength / 5 * rng.uniform(-1, 1, (3, 1, 1))
    order = rng.permutation(3) if rng.random() < strength / 4 else np.arange(3)
    deviation = rng.uniform(0, strength / 20)
    # 2**gamma: halving the exponent is as likely as doubling it.
    changed = image.numpy()[order] ** 2**gamma * gains.astype(np.float32)
    grey = changed.mean(axis=0)
    changed = grey + (1 + saturation) * (changed - grey)
    changed = (1 + contrast / 2) * (changed - 0.5) + (0.5 + brightness / 5)
    changed += deviation * rng.standard_normal(changed.shape, dtype=np.float32)
    return torch.from_numpy(changed.clip(0, 1))
