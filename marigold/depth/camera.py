"""The camera of an image: given, read from EXIF, or assumed."""

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
        """Raise ConfigError, naming the key, for impossible values and for two at once."""
        for key in ("fov", "assumed_fov"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 180:
                raise ConfigError(f"camera.{key}: expected degrees between 0 and 180, got {value:g}")
        if self.focal is not None and not (self.focal > 0 and math.isfinite(self.focal)):
            raise ConfigError(f"camera.focal: expected pixels above 0, got {self.focal:g}")
        if self.fov is not None and self.focal is not None:
            raise ConfigError("camera.fov and camera.focal exclude each other; give one of them")

    def of(self, file: Path, height: int, width: int) -> tuple[Camera, str]:
        """Return the camera of an upright image of `height` x `width` pixels, and a description of its source.

        Raises PictureError for a damaged file.
        """
        assumed = focal_length(self.assumed_fov, width), "assumed, camera.assumed_fov"
        focal, source = self.known(file, width) or assumed
        degrees = 2 * math.degrees(math.atan2(width / 2, focal))
        return Camera.centred(focal, height, width), f"{degrees:.1f} degrees wide, {focal:.1f} px ({source})"

    def known(self, file: Path, width: int) -> tuple[float, str] | None:
        """Return the focal length in px and its source; None if it would be assumed."""
        if self.focal is not None:
            return self.focal, "camera.focal"
        if self.fov is not None:
            return focal_length(self.fov, width), "camera.fov"
        return exif_focal(file)


def focal_length(fov: float, width: int) -> float:
    """Return the focal length in px at which `width` pixels cover `fov` degrees."""
    return width / 2 / math.tan(math.radians(fov) / 2)
