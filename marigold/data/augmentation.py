"""Changed versions of a training sample: crops, and colours as other cameras would give them."""

from dataclasses import dataclass

from marigold.data.errors import DataError


@dataclass(frozen=True)
class Augmentation:
    """Changed versions of every training sample, `variants` of them; 0 for none.

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
