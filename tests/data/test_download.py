"""Whole files and members of zips from a server that misbehaves: the right bytes arrive, or an error."""

import hashlib
import io
import resource
import threading
import zipfile
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest
from raw_hypersim import write_raw

from marigold.data.download.http import Client, Network, Version
from marigold.data.download.hypersim import download_hypersim
from marigold.data.download.kitti import download_kitti
from marigold.data.download.members import RemoteZip
from marigold.data.download.run import Report, Settings, download, download_files, side_by_side
from marigold.data.download.whole import RemoteFile
from marigold.data.errors import DataError
from marigold.files import FolderInUse, lock_folder
from web_server import Served, Server, serving

QUICK = Network(retries=3, wait=0.001, timeout=5, connections=2)
RNG = np.random.default_rng(0)
DATA, NEWER = RNG.bytes(600_000), RNG.bytes(600_000)
# Members of very different sizes: far apart, side by side, empty.
SIZES = {"a/1": 300_000, "a/junk": 3_000_000, "a/2": 10, "a/3": 0, "b/4": 90_000, "b/junk": 2_000_000, "b/5": 70_000}
SOME = {name: RNG.bytes(size) for name, size in SIZES.items()}


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w", method) as content:
            for name, data in members.items():
                content.writestr(name, data)
            content.comment = comment
        return file.getvalue()


ZIP, OTHER_ZIP = zipped(SOME), zipped({name: data[::-1] for name, data in SOME.items()})


def settings(out: Path, dry_run: bool = False, verify: bool = True, retries: int = 3) -> Settings:
    return Settings(str(out), verify, dry_run, replace(QUICK, retries=retries))


def fetch(out: Path, *items: RemoteFile | RemoteZip, **options) -> Report:
    how = download if isinstance(items[0], RemoteZip) else download_files
    return how(settings(out, **options), list(items), "prepare it")


def files_below(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def begin(out: Path, server: Server) -> RemoteFile:
    """A run that ends after 400,000 bytes of DATA."""
    server.files["/x.bin"].cuts.append(400_000)
    file = RemoteFile(server.url("/x.bin"))
    assert list(fetch(out, file, retries=0).failed) == [file.url]
    assert (out / "x.bin.part").read_bytes() == DATA[:400_000]
    return file


def whole_files(out: Path, server: Server) -> tuple[list, dict[str, bytes]]:
    server.files = {"/a/x.bin": Served(DATA), "/b%20c.bin": Served(b"small"), "/empty": Served(b"")}
    return [*map(RemoteFile, map(server.url, server.files))], {"x.bin": DATA, "b c.bin": b"small", "empty": b""}


def members(out: Path, server: Server) -> tuple[list, dict[str, bytes]]:
    content = zipped(SOME, method=zipfile.ZIP_DEFLATED, comment=b"x" * 60_000)
    server.files, names = {"/x.zip": Served(content)}, ["b/5", "a/1", "a/2", "a/3", "b/4"]
    return [RemoteZip(server.url("/x.zip"), out, names)], {name: SOME[name] for name in names}


@pytest.mark.parametrize("wanted", [whole_files, members])
def test_missing_files_are_fetched_once(tmp_path, wanted):
    out = tmp_path / "out"
    with serving({}) as server:
        items, expected = wanted(out, server)
        size, served = sum(map(len, expected.values())), list(server.files.values())
        plan = fetch(out, *items, dry_run=True)
        assert (plan.size, plan.already, out.exists()) == (size, 0, False)
        report = fetch(out, *items)
        assert (report.files, report.already, report.size, report.failed) == (len(expected), 0, size, {})
        requests = sum(len(one.asked) for one in served)
        assert sum(one.sent for one in served) < 2 * size  # not the junk
        again = fetch(out, *items)
        assert (again.already, again.size) == (len(expected), 0)
        assert sum(len(one.asked) for one in served) == requests
    assert files_below(out) == expected


@pytest.mark.parametrize("cut", [250_000, -250_000])
def test_resets_in_the_middle_are_resumed_from(tmp_path, cut):
    served = Served(DATA, cuts=[cut, cut, 1000])
    with serving({"/x.bin": served}) as server:
        assert not fetch(tmp_path, RemoteFile(server.url("/x.bin"), f"md5:{hashlib.md5(DATA).hexdigest()}")).failed
    assert files_below(tmp_path) == {"x.bin": DATA}
    if cut > 0:
        assert served.asked[2:] == [(f"bytes={at}-", '"1"') for at in (cut, 2 * cut, 2 * cut + 1000)]
        assert served.sent == len(DATA) + 1


@pytest.mark.parametrize("note", [None, "{", '["elsewhere", 600000, null]'])
def test_an_interrupted_run_is_resumed_if_the_origin_of_its_bytes_is_known(tmp_path, note):
    served = Served(DATA)
    with serving({"/x.bin": served}) as server:
        file = begin(tmp_path, server)
        if note is not None:
            (tmp_path / "x.bin.part").write_bytes(NEWER[:400_000])
            (tmp_path / "x.bin.part.json").write_text(note)
        report = fetch(tmp_path, replace(file, hash=f"sha256:{hashlib.sha256(DATA).hexdigest()}"))
    assert files_below(tmp_path) == {"x.bin": DATA}
    assert report.size == (200_000 if note is None else 600_000)
    assert served.asked[-1] == (("bytes=400000-", '"1"') if note is None else (None, None))


CHANGED = {
    "if-range": Served(NEWER, {"ETag": '"2"'}),
    "if-range ignored": Served(NEWER, {"ETag": '"2"'}, if_range=False),  # gives the new file's rest all the same
    "shorter": Served(NEWER[:300_000], {}, if_range=False),  # than what came of the old one
    "no ranges": Served(NEWER, {"ETag": '"2"'}, ranges=False),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_changed_file_is_not_glued_together(tmp_path, kind):
    with serving({"/x.bin": Served(DATA)}) as server:
        file = begin(tmp_path, server)
        server.files["/x.bin"] = CHANGED[kind]
        assert not fetch(tmp_path, file).failed
    assert files_below(tmp_path) == {"x.bin": CHANGED[kind].data}


ODD = {
    "without ranges": (Served(DATA, ranges=False, cuts=[300_000, 300_000]), DATA),
    "calls .tar.gz gzip-encoded": (Served(DATA, {"Content-Encoding": "gzip"}), DATA),
    "always breaks off": (Served(DATA, ranges=False, cuts=[300_000] * 99), None),
    "lies about the length": (Served(DATA, {}, ranges=False, lie=len(DATA) + 10), None),
    "asks for hours": (Served(DATA, refusals=[(429, {"Retry-After": "7200"})]), None),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_servers(tmp_path, kind):
    served, expected = ODD[kind]
    with serving({"/x.bin": served}) as server:
        failed = fetch(tmp_path, RemoteFile(server.url("/x.bin"))).failed
    assert bool(failed) == (expected is None) == (not (tmp_path / "x.bin").exists())
    assert expected is None or files_below(tmp_path) == {"x.bin": expected}


BIT = ZIP.index(SOME["b/4"]) + 500
ZIPS = {
    "resets": (Served(ZIP, cuts=[10, -10, None, 5000], refusals=[(503, {})]), ["a/2", "b/4"], ["a/2", "b/4"]),
    "lacks one": (Served(ZIP), ["a/2", "a/none", "b/4"], ["a/2", "b/4"]),
    "damaged": (Served(ZIP[:BIT] + bytes([ZIP[BIT] ^ 1]) + ZIP[BIT + 1 :]), ["a/2", "b/4"], ["a/2"]),
    "changes": (Served(ZIP, later=(8, OTHER_ZIP)), ["a/1"], []),  # with the zip's directory in hand
    "no ranges": (Served(ZIP, ranges=False), ["a/1"], []),
    "no zip": (Served(b"no zip at all"), ["a/1"], []),
}


@pytest.mark.parametrize("kind", ZIPS)
def test_what_a_zip_lacks_is_named_and_the_others_come(tmp_path, kind):
    served, names, come = ZIPS[kind]
    with serving({"/x.zip": served, "/other.zip": Served(zipped({"other": b"whole"}))}) as server:
        x, other = server.url("/x.zip"), server.url("/other.zip")
        report = fetch(tmp_path, RemoteZip(x, tmp_path, names), RemoteZip(other, tmp_path, ["other"]))
    assert list(report.failed) == [x] * (names != come)
    assert (x in report.text()) == (names != come)
    assert files_below(tmp_path) == {name: SOME[name] for name in come} | {"other": b"whole"}


def test_neighbours_come_in_one_request(tmp_path):
    served = Served(ZIP)
    with serving({"/x.zip": served}) as server:
        assert not fetch(tmp_path, RemoteZip(server.url("/x.zip"), tmp_path, ["a/2", "a/3"])).failed
    assert served.asked[:4] == served.asked[4:8]  # the directory, for the estimate and again
    assert len(served.asked) == 2 * 4 + 1


def test_a_wrong_hash(tmp_path):
    with serving({"/x.bin": Served(DATA)}) as server:
        file = RemoteFile(server.url("/x.bin"), "sha256:" + "0" * 64)
        for verify, there in ((True, False), (False, True), (True, True)):  # an existing file is checked too
            assert list(fetch(tmp_path, file, verify=verify).failed) == [file.url] * verify
            assert (tmp_path / "x.bin").exists() == there
            assert not any(path.stat().st_size for path in tmp_path.glob("*.part"))  # resumed it would stay wrong


def test_files_that_cannot_be_fetched_do_not_keep_the_others(tmp_path):
    with serving({}) as server:
        closed = server.url("/y.bin")
    with serving({"/x.bin": Served(DATA)}) as server:
        gone = server.url("/gone.tar")
        report = fetch(tmp_path, *map(RemoteFile, (gone, closed, "nothttp://x/z.bin", server.url("/x.bin"))))
    assert report.failed.keys() == {gone, closed, "nothttp://x/z.bin"}
    assert "404" in report.failed[gone]
    assert files_below(tmp_path) == {"x.bin": DATA}
    for bad in (["http://127.0.0.1/"], [closed, f"{closed}?v=2"]):  # no name, and two of the same
        with pytest.raises(DataError):
            fetch(tmp_path, *map(RemoteFile, bad))
    with pytest.raises(DataError, match=r"\.\./x"):
        RemoteZip(gone, tmp_path, ["a/../../x"])


@pytest.mark.parametrize(
    "after",
    ["", "120", format_datetime(datetime.now(UTC) + timedelta(minutes=9), usegmt=True)],
    ids=["none", "seconds", "date"],
)
def test_the_waits_grow_or_are_as_the_server_asks(after):
    served, waited = Served(DATA, refusals=[(503, {"Retry-After": after} if after else {})] * 6), []
    network = replace(QUICK, retries=5, wait=8.0)
    with serving({"/x.bin": served}) as server, Client(network, sleep=waited.append) as client:
        with pytest.raises(DataError, match=r"x\.bin"):
            client.read(server.url("/x.bin"), 5, 10, Version(len(DATA), '"1"'))
        assert waited == [8, 16, 32, 60, 60] if not after else min(waited) > 60
        assert client.read(server.url("/x.bin"), 5, 10, Version(len(DATA), '"1"')) == DATA[5:10]


def test_room_is_checked_first_and_a_full_disk_keeps_what_came(tmp_path, monkeypatch):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving({"/x.bin": Served(DATA), "/y.bin": Served(DATA)}) as server:
        files = [RemoteFile(server.url(path)) for path in ("/x.bin", "/y.bin")]
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 900_000})())
            with pytest.raises(DataError, match=str(tmp_path)):
                fetch(tmp_path, *files)  # each file alone would fit
        assert not list(tmp_path.iterdir())
        # A real failure of write(2): the kernel refuses the bytes beyond the limit (EFBIG), as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, old[1]))
        try:
            with pytest.raises(OSError, match=r"x\.bin\.part"):
                fetch(tmp_path, files[0])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert (tmp_path / "x.bin.part").read_bytes() == DATA[:250_000]
        with lock_folder(tmp_path), pytest.raises(FolderInUse):
            fetch(tmp_path, files[0])  # two runs would mix their bytes
        assert fetch(tmp_path, files[0]).size == len(DATA) - 250_000
    assert (tmp_path / "x.bin").read_bytes() == DATA


def test_an_error_stops_the_other_jobs():
    stop = threading.Event()
    jobs = {"long": lambda: stop.wait(60), "full": lambda: 1 / 0, "never begun": lambda: stop.wait(60)}
    with pytest.raises(ZeroDivisionError):
        side_by_side(jobs, 2, stop)


def test_hypersim_scene_by_scene(tmp_path):
    """From zips that hold much that is not needed, exactly what the preparation's tests start from."""
    raw = write_raw(tmp_path / "publisher")
    (raw / "metadata_camera_parameters.csv").write_text("scene_name\n")
    served = {f"/{path.name}": Served(path.read_bytes()) for path in raw.glob("*.csv")}
    for scene in (path for path in raw.iterdir() if path.is_dir()):
        content = {f"{scene.name}/{name}": data for name, data in files_below(scene).items()}
        content |= {name.replace("color", "residual"): b"junk" for name in content if "color" in name}
        served[f"/scenes/{scene.name}.zip"] = Served(zipped({name: content[name] for name in sorted(content)}))
    out = tmp_path / "raw"
    with serving(served) as server:
        tables = ("/metadata_images_split_scene_v1.csv", "/metadata_camera_parameters.csv")
        urls = [*(RemoteFile(server.url(path)) for path in tables), server.url("/scenes/{scene}.zip")]

        def counts(scenes: list[str] | None, dry_run: bool) -> tuple[int, int, int]:
            report = download_hypersim(settings(out, dry_run), *urls, scenes, "prepare it")
            return report.files, report.already, len(report.failed)

        assert counts(None, dry_run=True) == (15, 0, 0)
        assert not out.exists()
        assert counts(["ai_001_001"], dry_run=False) == (6, 0, 0)
        assert not list(out.glob("ai_00[23]*"))
        assert counts(None, dry_run=True) == counts(None, dry_run=False) == (15, 6, 0)
        with pytest.raises(DataError, match="ai_999_001"):
            counts(["ai_001_001", "ai_999_001"], dry_run=False)
    assert files_below(out) == files_below(raw)


def test_kitti_takes_the_listed_images_alone(tmp_path):
    drive = "2011_09_26_drive_0002"
    image = f"2011_09_26/{drive}_sync/image_02/data/{{}}.png".format
    depth = f"{drive}_sync/proj_depth/groundtruth/image_02/{{}}.png".format
    files = {
        f"/{drive}.zip": {image(i): b"image %d" % i for i in range(8)},
        "/depth.zip": {f"val/{depth(i)}": b"depth %d" % i for i in range(8)},
    }
    split_list, given = tmp_path / "list.txt", settings(tmp_path / "raw")
    split_list.write_text(f"{image(0)} None 721.5\n{image(5)} {depth(5)} 721.5\n")
    with serving({path: Served(zipped(content)) for path, content in files.items()}) as server:
        urls = (server.url("/{drive}.zip"), server.url("/depth.zip"), "prepare it")
        for already in (0, 3):
            report = download_kitti(given, str(split_list), *urls)
            assert (report.files, report.already, report.failed) == (3, already, {})
        split_list.write_text("image.png depth.png\n")
        with pytest.raises(DataError, match=r"list\.txt"):
            download_kitti(given, str(split_list), *urls)
    wanted = {image(0): b"image 0", image(5): b"image 5", f"data_depth_annotated/val/{depth(5)}": b"depth 5"}
    assert files_below(tmp_path / "raw") == wanted
