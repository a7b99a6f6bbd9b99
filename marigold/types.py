"""The legend: which shapes, units and ranges the names of this package stand for.

| name | shape | meaning |
|---|---|---|
| `image` | (3, H, W) float32 | image in [0, 1], RGB |
| `depth` | (1, H, W) float32 | planar depth (z) in metres; 0 where unknown |
| `valid` | (1, H, W) bool | pixels whose depth counts |
| `depth_norm` | (1, H, W) float32 | normalised depth mapping in [-1, 1]; near = -1, for disparities far |
| `image_norm` | (3, H, W) float32 | image in [-1, 1], as the VAE wants it |
| `*_latent` | (4, h, w) | VAE latent, already multiplied by the VAE's scaling factor; h = H / 8 |

A leading B is a batch, a leading E the members of an ensemble.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Bool, Float
from torch import Tensor

Space = Literal["affine_depth", "affine_disparity", "affine_sqrt_disparity", "affine_log_depth", "metric_depth"]
SPACES: tuple[str, ...] = get_args(Space)


@dataclass(frozen=True)
class Camera:
    """A pinhole in pixels of its image: focal lengths, and the principal point from the upper left corner.

    The first pixel's centre is at (0.5, 0.5): published principal points that count from that centre get 0.5 more.
    """

    fx: float
    fy: float
    cx: float
    cy: float

    @classmethod
    def centred(cls, focal: float, height: int, width: int) -> "Camera":
        """Square pixels, and the axis through the middle of an image of `height` x `width` pixels."""
        return cls(focal, focal, width / 2, height / 2)


@dataclass(frozen=True)
class DepthSample:
    """An image with its depth, as every data set gives it.

    `name` is the sample's line in the split list up to the first blank: unique in the set. `camera` is known
    for some sets.
    """

    name: str
    image: Float[Tensor, "3 H W"]
    depth: Float[Tensor, "1 H W"]
    valid: Bool[Tensor, "1 H W"]
    camera: Camera | None = None


@dataclass(frozen=True)
class Prediction:
    """Predicted depth of a batch of images, and the space it is right in.

    `depth` is in [0, 1] for the affine spaces and in metres for `metric_depth`. `uncertainty` is the
    spread of the ensemble in units of `depth`, or None for a single member.
    """

    depth: Float[Tensor, "B 1 H W"]
    uncertainty: Float[Tensor, "B 1 H W"] | None
    space: Space
