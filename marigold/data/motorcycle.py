"""A real image with measured depth: the Middlebury 2014 motorcycle from scikit-image's wheel."""

import hashlib
import importlib
from collections.abc import Sequence

import numpy as np
import torch

from marigold.data.errors import DataError
from marigold.data.splits import SplitInfo
from marigold.types import DepthSample

# The calibration that scikit-image's documentation gives for its quarter-size pair.
FOCAL_PX = 994.978
BASELINE_M = 0.193001
PRINCIPAL_POINT_OFFSET_PX = 31.086


class Motorcycle(Sequence[DepthSample]):
    """One sample of 500x741 px, 2.11 to 5.02 m, 92.65 % valid; unknown disparity is +inf in the file.

    Scharstein et al., GCPR 2014.
    limit: as in the other sets, without effect on one sample. Raises DataError if scikit-image is not installed.
    """

    name = "motorcycle"
    space = "metric_depth"

    def __init__(self, limit: int | None = None) -> None:
        try:
            samples = importlib.import_module("skimage.data")
        except ModuleNotFoundError as error:
            raise DataError(
                "motorcycle: needs scikit-image, which contains the image; "
                "`pip install -c constraints.txt -e '.[samples]'` installs it"
            ) from error
        left, _, disparity = samples.stereo_motorcycle()
        known = np.isfinite(disparity)
        # Middlebury's calib.txt: z = baseline * f / (d + doffs), doffs the offset of the principal points.
        depth = np.where(known, BASELINE_M * FOCAL_PX / (np.where(known, disparity, 0) + PRINCIPAL_POINT_OFFSET_PX), 0)
        self._sample = DepthSample(
            name="motorcycle_left",
            image=torch.from_numpy(np.ascontiguousarray(left)).permute(2, 0, 1).contiguous().float() / 255,
            depth=torch.from_numpy(depth.astype(np.float32))[None],
            valid=torch.from_numpy(known)[None],
        )
        content = hashlib.sha256(left.tobytes() + disparity.tobytes()).hexdigest()
        self.split = SplitInfo("motorcycle", "skimage.data.stereo_motorcycle()", 1, content, None)

    @property
    def names(self) -> list[str]:
        """The one sample's name."""
        return [self._sample.name]

    @property
    def content(self) -> dict[str, str]:
        """Hash of the sample, in place of the lines of a list."""
        return {"lines": self.split.sha256}

    def check_files(self) -> None:
        """Nothing to look up: the sample is in memory."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> DepthSample:  # type: ignore[override]
        if index not in (0, -1):
            raise IndexError(f"motorcycle has one sample, requested number {index}")
        return self._sample
