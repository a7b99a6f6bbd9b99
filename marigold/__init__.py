"""Marigold: fine-tune an image diffusion model into a monocular depth estimator, and judge it.

The package is built in floors, and imports point down only: `types` and `pictures` (the legend of
shapes and units), `depth` (mathematics of depth maps), then `data` (files to metres), `model` (the
diffusion model) and `evaluation` (protocols and tables) side by side, and `training` on top. The
scripts compose a configuration and call the library; `config` turns their YAML into typed values.
"""

__version__ = "0.1.0"
