"""Readers of the five zero-shot benchmarks: the particular file formats of each set."""

from functools import partial

import numpy as np

from marigold.data.base import DepthDataset
from marigold.data.decode import decode_npy, decode_raw_float32
from marigold.data.errors import DataError
from marigold.data.splits import Line


class NYU(DepthDataset):
    """NYUv2, labelled part: raw Kinect depth in column 2, millimetres (column 3, filled in, is not evaluated).

    Silberman et al., ECCV 2012.
    """


class KITTI(DepthDataset):
    """KITTI: the annotated (accumulated lidar) ground truth, depth * 256; `None` in lines without one.

    Uhrig et al., 3DV 2017; Eigen et al., NeurIPS 2014.
    """

    units_per_metre = 256.0  # the devkit's: 16 bits reach 256 m in steps of 4 mm


class ScanNet(DepthDataset):
    """ScanNet: sensor depth in millimetres. Dai et al., CVPR 2017."""


class ETH3D(DepthDataset):
    """ETH3D high-resolution: laser depth as headerless float32 of the image's size, inf where unknown.

    Schöps et al., CVPR 2017.
    """

    def _read_depth(self, line: Line, size: tuple[int, ...]) -> np.ndarray:
        return self._decoded(line[self.depth_column], partial(decode_raw_float32, size=(size[0], size[1])))


class DIODE(DepthDataset):
    """DIODE: float depth in metres, and a mask file that alone decides which pixels are valid.

    `min_depth` and `max_depth` do not mask here, as in the published numbers; they are the plausible range
    for `scripts/prepare.py check`. A pixel that the mask calls valid and that has no positive finite depth is
    a broken file. Vasiljevic et al., 2019.
    """

    file_columns = (0, 1, 2)
    mask_column = 2

    def _read_depth(self, line: Line, size: tuple[int, ...]) -> np.ndarray:
        name = line[self.depth_column]
        depth = self._decoded(name, decode_npy)
        # The publisher's files have a third axis of length 1.
        if depth.ndim == 3 and depth.shape[2] == 1:
            depth = depth[..., 0]
        if depth.ndim != 2 or depth.dtype.kind != "f":
            raise DataError(f"{name}: expected float (H, W) or (H, W, 1), got {depth.dtype} {depth.shape}")
        return depth.astype(np.float32, copy=False)

    def _is_valid(self, depth: np.ndarray, line: Line) -> np.ndarray:
        name = line[self.mask_column]
        mask = self._decoded(name, decode_npy)
        if mask.shape != depth.shape or mask.dtype.kind not in "bufi":
            raise DataError(f"{name}: expected a mask of {depth.shape}, got {mask.dtype} {mask.shape}")
        valid = mask != 0  # the publisher's masks hold 0 and 1 as floats
        unknown = int((valid & ~(np.isfinite(depth) & (depth > 0))).sum())
        if unknown:
            raise DataError(f"{name}: calls {unknown} pixel(s) valid that have no positive finite depth")
        return valid
