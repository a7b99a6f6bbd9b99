"""Depth normalisation under the name that other programs rely on; see `marigold.depth.mapping`."""

from marigold.depth.mapping import normalize_depth

__all__ = ["normalize_depth"]
