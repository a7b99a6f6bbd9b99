"""Hypersim: only the released frames' radiance, distance and entity ids out of 1.9 TB of scene zips."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from marigold.data.download.members import RemoteZip
from marigold.data.download.run import Report, Settings, download, download_files
from marigold.data.download.whole import RemoteFile
from marigold.data.errors import DataError
from marigold.data.preparation.hypersim_recipe import released_frames


def download_hypersim(
    settings: Settings,
    split_csv: RemoteFile,
    camera_csv: RemoteFile,
    scene_url: str,
    scenes: list[str] | None,
    next_step: str,
) -> Report:
    """Fetch the two csv files, then scene by scene the files that `scripts/prepare.py dataset=hypersim` reads.

    scene_url: with {scene} in it. scenes: only these, or None for all. A dry run also needs the csv file of all frames
    (11 MB), and fetches it into a temporary folder if it is missing.
    """
    names: dict[str, list[str]] = defaultdict(list)
    with TemporaryDirectory() as scratch:
        csv, tables = settings, [split_csv, camera_csv]
        if settings.dry_run and not Path(settings.out, split_csv.file_name()).exists():
            csv, tables = replace(settings, out=scratch, dry_run=False), [split_csv]
        report = download_files(csv, tables, next_step)
        if report.failed:
            return replace(report, settings=settings)
        frames = list(released_frames(Path(csv.out, split_csv.file_name())))
    # The preparation reads three of a frame's many files: radiance, distance and the pixels without an object.
    for _, scene, camera, frame in frames:
        images = f"{scene}/images/scene_{camera}"
        names[scene] += [
            f"{images}_final_hdf5/frame.{frame}.color.hdf5",
            f"{images}_geometry_hdf5/frame.{frame}.depth_meters.hdf5",
            f"{images}_geometry_hdf5/frame.{frame}.render_entity_id.hdf5",
        ]
    if unknown := sorted(set(scenes or ()) - names.keys()):
        raise DataError(f"scenes: no released frame of {', '.join(unknown)}; names are like {next(iter(names))}")
    wanted = [scene for scene in names if scenes is None or scene in scenes]
    zips = [RemoteZip(scene_url.format(scene=scene), Path(settings.out), names[scene]) for scene in wanted]
    return download(settings, zips, next_step)
