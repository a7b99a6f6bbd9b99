"""The embedded data: procedurally rendered RGB-D scenes, written in the publishers' own raw layouts."""

from marigold.miniature.rooms.write import write_rooms

__all__ = ["write_rooms"]
