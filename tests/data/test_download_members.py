"""Single members of zips on a misbehaving server, and what Hypersim and KITTI take by them."""

import importlib
import io
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from marigold.config import build
from marigold.data.download.http import Network
from marigold.data.download.hypersim import download_hypersim
from marigold.data.download.kitti import download_kitti
from marigold.data.download.members import RemoteZip, download_members
from marigold.data.download.run import Report, side_by_side
from marigold.data.download.whole import RemoteFile
from marigold.data.errors import DataError
from web_server import Served, Server, serving

QUICK = Network(retries=3, wait=0.001, max_wait=0.002, max_retry_after=600, timeout=5, connections=2)
CONFIGS = Path(__file__).parents[2] / "configs"
NOISE = np.random.default_rng(0)


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", method) as content:
            for name, data in members.items():
                content.writestr(name, data)
            content.comment = comment
        return file.getvalue()


def files_below(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def fetch(out: Path, *archives: RemoteZip, dry_run: bool = False) -> Report:
    return download_members(out, archives, QUICK, dry_run, "prepare it")


@pytest.fixture
def some() -> dict[str, bytes]:
    """Members of very different sizes: far apart, side by side, empty."""
    sizes = {
        "a/1": 300_000,
        "a/junk": 3_000_000,
        "a/2": 10,
        "a/3": 0,
        "b/4": 90_000,
        "b/junk": 2_000_000,
        "b/5": 70_000,
    }
    return {name: NOISE.bytes(size) for name, size in sizes.items()}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("comment", [b"", b"x" * 60_000])
def test_only_the_members_come(tmp_path, some, method, comment):
    served = Served(zipped(some, method, comment))
    names = ("b/5", "a/1", "a/2", "a/3", "b/4")
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
    assert files_below(tmp_path) == {name: some[name] for name in names}
    # Twice the directory's megabyte (which here holds the last members), and the members; not the junk.
    assert served.sent < 2 * (1 << 20) + 600_000


def test_neighbours_come_in_one_request(tmp_path):
    members = {f"{i:03d}": NOISE.bytes(1000) for i in range(50)} | {"end": NOISE.bytes(2_000_000)}
    served = Served(zipped(members))
    with serving({"/x.zip": served}) as server:
        fetch(tmp_path, RemoteZip(server.url("/x.zip"), tmp_path, tuple(members)[:50]))
    assert files_below(tmp_path) == {name: members[name] for name in tuple(members)[:50]}
    assert len(served.asked) == 2 * 2 + 1  # directory: size and bytes, for the estimate and again; then all members


def test_a_directory_longer_than_its_first_part(tmp_path):
    members = {f"{'long/' * 40}{i:05d}": b"%d" % i for i in range(6000)}
    data = zipped(members, zipfile.ZIP_STORED)
    assert len(data) - data.index(b"PK\x01\x02") > 1 << 20
    names = tuple(members)[::1999]
    with serving({"/x.zip": Served(data)}) as server:
        fetch(tmp_path, RemoteZip(server.url("/x.zip"), tmp_path, names))
    assert files_below(tmp_path) == {name: members[name] for name in names}


def test_resets_refusals_and_a_killed_run(tmp_path, some):
    names = ("a/1", "b/4", "b/5")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1").write_bytes(b"there already")
    served = Served(zipped(some), cuts=[1000, -1000, None, 5000], refusals=[(503, {})])
    with serving({"/x.zip": served}) as server:
        report = fetch(tmp_path, RemoteZip(server.url("/x.zip"), tmp_path, names))
    assert (report.already, report.size, report.failed) == (1, 160_000, {})
    assert files_below(tmp_path) == {"a/1": b"there already", "b/4": some["b/4"], "b/5": some["b/5"]}


def test_what_is_not_in_the_zip_is_named_and_the_others_come(tmp_path, some):
    files = {"/x.zip": Served(zipped(some)), "/text.zip": Served(b"no zip at all")}
    with serving(files) as server:
        x, text, gone = (server.url(path) for path in ("/x.zip", "/text.zip", "/gone.zip"))
        report = fetch(
            tmp_path,
            RemoteZip(gone, tmp_path, ("g",)),
            RemoteZip(text, tmp_path, ("t",)),
            RemoteZip(x, tmp_path, ("a/2", "a/none", "b/4")),
        )
    assert report.failed.keys() == {x, text, gone}
    assert report.failed[x] == "1 of the members are not in the zip: a/none"
    assert "not a zip" in report.failed[text]
    assert "404 Not Found" in report.failed[gone]
    assert files_below(tmp_path) == {"a/2": some["a/2"], "b/4": some["b/4"]}


def test_a_damaged_member(tmp_path, some):
    data = bytearray(zipped(some, zipfile.ZIP_STORED))
    data[data.index(some["b/4"]) + 500] ^= 1
    with serving({"/x.zip": Served(bytes(data))}) as server:
        report = fetch(tmp_path, RemoteZip(server.url("/x.zip"), tmp_path, ("a/2", "b/4")))
    assert "b/4 is damaged: Bad CRC-32" in next(iter(report.failed.values()))
    assert files_below(tmp_path) == {"a/2": some["a/2"]}


@pytest.mark.parametrize("if_range", [True, False])
def test_a_zip_that_changes_while_it_is_read(tmp_path, some, if_range, monkeypatch):
    served = Served(zipped(some), if_range=if_range)
    with serving({"/x.zip": served}) as server:

        def change(folder: Path, needed: int) -> None:
            rooms.append(needed)
            if len(rooms) == 2:  # asked for once for all, and once more with the zip's directory in hand
                served.data, served.etag = zipped({name: data[::-1] for name, data in some.items()}), '"2"'

        rooms: list[int] = []
        monkeypatch.setattr("marigold.data.download.members.require_room", change)
        report = fetch(tmp_path, RemoteZip(server.url("/x.zip"), tmp_path, ("a/1",)))
    assert "changed on the server" in next(iter(report.failed.values()))
    assert not files_below(tmp_path)


def test_a_server_without_ranges_is_told(tmp_path, some):
    with serving({"/x.zip": Served(zipped(some), ranges=False)}) as server:
        report = fetch(tmp_path, RemoteZip(server.url("/x.zip"), tmp_path, ("a/1",)))
    assert "gives no parts of files" in next(iter(report.failed.values()))


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_nothing_is_written_outside(tmp_path, name):
    with pytest.raises(DataError, match="outside"):
        RemoteZip("http://127.0.0.1/x.zip", tmp_path, (name,))


def test_room_is_asked_for_first_and_a_full_disk_stops(tmp_path, some, monkeypatch):
    served = Served(zipped(some))
    with serving({"/x.zip": served}) as server:
        archive = RemoteZip(server.url("/x.zip"), tmp_path, ("a/2", "a/1", "b/4"))
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 390_000})())
            with pytest.raises(DataError, match="are needed"):
                fetch(tmp_path, archive)
        old = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
        try:
            with pytest.raises(OSError, match="File too large"):
                fetch(tmp_path, archive)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert not {path.name for path in tmp_path.rglob("*") if path.is_file()} - {"2", "4"}  # no half file
        assert not fetch(tmp_path, archive).failed
    assert files_below(tmp_path) == {name: some[name] for name in ("a/1", "a/2", "b/4")}


def test_an_error_stops_the_other_jobs():
    def long(stop):
        assert stop.wait(5)

    def full(stop):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        side_by_side({"long": long, "full": full, "never begun": long}, connections=2)


def serve_hypersim(raw: Path) -> dict[str, Served]:
    """The publisher's zips: what is needed among much that is not."""
    files = {f"/{path.name}": Served(path.read_bytes()) for path in raw.glob("*.csv")}
    for scene in (path for path in raw.iterdir() if path.is_dir()):
        members = files_below(scene)
        members |= {name.replace("color", "residual"): NOISE.bytes(3_000_000) for name in members if "color" in name}
        members |= {"images/scene_cam_00_final_hdf5/frame.0002.color.hdf5": b"of a frame that is not released"}
        named = {f"{scene.name}/{name}": members[name] for name in sorted(members)}
        files[f"/scenes/{scene.name}.zip"] = Served(zipped(named))
    return files


def hypersim(server: Server, out: Path, scenes: list[str] | None = None, dry_run: bool = False) -> Report:
    return download_hypersim(
        out=str(out),
        split_csv=RemoteFile(server.url("/metadata_images_split_scene_v1.csv")),
        camera_csv=RemoteFile(server.url("/metadata_camera_parameters.csv")),
        scene_url=server.url("/scenes/{scene}.zip"),
        scenes=scenes,
        network=QUICK,
        verify=True,
        dry_run=dry_run,
        next_step="prepare it",
    )


def test_hypersim_scene_by_scene_is_what_prepare_takes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "preparation"))
    raw = importlib.import_module("raw_hypersim").write_raw(tmp_path / "publisher")
    (raw / "metadata_camera_parameters.csv").write_text("scene_name\n")
    served = serve_hypersim(raw)
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
        with pytest.raises(DataError, match="no released frame of ai_999_001; names are like ai_001_001"):
            hypersim(server, out, scenes=["ai_001_001", "ai_999_001"])
    assert files_below(out) == files_below(raw)

    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(
            "prepare", ["dataset=hypersim", f"raw={out}", f"out={tmp_path / 'ready'}", "prepare.official=null"]
        )
    summary = build(config.prepare, "prepare")
    assert (summary.seen, summary.broken) == (5, {})


def test_kitti_takes_the_listed_images_alone(tmp_path):
    drives = ("2011_09_26_drive_0002", "2011_10_03_drive_0047")
    photo = "{day}/{drive}_sync/image_02/data/{i:010d}.png"
    depth = "{drive}_sync/proj_depth/groundtruth/image_02/{i:010d}.png"
    members: dict[str, dict[str, bytes]] = {"/data_depth_annotated.zip": {}}
    lines, expected = [], {}
    for part, drive in zip(("train", "val"), drives, strict=True):
        zip_ = members.setdefault(f"/raw/{drive}/{drive}_sync.zip", {})
        for i in range(8):
            names = [name.format(day=drive[:10], drive=drive, i=i) for name in (photo, depth)]
            zip_[names[0]] = NOISE.bytes(900)
            zip_[names[0].replace("image_02", "image_03")] = NOISE.bytes(900)
            members["/data_depth_annotated.zip"][f"{part}/{names[1]}"] = NOISE.bytes(300)
            if i in (0, 5):
                lines.append(f"{names[0]} {names[1] if i else 'None'} 721.5377")
                expected[names[0]] = zip_[names[0]]
            if i == 5:
                annotated = f"{part}/{names[1]}"
                expected[f"data_depth_annotated/{annotated}"] = members["/data_depth_annotated.zip"][annotated]
    split_list = tmp_path / "list.txt"
    split_list.write_text("\n".join(lines))
    with serving({path: Served(zipped(content)) for path, content in members.items()}) as server:
        addresses = (server.url("/raw/{drive}/{drive}_sync.zip"), server.url("/data_depth_annotated.zip"))
        for already in (0, 6):
            report = download_kitti(str(tmp_path / "raw"), str(split_list), *addresses, QUICK, False, "prepare it")
            assert (report.files, report.already, report.failed) == (6, already, {})
        with pytest.raises(DataError, match=r"give split_list=FILE.*source=archive"):
            download_kitti(str(tmp_path / "raw"), None, *addresses, QUICK, False, "prepare it")
    assert files_below(tmp_path / "raw") == expected


@pytest.mark.parametrize("path", sorted((CONFIGS / "download").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_source_is_a_call_that_fits(path, tmp_path, monkeypatch):
    """Without a network: all that can be known before the first request."""

    def offline(self: object, url: str) -> None:
        raise DataError(f"{url}: offline")

    monkeypatch.setattr("marigold.data.download.http.Client.version", offline)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("download", [f"dataset={path.stem}", f"out={tmp_path}"])
    for source, node in config.download.items():
        if path.stem == "scannet" and source == "publisher":
            with pytest.raises(DataError, match="scan-net"):
                build(node, source)
        elif path.stem == "kitti" and source == "publisher":
            with pytest.raises(DataError, match="split_list"):
                build(node, source)
        else:
            report = build(node, source)
            assert report.failed
            assert all(reason.startswith("http") for reason in report.failed.values())
    assert not list(tmp_path.iterdir())
    assert OmegaConf.missing_keys(config) == set()
