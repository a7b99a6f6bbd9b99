"""Depth normalisation under its stable public name; see `marigold.depth.mapping`."""

from marigold.depth.mapping import normalize_depth

__all__ = ["normalize_depth"]
