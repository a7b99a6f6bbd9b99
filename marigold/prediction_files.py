"""Output files per image, and how predictions are written and read."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from jaxtyping import Float
from torch import Tensor

from marigold.depth.mapping import MAPPING_OF, MAPPINGS
from marigold.depth.mesh import write_glb
from marigold.depth.point_cloud import assumed_depth, is_known, unproject, write_ply
from marigold.depth.viewer import write_viewer
from marigold.files import atomic_file
from marigold.pictures import (
    PictureError,
    find_pictures,
    read_grey16,
    read_picture,
    write_exr,
    write_grey16,
    write_rgb,
)
from marigold.types import Camera, Prediction
from marigold.visualization import colour

logger = logging.getLogger(__name__)
MILLIMETRE, COARSE = 0.001, 1 / 256  # metres per count of a 16-bit png; COARSE for depth that MILLIMETRE cannot hold
# Kind of file -> its folder below the output, and its ending.
KINDS = {
    "npy": ("depth_npy", ".npy"),
    "png": ("depth_png", ".png"),
    "colour": ("depth_colour", ".png"),
    "uncertainty": ("uncertainty_npy", ".npy"),
    "point_cloud": ("point_cloud", ".ply"),
    "mesh": ("mesh", ".glb"),
    "viewer": ("viewer", ".html"),
    "exr": ("exr", ".exr"),
    "metres": ("depth_metres", ".npy"),
    "metres_png": ("depth_metres_png", ".png"),
    "metres_uncertainty": ("uncertainty_metres", ".npy"),
}
IN_SPACE = {"point_cloud", "mesh", "viewer"}  # kinds that need a camera
METRIC_KINDS = ("metres", "metres_png", "metres_uncertainty")
"""Kinds of files that need known points."""


@dataclass(frozen=True)
class Distances:
    """Assumed depth of the nearest and the farthest point of an affine-invariant prediction, in any unit."""

    near: float
    far: float


@dataclass(frozen=True)
class Job:
    """One image, the name of its output files (a path without ending), and these files by kind."""

    picture: Path
    name: Path
    files: dict[str, Path]

    def done(self) -> bool:
        """Whether every file exists; files are renamed into place only when complete."""
        return all(path.exists() for path in self.files.values())


def plan(source: str | Path, output: Path, kinds: Sequence[str]) -> list[Job]:
    """All images of `source` (see `find_pictures`) with their files of some KINDS; raises PictureError for none."""
    # A second run over a folder that holds its own output must not take that for input.
    pictures = {
        picture: place
        for picture, place in find_pictures(source).items()
        if not picture.resolve().is_relative_to(output.resolve())
    }
    if not pictures:
        raise PictureError(f"{source}: every image is in the output folder {output}; choose another output")
    uses = Counter(place.with_suffix("") for place in pictures.values())
    places = {kind: KINDS[kind] for kind in kinds}
    jobs = []
    for picture, place in pictures.items():
        # a.jpg and a.png in one folder keep their endings, or one would overwrite the other.
        name = place if uses[place.with_suffix("")] > 1 else place.with_suffix("")
        files = {
            kind: output / folder / name.with_name(name.name + ending) for kind, (folder, ending) in places.items()
        }
        jobs.append(Job(picture, name, files))
    return jobs


def read_ahead(jobs: Sequence[Job]) -> Iterator[tuple[Job, Future[Tensor]]]:
    """Every job with its image; a thread reads the next one during the current prediction."""
    with ThreadPoolExecutor(1) as reader:
        upcoming = [(job, reader.submit(read_picture, job.picture)) for job in jobs[:1]]
        for following in [*jobs[1:], None]:
            current = upcoming.pop()
            if following is not None:
                upcoming.append((following, reader.submit(read_picture, following.picture)))
            yield current


def write(
    job: Job,
    image: Float[Tensor, "3 H W"],
    prediction: Prediction,
    camera: Camera,
    assumed: Distances,
    metres: Float[Tensor, "1 H W"] | None = None,
    metres_uncertainty: Float[Tensor, "1 H W"] | None = None,
) -> None:
    """Write the files of one image, each renamed into place only when complete.

    `metres`: planar depth, 0 where unknown, for the METRIC_KINDS; cloud, mesh, viewer and EXR use it too, and without
    it the `assumed` distances. Raises ValueError for a kind of file that needs what this prediction lacks.
    """
    depth = prediction.depth[0].cpu()
    # Disparity is large for near pixels.
    nearness = depth if MAPPINGS[MAPPING_OF[prediction.space]].increasing else 1 - depth

    def distance() -> Float[Tensor, "1 H W"]:
        return assumed_depth(depth, prediction.space, assumed.near, assumed.far) if metres is None else metres.cpu()

    def point_cloud(file: BinaryIO) -> None:
        planar = distance()
        known = is_known(planar[0])
        write_ply(file, unproject(planar, camera)[known], image[:, known].T)

    unit = "metres" if metres is not None else f"an unknown unit, assumed from {assumed.near:g} to {assumed.far:g}"

    def uncertainty(file: BinaryIO) -> None:
        if prediction.uncertainty is None:
            raise ValueError(f"{job.picture}: no uncertainty without an ensemble of 2 or more")
        _save_array(file, prediction.uncertainty[0, 0])

    writers: dict[str, Callable[[BinaryIO], None]] = {
        "npy": lambda file: _save_array(file, depth[0]),
        "png": lambda file: write_grey16(file, depth),
        "colour": lambda file: write_rgb(file, colour(nearness[0].numpy(), 0, 1)),
        "uncertainty": uncertainty,
        "point_cloud": point_cloud,
        "mesh": lambda file: write_glb(file, distance(), camera, image),
        "viewer": lambda file: write_viewer(file, distance(), camera, image, title=job.picture.name, unit=unit),
        "exr": lambda file: write_exr(Path(file.name), distance(), f"planar depth in {unit}"),
        **({} if metres is None else _metric_writers(job, metres, metres_uncertainty)),
    }
    for kind, path in job.files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            writers[kind](file)


def _metric_writers(
    job: Job, metres: Float[Tensor, "1 H W"], uncertainty: Float[Tensor, "1 H W"] | None
) -> dict[str, Callable[[BinaryIO], None]]:
    farthest = float(metres.max())
    unit = MILLIMETRE if farthest <= 65535 * MILLIMETRE else COARSE

    def png(file: BinaryIO) -> None:
        note = f"{unit:g} metres per count"
        if unit == COARSE:
            cut = "; larger depths are clipped" if farthest > 65535 * COARSE else ""
            note += f": depth reaches {farthest:.1f} m; 16 bits hold {65535 * MILLIMETRE} m in millimetres and "
            note += f"{65535 * COARSE:.1f} m in this unit{cut}"
            logger.warning("%s: %s", job.files["metres_png"], note)
        write_grey16(file, metres.double() / (65535 * unit), note)

    return {
        "metres": lambda file: _save_array(file, metres[0]),
        "metres_png": png,
        **({} if uncertainty is None else {"metres_uncertainty": lambda file: _save_array(file, uncertainty[0])}),
    }


def stored_names(name: str) -> list[str]:
    """Files that may hold the prediction of an image, in order of precedence; all names are relative.

    For `a/rgb_0001.png`: `a/rgb_0001.png.npy` (`plan` keeps the ending of images with the same stem),
    `a/rgb_0001.npy`, `a/pred_rgb_0001.npy`, the reference's `a/pred_0001.npy`, and 16-bit `.png` of these names.
    """
    path = PurePosixPath(name)
    stems = [path.name, path.stem, f"pred_{path.stem}", f"pred_{path.stem.removeprefix('rgb_')}"]
    return [str(path.parent / f"{stem}{ending}") for stem in dict.fromkeys(stems) for ending in (".npy", ".png")]


def read_prediction(path: Path, space: str, unit: float) -> Float[np.ndarray, "H W"]:
    """Read one stored prediction as float32: metres if `space` is `metric_depth`, else right up to scale and shift.

    A `.npy` holds the numbers themselves, (H, W) with any axes of length 1. A 16-bit `.png` holds counts: of `unit`
    metres each for `metric_depth`, else of 1 / 65535. Raises PictureError, naming the file, for anything else.
    """
    if path.suffix == ".png":
        return (read_grey16(path) * (unit if space == "metric_depth" else 1 / 65535)).astype(np.float32)
    try:
        values = np.squeeze(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise PictureError(f"{path}: not a .npy file: {error}") from error
    if values.ndim != 2 or values.dtype.kind not in "fiu":
        raise PictureError(f"{path}: expected one map of numbers, got {values.dtype} {values.shape}")
    return np.ascontiguousarray(values, dtype=np.float32)


def _save_array(file: BinaryIO, values: Tensor) -> None:
    np.save(file, values.float().cpu().numpy())
