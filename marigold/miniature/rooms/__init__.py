"""Procedurally rendered RGB-D scenes, written in the raw layouts of Hypersim, Virtual KITTI 2 and NYUv2."""

from marigold.miniature.rooms.write import write_rooms

__all__ = ["write_rooms"]
