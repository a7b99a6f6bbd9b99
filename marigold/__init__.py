"""Marigold: fine-tune an image diffusion model into a monocular depth estimator, and evaluate it.

The package is built in layers, and imports point down only: `types` and `pictures` (the legend of
shapes and units), `depth` (mathematics of depth maps), then `data` (files to metres), `model` (the
diffusion model) and `evaluation` (protocols and tables) side by side, `training` above them, and the verbs on top.
`miniature` holds substitutes for data and weights.
Beside them, `visualization` draws and `prediction_files` writes what a prediction gives. The scripts
compose a configuration and call the library; `config` turns their YAML into typed values.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from marigold.depth.metric import metric_depth
    from marigold.model.pipeline import MarigoldDepth

__version__ = "0.1.0"
__all__ = ["MarigoldDepth", "metric_depth"]


def __getattr__(name: str) -> Any:
    # diffusers takes seconds to import and scipy some tenths, and the lower layers do not need them.
    if name == "MarigoldDepth":
        from marigold.model.pipeline import MarigoldDepth

        return MarigoldDepth
    if name == "metric_depth":
        from marigold.depth.metric import metric_depth

        return metric_depth
    raise AttributeError(f"module 'marigold' has no attribute {name!r}")
