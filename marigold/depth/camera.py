"""Which camera took an image: the one that is given, the one its EXIF data name, or an assumed one."""

import math
from dataclasses import dataclass
from pathlib import Path

from marigold.config import ConfigError
from marigold.pictures import exif_focal
from marigold.types import Camera


@dataclass(frozen=True)
class CameraSettings:
    """`camera` in configs/infer.yaml: horizontal fields of view of the upright image in degrees, and `focal` in px."""

    fov: float | None
    focal: float | None
    assumed_fov: float

    def __post_init__(self) -> None:
        """Raises ConfigError, naming the key, for values that no camera has and for two at once."""
        for key in ("fov", "assumed_fov"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 180:
                raise ConfigError(f"camera.{key}: expected degrees between 0 and 180, got {value:g}")
        if self.focal is not None and not (self.focal > 0 and math.isfinite(self.focal)):
            raise ConfigError(f"camera.focal: expected pixels above 0, got {self.focal:g}")
        if self.fov is not None and self.focal is not None:
            raise ConfigError("camera.fov and camera.focal say the same thing; give one of them")

    def of(self, file: Path, height: int, width: int) -> tuple[Camera, str]:
        """The camera of an upright image of `height` x `width` pixels in a file, and where it is from, in words.

        Raises PictureError for a file that is damaged.
        """
        assumed = focal_length(self.assumed_fov, width), "assumed, camera.assumed_fov"
        focal, source = self.known(file, width) or assumed
        degrees = 2 * math.degrees(math.atan2(width / 2, focal))
        return Camera.centred(focal, height, width), f"{degrees:.1f} degrees wide, {focal:.1f} px ({source})"

    def known(self, file: Path, width: int) -> tuple[float, str] | None:
        """The focal length in px and where it is from, in words; None where it would be assumed."""
        if self.focal is not None:
            return self.focal, "camera.focal"
        if self.fov is not None:
            return focal_length(self.fov, width), "camera.fov"
        return exif_focal(file)


def focal_length(fov: float, width: int) -> float:
    """Pixels of focal length at which `width` pixels cover `fov` degrees."""
    return width / 2 / math.tan(math.radians(fov) / 2)
