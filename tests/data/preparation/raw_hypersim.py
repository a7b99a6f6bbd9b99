"""A tiny data set in Hypersim's raw layout, for the tests of its preparation."""

import csv
from pathlib import Path

import h5py
import numpy as np

HEIGHT, WIDTH = 24, 32
COLUMNS = (
    "scene_name",
    "camera_name",
    "frame_id",
    "included_in_public_release",
    "exclude_reason",
    "split_partition_name",
)
FRAMES = (
    ("train", "ai_001_001", "cam_00", 0),
    ("train", "ai_001_001", "cam_00", 1),
    ("train", "ai_001_002", "cam_01", 7),
    ("val", "ai_002_001", "cam_00", 0),
    ("test", "ai_003_001", "cam_00", 0),
)


def write_raw(root: Path) -> Path:
    """Every frame of FRAMES whole and kept by the filter; one more row that is not released."""
    rng = np.random.default_rng(0)
    for _, scene, camera, frame in FRAMES:
        write_frame(root, scene, camera, frame, *random_frame(rng))
    with open(root / "metadata_images_split_scene_v1.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for split, scene, camera, frame in FRAMES:
            table.writerow([scene, camera, frame, "True", "", split])
        table.writerow(["ai_001_001", "cam_00", 2, "False", "content flagged", ""])
    return root


def random_frame(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    colour = rng.uniform(0, 3, (HEIGHT, WIDTH, 3)).astype(np.float16)
    distance = rng.uniform(1, 9, (HEIGHT, WIDTH)).astype(np.float16)
    return colour, distance, np.ones((HEIGHT, WIDTH), np.int32)


def write_frame(
    root: Path,
    scene: str,
    camera: str,
    frame: int,
    colour: np.ndarray,
    distance: np.ndarray,
    entity: np.ndarray,
) -> None:
    images = root / scene / "images"
    write_hdf5(images / f"scene_{camera}_final_hdf5" / f"frame.{frame:04d}.color.hdf5", colour)
    geometry = images / f"scene_{camera}_geometry_hdf5"
    write_hdf5(geometry / f"frame.{frame:04d}.depth_meters.hdf5", distance)
    write_hdf5(geometry / f"frame.{frame:04d}.render_entity_id.hdf5", entity)


def write_hdf5(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["dataset"] = array
