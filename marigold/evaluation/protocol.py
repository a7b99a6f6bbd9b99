"""A protocol as data: which predictions it evaluates, on which pixels, how it fits them, and where it clips.

The same checkpoint moves by up to 2x on KITTI and 6x on DIODE between the protocols in circulation, so a
protocol is one object, made from `configs/protocol/NAME.yaml` and the data set's `evaluation:` key, and
training's validation and the benchmark use the same one.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from marigold.depth.mapping import TINY_DEPTH
from marigold.depth.reprojection import reproject
from marigold.evaluation.errors import EvaluationError
from marigold.evaluation.fits import Fit, LeastSquares, Prefit
from marigold.evaluation.known_points import METHODS, FromPoints, fits_from_points
from marigold.evaluation.sparse import DrawnPoints
from marigold.types import SPACES, DepthSample, Prediction

PROTOCOL_OF: dict[str, str] = {
    "affine_depth": "marigold",
    "affine_disparity": "disparity",
    "affine_sqrt_disparity": "sqrt_disparity",
    "affine_log_depth": "log",
    "metric_depth": "marigold",
}
"""Space -> the protocol that evaluates it unless another one is chosen."""
COMMON_PROTOCOL = "marigold"
"""The protocol of predictions whose space is not known beforehand, and of `protocol.prefit=true`."""
PREFIT = "+prefit"
"""Suffix of the name of a protocol whose fit is a `Prefit`; its results are never compared with others."""


@dataclass(frozen=True)
class Benchmark:
    """What a data set prescribes for its evaluation: the `evaluation:` key of its YAML file.

    - `processing_resolution`: longest edge that the network sees, in pixels; 0 is the native size.
    - `crop_size`, `crop_rows`, `crop_cols`: only rows [first, last) and columns [first, last) of a map of
      (height, width) `crop_size` are evaluated; another size is an error, as the numbers would mean nothing.
    - `clip`: range in metres to which the aligned prediction is clipped; None for an open end.
    - `depth_range`: metres, strict at both ends; narrows the data set's own valid range. None: no narrowing.
    - `evaluation_size`: (height, width) to which everything is resized by nearest neighbours first.
    - `largest_sobel`: pixels with |dx| + |dy| of the 3x3 Sobel filter of depth above it are left out.
    - `alignment_max_resolution`: the fit sees maps whose *width* is thinned as if the longest edge were to
      shrink to this. The reference means both edges, but hands a 3-D tensor to an upsampler, which then
      resizes the last axis alone; published ETH3D numbers come from 4032x1024 samples, and so do ours.
    - `view_size`: (height, width) of the image that is shown and evaluated instead: the data set's one seen by a
      camera that looks through its middle; see `marigold.depth.reprojection`. Needs the sample's camera.
    - `groups`: label -> part of the sample's name; means are also reported per label.
    """

    processing_resolution: int = 0
    crop_size: tuple[int, int] | None = None
    crop_rows: tuple[int, int] | None = None
    crop_cols: tuple[int, int] | None = None
    clip: tuple[float, float] | None = None
    depth_range: tuple[float, float] | None = None
    evaluation_size: tuple[int, int] | None = None
    largest_sobel: float | None = None
    alignment_max_resolution: int | None = None
    view_size: tuple[int, int] | None = None
    groups: dict[str, str] | None = None

    def __post_init__(self) -> None:
        crop = (self.crop_size, self.crop_rows, self.crop_cols)
        if any(part is None for part in crop) != all(part is None for part in crop):
            raise EvaluationError("evaluation: crop_size, crop_rows and crop_cols are given together or not at all")
        if self.crop_size and self.crop_rows and self.crop_cols:
            sizes = {
                "crop_rows": (self.crop_rows, self.crop_size[0]),
                "crop_cols": (self.crop_cols, self.crop_size[1]),
            }
            for key, ((first, last), size) in sizes.items():
                if not 0 <= first < last <= size:  # slicing would silently truncate it
                    raise EvaluationError(f"evaluation.{key}: [{first}, {last}) is not inside 0..{size}")
        for key, pair in (("clip", self.clip), ("depth_range", self.depth_range)):
            if pair is not None and not pair[0] < pair[1]:
                raise EvaluationError(f"evaluation.{key}: {pair[0]} is not below {pair[1]}")


@dataclass(frozen=True)
class Aligned:
    """A prediction aligned to metres and its ground truth, as the metrics receive them; all (1, 1, H, W).

    `image` is the one that was shown, (3, H, W), perhaps of another size. `others`: method -> depth by another fit.
    """

    image: Float[Tensor, "3 _ _"]
    depth: Float[Tensor, "1 1 H W"]
    target: Float[Tensor, "1 1 H W"]
    valid: Bool[Tensor, "1 1 H W"]
    others: dict[str, Float[Tensor, "1 1 H W"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Protocol:
    """One way of evaluating, resolved for one data set.

    `benchmark_clip` says whether the aligned prediction is clipped to the data set's range; `spaces` are
    the prediction spaces that the fit can bring into metres. With `points`, the fits see those pixels alone, and the
    others are evaluated.
    """

    name: str
    spaces: tuple[str, ...]
    fit: Fit
    benchmark_clip: bool
    benchmark: Benchmark
    points: DrawnPoints | None = None

    def shown(self, sample: DepthSample) -> DepthSample:
        """The sample that the predictor sees and `align` wants: the data set's, or its view (`view_size`).

        Raises EvaluationError naming a sample whose camera is not known but needed.
        """
        if self.benchmark.view_size is None:
            return sample
        if sample.camera is None:
            raise EvaluationError(
                f"{sample.name}: protocol '{self.name}' re-projects image and depth and needs the camera, which the "
                "data set does not give. In pixels: '+dataset.reader.cameras={*:[fx,fy,cx,cy]}'"
            )
        view = reproject(sample.image, sample.depth, sample.valid, sample.camera, self.benchmark.view_size)
        return DepthSample(sample.name, *view)

    def align(self, prediction: Prediction, sample: DepthSample) -> Aligned:
        """Align, clip and mask one prediction (batch 1, on any device) against its sample, as it was `shown`.

        Raises EvaluationError for a space that this protocol cannot evaluate, a prediction that is not
        finite, a map of another size than the crop is meant for, and a sample with no valid pixel.
        """
        # Fitting another space's values would give plausible, wrong numbers.
        self.require_space(prediction.space)
        target = sample.depth[None].to(prediction.depth.device)
        valid = sample.valid[None].to(prediction.depth.device)
        prediction = _at_size(_require_finite(prediction), (target.shape[-2], target.shape[-1]))
        if self.benchmark.evaluation_size is not None:
            # Nearest neighbours: averaging across an edge would give a depth that no surface has.
            size = self.benchmark.evaluation_size
            prediction = replace(prediction, depth=_nearest(prediction.depth, size), uncertainty=None)
            target, valid = _nearest(target, size), _nearest(valid, size)
        valid = valid & self.mask(target)
        seen = valid
        fits: Mapping[str, Fit] = {"": self.fit}
        if self.points is not None:
            x, y = self.points.draw(valid[0], sample.name).long().unbind(1)
            seen, fits = torch.zeros_like(valid), fits_from_points(sample)
            seen[0, 0, y, x] = True
            valid = valid & ~seen  # what was given must not be scored
        if not valid.any():
            raise EvaluationError(
                "no valid pixel is left to evaluate (after the data set's mask, range and crop, and known points)"
            )

        def in_metres(fit: Fit) -> Float[Tensor, "1 1 H W"]:
            # The fit before any clip: clipped values would bend the line.
            depth = fit(prediction, target, seen, self._thin)
            if self.benchmark_clip and self.benchmark.clip is not None:
                depth = depth.clamp(*self.benchmark.clip)
            return depth.clamp_min(TINY_DEPTH)  # logarithms and reciprocals follow

        depths = {method: in_metres(fit) for method, fit in fits.items()}
        return Aligned(sample.image, depths.pop(""), target, valid, depths)

    def require_space(self, space: str) -> None:
        """Refuse a prediction space that this protocol cannot evaluate, naming both."""
        if space not in self.spaces:
            raise EvaluationError(
                f"protocol '{self.name}' cannot evaluate predictions in the space '{space}': it evaluates "
                f"{', '.join(self.spaces)}. Leave protocol= out for the protocol of the space"
            )

    def prefitted(self) -> "Protocol":
        """This protocol with scale and shift in the prediction's own space, whatever it is; see `Prefit`.

        Raises EvaluationError naming a protocol whose fit is not least squares.
        """
        if not isinstance(self.fit, LeastSquares):
            raise EvaluationError(
                f"protocol.prefit=true: protocol '{self.name}' does not fit by least squares; leave prefit out, or "
                f"choose one of {', '.join(sorted(set(PROTOCOL_OF.values())))}"
            )
        return replace(self, name=self.name + PREFIT, spaces=SPACES, fit=Prefit(quantity=self.fit.quantity))

    def with_points(self, points: DrawnPoints) -> "Protocol":
        """This protocol's pixels and clip, for depth from known points of any prediction.

        Raises EvaluationError for a prefitted protocol.
        """
        if isinstance(self.fit, Prefit):
            raise EvaluationError("protocol.prefit=true has no effect with points.count; leave one of them out")
        # The class of fit is for `describe`; `align` makes one per sample, which sees its image.
        return replace(
            self, name=self.name + points.name, spaces=SPACES, fit=FromPoints(method=METHODS[0]), points=points
        )

    def mask(self, target: Float[Tensor, "1 1 H W"]) -> Bool[Tensor, "1 1 H W"]:
        """Pixels that the benchmark evaluates, from its crop, its narrowed range and its edge filter."""
        benchmark = self.benchmark
        mask = torch.ones_like(target, dtype=torch.bool)
        if benchmark.crop_size and benchmark.crop_rows and benchmark.crop_cols:
            height, width = target.shape[-2:]
            if (height, width) != tuple(benchmark.crop_size):
                raise EvaluationError(
                    f"the crop is meant for {benchmark.crop_size[0]}x{benchmark.crop_size[1]} maps "
                    f"(height x width), this one is {height}x{width}"
                )
            # A mask, not a cut: the network has seen the whole image, and so have the published ones.
            mask = torch.zeros_like(mask)
            mask[..., slice(*benchmark.crop_rows), slice(*benchmark.crop_cols)] = True
        if benchmark.depth_range is not None:
            low, high = benchmark.depth_range  # strict, as published: 0 and the sensor's limit are no measurements
            mask &= (target > low) & (target < high)
        if benchmark.largest_sobel is not None:
            mask &= _sobel(target) <= benchmark.largest_sobel
        return mask

    def describe(self) -> dict[str, object]:
        """The protocol as plain values, for results.json and the fingerprint of rows."""
        benchmark = asdict(self.benchmark)
        if self.benchmark.clip is not None:  # JSON has no infinity
            benchmark["clip"] = [end if math.isfinite(end) else None for end in self.benchmark.clip]
        return {
            "name": self.name,
            "spaces": list(self.spaces),
            "fit": {"kind": type(self.fit).__name__, **{k: v for k, v in vars(self.fit).items() if k[0] != "_"}},
            "benchmark_clip": self.benchmark_clip,
            "benchmark": benchmark,
            **({"points": asdict(self.points)} if self.points else {}),
        }

    def _thin(self, values: Tensor) -> Tensor:
        longest = self.benchmark.alignment_max_resolution
        if longest is None or max(values.shape[-2:]) <= longest:
            return values
        # A 3-D tensor makes this a 1-D resize of the width: see `alignment_max_resolution`.
        scale = min(longest / values.shape[-2], longest / values.shape[-1])
        # Nearest neighbours on both maps and the mask, so that the fit sees pairs that belong together.
        return F.interpolate(values[0].float(), scale_factor=scale, mode="nearest")[None].to(values.dtype)


def settings_for(evaluation: Mapping[str, object], protocol: str) -> dict[str, object]:
    """A data set's `evaluation:` key with the differences that it lists for `protocol` put in.

    The result is a node that `marigold.config.build` turns into a `Benchmark`, checking keys and types.
    """
    settings = {key: value for key, value in evaluation.items() if key != "protocols"}
    every = evaluation.get("protocols")
    differences = (every.get(protocol) if isinstance(every, Mapping) else None) or {}
    return {"_target_": f"{Benchmark.__module__}.{Benchmark.__qualname__}", **settings, **differences}


def _require_finite(prediction: Prediction) -> Prediction:
    if prediction.depth.shape[0] != 1:
        raise EvaluationError(f"expected the prediction of one image, got a batch of {prediction.depth.shape[0]}")
    bad = int((~torch.isfinite(prediction.depth)).sum())
    if bad:
        raise EvaluationError(f"the prediction has {bad} of {prediction.depth.numel()} pixels that are not finite")
    return replace(prediction, depth=prediction.depth.float())


def _at_size(prediction: Prediction, size: tuple[int, int]) -> Prediction:
    """Predictions are compared at ground-truth resolution; a smaller or larger one is resized bilinearly."""
    if tuple(prediction.depth.shape[-2:]) == size:
        return prediction
    depth = F.interpolate(prediction.depth, size=size, mode="bilinear", antialias=True)
    return replace(prediction, depth=depth, uncertainty=None)


def _nearest(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values.float(), size=size, mode="nearest").to(values.dtype)


def _sobel(depth: Float[Tensor, "1 1 H W"]) -> Float[Tensor, "1 1 H W"]:
    """|dx| + |dy| of the unnormalised 3x3 Sobel filter, borders mirrored without the edge pixel."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=depth.device)
    padded = F.pad(depth, (1, 1, 1, 1), mode="reflect")
    gradients = F.conv2d(padded, torch.stack([kernel, kernel.T])[:, None])
    return gradients.abs().sum(dim=1, keepdim=True)
