"""A data folder as the documented commands leave it: their lists, every listed name, images of the real sizes.

Every list is written by the preparation of its set; only the content is stubbed. The archives hold one or two images
per list; the files of Hypersim and Virtual KITTI are one pair of images, hard-linked under every name (for Virtual
KITTI all 25,512 of its lists); all rooms are one view, and so are all streets.
"""

import csv
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
from mini_archives import TARS, write_archive
from PIL import Image
from raw_hypersim import COLUMNS, random_frame, write_frame

from marigold.data.splits import VKITTI_SPLITS, vkitti_lines
from marigold.miniature.rooms import write as rooms
from marigold.miniature.rooms.render import Rendering
from marigold.miniature.rooms.write import RoomsSize
from marigold.prepare import run
from runs import composed

Views = Callable[[str, int, RoomsSize], list[Rendering]]
SIZES = {"nyu": (480, 640), "kitti": (375, 1242), "eth3d": (4032, 6048), "scannet": (480, 640), "diode": (768, 1024)}
FRAMES = {"train": 16, "val": 2, "test": 2}  # Hypersim's; 16 fill the quickstart's micro-batch


def write_tree(root: Path) -> None:
    """Write `root`/data, and next to it the downloads that it is prepared from."""
    for dataset, source in TARS:
        write_archive(dataset, source, root / "downloads" / dataset, SIZES[dataset])
        prepare(root, f"dataset={dataset}", f"source={source}")
    write_hypersim(root)
    write_vkitti(root)
    write_rooms(root)
    write_teacher(root)


def prepare(root: Path, *overrides: str) -> None:
    """Run scripts/prepare.py for the folder `root`."""
    paths = [f"paths.data={root}/data", f"paths.downloads={root}/downloads"]
    assert run(composed("prepare", *paths, *overrides))


def write_hypersim(root: Path) -> None:
    raw, rng = root / "downloads/hypersim", np.random.default_rng(0)
    rows = []
    for number, (split, count) in enumerate(FRAMES.items(), 1):
        for frame in range(count):
            write_frame(raw, f"ai_{number:03d}_001", "cam_00", frame, *random_frame(rng))
            rows.append([f"ai_{number:03d}_001", "cam_00", frame, "True", "", split])
    with (raw / "metadata_images_split_scene_v1.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    prepare(root, "dataset=hypersim")
    with image_pair(root, (768, 1024), 1000) as (image, depth):
        for name in (root / "data/hypersim").glob("*/*/*.png"):
            name.unlink()
            os.link(image if name.name.startswith("rgb_") else depth, name)


def write_vkitti(root: Path) -> None:
    raw = root / "downloads/vkitti"
    names = [name for split in VKITTI_SPLITS for line in vkitti_lines(split) for name in line.split()]
    for folder in {name.rpartition("/")[0] for name in names}:
        (raw / folder).mkdir(parents=True)
    with image_pair(root, (375, 1242), 100) as pair:
        for number, name in enumerate(names):
            os.link(pair[number % 2], raw / name)
    prepare(root, "dataset=vkitti")


@contextmanager
def image_pair(root: Path, size: tuple[int, int], units: float) -> Iterator[tuple[str, str]]:
    """Names of an image and of a depth map from 2 to 3 m, to be linked."""
    metres = np.linspace(2, 3, size[0] * size[1]).reshape(size)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        pixels = {"image": np.zeros((*size, 3), np.uint8), "depth": (metres * units).astype(np.uint16)}
        for name, values in pixels.items():
            Image.fromarray(values).save(f"{folder}/{name}", "PNG")
        yield f"{folder}/image", f"{folder}/depth"


def write_teacher(root: Path) -> None:
    """A user's images, and what a model may have predicted for them."""
    folder = root / "data/teacher"
    with image_pair(root, (375, 500), 1000) as (image, depth):
        for number in range(4):
            for name, file in ((f"images/{number}.png", image), (f"labels/{number}.png", depth)):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.link(file, folder / name)


def write_rooms(root: Path) -> None:
    """The commands of `make data`, before the one that encodes."""
    counts = {"hypersim_train": 8, "hypersim_val": 1, "vkitti_train": 8, "vkitti_val": 1, "nyu_test": 1}
    with (
        patch.object(rooms, "room_views", one_view(rooms.room_views)),
        patch.object(rooms, "outdoor_views", one_view(rooms.street_views)),
    ):
        prepare(root, "dataset=rooms", *(f"prepare.size.{part}={count}" for part, count in counts.items()))
    made = root / "data/rooms"
    prepare(root, "dataset=hypersim", f"raw={made}/hypersim_raw", f"out={made}/hypersim", "prepare.official=null")


def one_view(views: Views) -> Views:
    """The first view of the first scene, rendered once, as every view of every scene."""
    kept: list[Rendering] = []

    def cheap(stream: str, scene: int, size: RoomsSize) -> list[Rendering]:
        if not kept:
            kept.append(views(stream, 0, replace(size, views=1))[0])
        return kept * size.views

    return cheap
