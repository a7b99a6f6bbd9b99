"""Single members of zips on a misbehaving server, and what Hypersim and KITTI take by them."""

import errno
import importlib
import io
import os
import resource
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from marigold.data.download.http import Network
from marigold.data.download.hypersim import download_hypersim
from marigold.data.download.kitti import download_kitti
from marigold.data.download.members import RemoteZip
from marigold.data.download.run import Report, Settings, download, side_by_side
from marigold.data.download.whole import RemoteFile
from marigold.data.errors import DataError
from web_server import Served, Server, serving

QUICK = Network(retries=3, wait=0.001, max_wait=0.002, max_retry_after=600, timeout=5, connections=2)
NOISE = np.random.default_rng(0)
# Members of very different sizes: far apart, side by side, empty.
SIZES = {"a/1": 300_000, "a/junk": 3_000_000, "a/2": 10, "a/3": 0, "b/4": 90_000, "b/junk": 2_000_000, "b/5": 70_000}
SOME = {name: NOISE.bytes(size) for name, size in SIZES.items()}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", method) as content:
            for name, data in members.items():
                content.writestr(name, data)
            content.comment = comment
        return file.getvalue()


ZIP = zipped(SOME)


def files_below(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def told(out: Path, dry_run: bool = False) -> Settings:
    return Settings(str(out), True, dry_run, QUICK)


def fetch(out: Path, *archives: RemoteZip, dry_run: bool = False) -> Report:
    return download(told(out, dry_run), archives, "prepare it")


@pytest.mark.parametrize("zip_", [ZIP, zipped(SOME, zipfile.ZIP_DEFLATED, b"x" * 60_000)], ids=["stored", "deflated"])
def test_only_the_members_come(tmp_path, zip_):
    served, names = Served(zip_), ("b/5", "a/1", "a/2", "a/3", "b/4")
    with serving({"/x.zip": served}) as server:
        archive = RemoteZip(server.url("/x.zip"), tmp_path, names)
        plan = fetch(tmp_path, archive, dry_run=True)
        assert (plan.size, plan.already) == (460_010, 0)
        served.sent = 0
        report = fetch(tmp_path, archive)
        assert (report.files, report.already, report.size, report.failed) == (5, 0, 460_010, {})
        asked = len(served.asked)
        assert fetch(tmp_path, archive).already == 5
        assert len(served.asked) == asked  # not even asked
    assert files_below(tmp_path) == {name: SOME[name] for name in names}
    assert served.sent < 700_000  # not the junk of 5 MB


def test_neighbours_come_in_one_request(tmp_path):
    served = Served(ZIP)
    with serving({"/x.zip": served}) as server:
        assert not fetch(tmp_path, RemoteZip(server.url("/x.zip"), tmp_path, ("a/2", "a/3"))).failed
    asked = [wanted for wanted, _ in served.asked]
    assert asked[:4] == asked[4:8]  # the directory, for the estimate and again
    assert len(asked) == 2 * 4 + 1


def test_resets_refusals_and_a_killed_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1").write_bytes(b"there already")
    served = Served(ZIP, cuts=[1000, -1000, None, 5000], refusals=[(503, {})])
    with serving({"/x.zip": served}) as server:
        report = fetch(tmp_path, RemoteZip(server.url("/x.zip"), tmp_path, ("a/1", "b/4", "b/5")))
    assert (report.already, report.size, report.failed) == (1, 160_000, {})
    assert files_below(tmp_path) == {"a/1": b"there already", "b/4": SOME["b/4"], "b/5": SOME["b/5"]}


def damaged() -> bytes:
    data = bytearray(ZIP)
    data[data.index(SOME["b/4"]) + 500] ^= 1
    return bytes(data)


REVERSED = zipped({name: data[::-1] for name, data in SOME.items()})


@pytest.mark.parametrize(
    ("served", "names", "come"),
    [
        (Served(ZIP), ["a/2", "a/none", "b/4"], ["a/2", "b/4"]),
        (Served(damaged()), ["a/2", "b/4"], ["a/2"]),
        (Served(ZIP, later=(8, REVERSED)), ["a/1"], []),  # with the zip's directory in hand
        (Served(ZIP, later=(8, REVERSED), if_range=False), ["a/1"], []),
        (Served(ZIP, ranges=False), ["a/1"], []),
        (Served(b"no zip at all"), ["a/1"], []),
        (Served(b""), ["a/1"], []),
    ],
    ids=["lacks one", "damaged", "changes", "changes, no if-range", "no ranges", "no zip", "empty"],
)
def test_what_cannot_be_had_is_named_and_the_others_come(tmp_path, served, names, come):
    with serving({"/x.zip": served, "/other.zip": Served(zipped({"other": b"whole"}))}) as server:
        x, other = server.url("/x.zip"), server.url("/other.zip")
        report = fetch(tmp_path, RemoteZip(x, tmp_path, names), RemoteZip(other, tmp_path, ["other"]))
    assert list(report.failed) == [x]
    assert x in report.text()
    assert files_below(tmp_path) == {name: SOME[name] for name in come} | {"other": b"whole"}


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_nothing_is_written_outside(tmp_path, name):
    with pytest.raises(DataError, match=name):
        RemoteZip("http://127.0.0.1/x.zip", tmp_path, (name,))


def test_a_full_disk_leaves_no_half_file(tmp_path):
    with serving({"/x.zip": Served(ZIP)}) as server:
        archive = RemoteZip(server.url("/x.zip"), tmp_path, ("a/2", "a/1", "b/4"))
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        try:
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                fetch(tmp_path, archive)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert files_below(tmp_path).keys() <= {"a/2", "b/4"}
        assert not fetch(tmp_path, archive).failed
    assert files_below(tmp_path) == {name: SOME[name] for name in ("a/1", "a/2", "b/4")}


def test_an_error_stops_the_other_jobs():
    stop = threading.Event()

    def full() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        side_by_side({"long": lambda: stop.wait(60), "full": full, "never begun": lambda: stop.wait(60)}, 2, stop)


def hypersim(server: Server, out: Path, scenes: list[str] | None = None, dry_run: bool = False) -> Report:
    tables = ("/metadata_images_split_scene_v1.csv", "/metadata_camera_parameters.csv")
    csv = [RemoteFile(server.url(path)) for path in tables]
    return download_hypersim(told(out, dry_run), *csv, server.url("/scenes/{scene}.zip"), scenes, "prepare it")


def test_hypersim_scene_by_scene(tmp_path, monkeypatch):
    """From zips that hold much that is not needed, exactly what the preparation's tests start from."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "preparation"))
    raw = importlib.import_module("raw_hypersim").write_raw(tmp_path / "publisher")
    (raw / "metadata_camera_parameters.csv").write_text("scene_name\n")
    served = {f"/{path.name}": Served(path.read_bytes()) for path in raw.glob("*.csv")}
    for scene in (path for path in raw.iterdir() if path.is_dir()):
        members = {f"{scene.name}/{name}": data for name, data in files_below(scene).items()}
        members |= {name.replace("color", "residual"): NOISE.bytes(200_000) for name in members if "color" in name}
        served[f"/scenes/{scene.name}.zip"] = Served(zipped({name: members[name] for name in sorted(members)}))
    out = tmp_path / "raw"
    with serving(served) as server:
        before = set(tmp_path.rglob("*"))
        plan = hypersim(server, out, dry_run=True)
        assert (plan.files, plan.already) == (15, 0)
        assert set(tmp_path.rglob("*")) == before
        one = hypersim(server, out, scenes=["ai_001_001"])
        assert (one.files, one.already, one.failed) == (6, 0, {})
        assert not list(out.glob("ai_00[23]*"))
        assert hypersim(server, out, dry_run=True).already == 6
        report = hypersim(server, out)
        assert (report.files, report.already, report.failed) == (15, 6, {})
        with pytest.raises(DataError, match="ai_999_001"):
            hypersim(server, out, scenes=["ai_001_001", "ai_999_001"])
    assert files_below(out) == files_below(raw)


def test_kitti_takes_the_listed_images_alone(tmp_path):
    drives = {"train": "2011_09_26_drive_0002", "val": "2011_10_03_drive_0047"}
    files: dict[str, dict[str, bytes]] = {"/depth.zip": {}}
    lines, expected = [], {}
    for part, drive in drives.items():
        photo = f"{drive[:10]}/{drive}_sync/image_02/data/{{}}.png"
        depth = f"{drive}_sync/proj_depth/groundtruth/image_02/{{}}.png"
        files[f"/{drive}.zip"] = {photo.format(i): b"photo %d" % i for i in range(8)}
        files["/depth.zip"] |= {f"{part}/{depth.format(i)}": b"depth %d" % i for i in range(8)}
        lines += [f"{photo.format(0)} None 721.5", f"{photo.format(5)} {depth.format(5)} 721.5"]
        expected |= {photo.format(0): b"photo 0", photo.format(5): b"photo 5"}
        expected[f"data_depth_annotated/{part}/{depth.format(5)}"] = b"depth 5"
    split_list, settings = tmp_path / "list.txt", told(tmp_path / "raw")
    split_list.write_text("\n".join(lines))
    with serving({path: Served(zipped(content)) for path, content in files.items()}) as server:
        urls = (server.url("/{drive}.zip"), server.url("/depth.zip"), "prepare it")
        for already in (0, 6):
            report = download_kitti(settings, str(split_list), *urls)
            assert (report.files, report.already, report.failed) == (6, already, {})
        split_list.write_text("photo.png depth.png\n")
        with pytest.raises(DataError, match=r"list\.txt"):
            download_kitti(settings, str(split_list), *urls)
    assert files_below(tmp_path / "raw") == expected
