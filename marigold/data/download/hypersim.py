"""Hypersim: of 1.9 TB of scene zips only the released frames' radiance, distance and entity ids."""

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from marigold.data.download.http import Network
from marigold.data.download.members import RemoteZip
from marigold.data.download.run import Report, download, download_files
from marigold.data.download.whole import RemoteFile
from marigold.data.errors import DataError
from marigold.data.preparation.hypersim_recipe import released_frames


def download_hypersim(
    out: str,
    split_csv: RemoteFile,
    camera_csv: RemoteFile,
    scene_url: str,
    scenes: list[str] | None,
    network: Network,
    verify: bool,
    dry_run: bool,
    next_step: str,
) -> Report:
    """Fetch the two csv files, then scene by scene what `scripts/prepare.py dataset=hypersim` reads.

    scene_url: with {scene} in it. scenes: only these, or None for all. A dry run fetches the csv file that says
    which frames there are (11 MB) too, into a temporary folder if it is not there yet.
    """
    names: dict[str, list[str]] = defaultdict(list)
    with TemporaryDirectory() as scratch:
        known = Path(out, split_csv.file_name()).exists()
        folder, tables = (scratch, [split_csv]) if dry_run and not known else (out, [split_csv, camera_csv])
        report = download_files(folder, tables, network, verify, dry_run and known, next_step)
        if report.failed:
            return replace(report, out=Path(out), dry_run=dry_run)
        frames = list(released_frames(Path(folder, split_csv.file_name())))
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
    zips = [RemoteZip(scene_url.format(scene=scene), Path(out), names[scene]) for scene in wanted]
    return download(Path(out), zips, network, dry_run, next_step)
