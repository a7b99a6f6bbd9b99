"""Write rendered scenes as Hypersim's raw HDF5, Virtual KITTI 2 images and NYUv2-style test pairs.

Each scene draws from a generator of its own, seeded with (seed, stream, scene): any order and any number of processes
gives the same files, and no two streams share a scene.
"""

import dataclasses
import functools
import io
import json
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from marigold.data.preparation.runner import in_processes
from marigold.files import write_atomically
from marigold.miniature.rooms.furniture import Point
from marigold.miniature.rooms.render import Rendering, Scene, View, render
from marigold.miniature.rooms.scenes import camera_in_room, camera_in_street, garden, room, street

T = TypeVar("T")
HYPERSIM_FOCAL = 886.81 / 1024  # of the image width, Hypersim's common pinhole
VKITTI_FOCAL = 725.0087 / 1242  # of the image width, Virtual KITTI 2's intrinsics
STREAMS = {"hypersim/train": 0, "hypersim/val": 1, "nyu/test": 2, "vkitti/train": 3, "vkitti/val": 4, "photos": 5}
WEATHER = ("clone", "morning", "overcast", "sunset")
VKITTI_SKY = 65535


@dataclass(frozen=True)
class RoomsSize:
    """How much to render: scenes per part, views per scene, image sizes (height, width)."""

    hypersim_train: int
    hypersim_val: int
    vkitti_train: int
    vkitti_val: int
    nyu_test: int
    views: int
    room_size: tuple[int, int]
    street_size: tuple[int, int]
    seed: int


def write_rooms(*, out: str, workers: int, size: RoomsSize) -> dict[str, int]:
    """Render all rooms and streets into `hypersim_raw/`, `vkitti/` and `nyu/` of the folder `out`.

    Returns the number of frames per part. Nothing is rendered if `out` already holds exactly this size and seed.
    Raises ValueError for a size that cannot be rendered.
    """
    if size.views < 1 or min(*size.room_size, *size.street_size) < 16:
        raise ValueError(f"rooms: at least one view per scene and 16 pixels per side are needed, got {size}")
    root = Path(out)
    manifest = root / "rooms.json"
    made: dict[str, Any] = json.loads(manifest.read_text()) if manifest.is_file() else {"size": None}
    wanted = json.loads(json.dumps(dataclasses.asdict(size)))  # with lists for tuples, as they are read back
    if made["size"] == wanted:
        return dict(made["frames"])
    # Removed first and written last, so that an interrupted rendering starts again.
    manifest.unlink(missing_ok=True)
    jobs = [
        functools.partial(write, root, part, scene, size)
        for part, write in WRITERS.items()
        for scene in range(getattr(size, part.replace("/", "_")))
    ]
    lines: dict[str, list[str]] = {part: [] for part in WRITERS}
    for job, written in zip(jobs, run_scenes(jobs, workers, "render rooms"), strict=True):
        lines[job.args[1]] += written
    _write_hypersim_csv(root / "hypersim_raw", lines)
    for part in ("vkitti/train", "vkitti/val", "nyu/test"):
        write_atomically(root / f"{part}.txt", "".join(f"{line}\n" for line in lines[part]))
    frames = {part: len(written) for part, written in lines.items()}
    write_atomically(manifest, json.dumps({"size": wanted, "frames": frames}, indent=1))
    return frames


def run_scenes(jobs: Sequence[Callable[[], T]], workers: int, label: str) -> list[T]:
    """The results of one job per scene, in order, from `workers` processes."""
    results = in_processes(operator.call, jobs, workers)
    return list(tqdm(results, total=len(jobs), desc=label, unit="scene", mininterval=1))


def room_views(stream: str, scene: int, size: RoomsSize) -> list[Rendering]:
    """The views of one furnished room."""
    return _views(stream, scene, size, room, camera_in_room, HYPERSIM_FOCAL, size.room_size)


def street_views(stream: str, scene: int, size: RoomsSize) -> list[Rendering]:
    """The views of one street."""
    return _views(stream, scene, size, street, camera_in_street, VKITTI_FOCAL, size.street_size)


def outdoor_views(stream: str, scene: int, size: RoomsSize) -> list[Rendering]:
    """The views of one scene in Virtual KITTI's format: every fourth is a street, the others are gardens."""
    if scene % 4 == 0:
        return street_views(stream, scene, size)
    return _views(stream, scene, size, garden, camera_in_room, VKITTI_FOCAL, size.street_size)


def _views(
    stream: str,
    scene: int,
    size: RoomsSize,
    build: Callable[[np.random.Generator], tuple[Scene, Point]],
    look: Callable[[np.random.Generator, Scene, Point, float], View],
    focal: float,
    shape: tuple[int, int],
) -> list[Rendering]:
    """focal: in widths of the image. shape: (height, width)."""
    # Seeded per scene, so that any number of processes renders the same images.
    rng = np.random.default_rng([size.seed, STREAMS[stream], scene])
    world, half = build(rng)
    cameras = [look(rng, world, half, focal * shape[1]) for _ in range(size.views)]
    return [render(world, camera, *shape) for camera in cameras]


def expose(colour: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Linear colour to an 8-bit image: 90 % of the brightness is below 0.8; gamma 2 is an exact square root."""
    # Rec. 601's luma weights, rounded. Gamma 2 turns 0.64 into 0.8.
    brightness = 0.3 * colour[..., 0] + 0.59 * colour[..., 1] + 0.11 * colour[..., 2]
    bright = np.sort(brightness, axis=None)[int(0.9 * brightness.size)]
    scaled = np.clip(colour * (np.float32(0.64) / max(bright, np.float32(1e-4))), 0, 1)
    return (np.sqrt(scaled) * np.float32(255)).astype(np.uint8)


def write_hypersim_scene(root: Path, part: str, scene: int, size: RoomsSize) -> list[str]:
    """Hypersim's raw HDF5: half floats, distance to the camera, NaN and entity -1 where nothing is hit."""
    name = f"ai_{1 + STREAMS[part]:03d}_{scene + 1:03d}"
    folder = root / "hypersim_raw" / name / "images"
    for frame, view in enumerate(room_views(part, scene, size)):
        # Hypersim stores the distance to the camera; its preparation makes planar depth of it.
        ranged = np.where(view.entity == -1, np.nan, view.distance)
        _write_h5(folder / f"scene_cam_00_final_hdf5/frame.{frame:04d}.color.hdf5", view.colour.astype(np.float16))
        geometry = folder / "scene_cam_00_geometry_hdf5"
        _write_h5(geometry / f"frame.{frame:04d}.depth_meters.hdf5", ranged.astype(np.float16))
        _write_h5(geometry / f"frame.{frame:04d}.render_entity_id.hdf5", view.entity)
    return [f"{name} cam_00 {frame}" for frame in range(size.views)]


def write_vkitti_scene(root: Path, part: str, scene: int, size: RoomsSize) -> list[str]:
    """Virtual KITTI 2: JPEG and depth in centimetres as 16-bit PNG, 655.35 m for the sky."""
    name, weather = f"Scene{100 * (STREAMS[part] - 2) + scene:03d}", WEATHER[scene % len(WEATHER)]
    lines = []
    for frame, view in enumerate(outdoor_views(part, scene, size)):
        # Beyond 655.34 m depth cannot be told from the sky.
        centimetres = np.where(view.entity == -1, VKITTI_SKY, np.minimum(np.rint(view.depth * 100), VKITTI_SKY))
        rgb = f"rgb/{name}/{weather}/frames/rgb/Camera_0/rgb_{frame:05d}.jpg"
        depth = f"depth/{name}/{weather}/frames/depth/Camera_0/depth_{frame:05d}.png"
        _write_image(root / "vkitti" / rgb, expose(view.colour), "JPEG", quality=95)
        _write_image(root / "vkitti" / depth, centimetres.astype(np.uint16), "PNG")
        lines.append(f"{rgb} {depth}")
    return lines


def write_nyu_scene(root: Path, part: str, scene: int, size: RoomsSize) -> list[str]:
    """NYUv2-style pairs: depth in millimetres, 0 = unknown, and a third image with the gaps filled."""
    folder = f"test/room_{scene:04d}"
    lines = []
    for frame, view in enumerate(room_views(part, scene, size)):
        number = scene * size.views + frame + 1
        millimetres = np.minimum(np.rint(view.depth * 1000), 65535).astype(np.uint16)
        # The publisher fills gaps by colourisation; nothing here reads these values, so the farthest depth will do.
        filled = np.where(millimetres == 0, millimetres.max(), millimetres).astype(np.uint16)
        names = [f"{folder}/{kind}_{number:04d}.png" for kind in ("rgb", "depth", "filled")]
        images: list[NDArray[Any]] = [expose(view.colour), millimetres, filled]
        for file, pixels in zip(names, images, strict=True):
            _write_image(root / "nyu" / file, pixels, "PNG")
        lines.append(" ".join(names))
    return lines


def _write_hypersim_csv(folder: Path, lines: dict[str, list[str]]) -> None:
    head = "scene_name,camera_name,frame_id,included_in_public_release,exclude_reason,split_partition_name"
    rows = [
        f"{line.replace(' ', ',')},True,,{split}" for split in ("train", "val") for line in lines[f"hypersim/{split}"]
    ]
    write_atomically(folder / "metadata_images_split_scene_v1.csv", "".join(f"{row}\n" for row in [head, *rows]))


def _write_h5(path: Path, array: NDArray[Any]) -> None:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.create_dataset("dataset", data=array, compression="gzip", compression_opts=1)
    write_atomically(path, buffer.getvalue())


def _write_image(path: Path, pixels: NDArray[Any], kind: str, **options: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    write_atomically(path, buffer.getvalue())


WRITERS = {
    "hypersim/train": write_hypersim_scene,
    "hypersim/val": write_hypersim_scene,
    "vkitti/train": write_vkitti_scene,
    "vkitti/val": write_vkitti_scene,
    "nyu/test": write_nyu_scene,
}
