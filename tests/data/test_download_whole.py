"""Whole files from a server on this machine that misbehaves; what arrives must be its bytes, or an error."""

import hashlib
import resource
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest

from marigold.data.download.http import Client, Network, Version
from marigold.data.download.run import Report, Settings, download_files
from marigold.data.download.whole import RemoteFile
from marigold.data.errors import DataError
from marigold.files import FolderInUse, lock_folder
from web_server import Served, serving

QUICK = Network(retries=3, wait=0.001, max_wait=0.002, max_retry_after=600, timeout=5, connections=2)
DATA, NEWER = (np.random.default_rng(seed).bytes(600_000) for seed in (0, 1))


def fetch(out: Path, *files: RemoteFile, verify: bool = True, dry_run: bool = False, retries: int = 3) -> Report:
    settings = Settings(str(out), verify, dry_run, replace(QUICK, retries=retries))
    return download_files(settings, list(files), "prepare it")


def assert_only(out: Path, data: bytes) -> None:
    """The file is whole and nothing else is left."""
    assert {path.name for path in out.iterdir()} == {".lock", "x.bin"}
    assert (out / "x.bin").read_bytes() == data


def begin(out: Path, server) -> RemoteFile:
    """A run that ends after 400,000 bytes of DATA."""
    server.files["/x.bin"].cuts.append(400_000)
    file = RemoteFile(server.url("/x.bin"))
    assert list(fetch(out, file, retries=0).failed) == [file.url]
    assert (out / "x.bin.part").read_bytes() == DATA[:400_000]
    return file


def test_files_then_nothing_to_do(tmp_path):
    files = {"/a/x.bin": Served(DATA), "/b%20c.bin": Served(b"small"), "/empty": Served(b"")}
    out = tmp_path / "out"
    with serving(files) as server:
        wanted = [RemoteFile(server.url(path)) for path in files]
        plan = fetch(out, *wanted, dry_run=True)
        assert (plan.size, plan.already, out.exists()) == (len(DATA) + 5, 0, False)
        report = fetch(out, *wanted)
        assert (report.files, report.already, report.size, report.failed) == (3, 0, len(DATA) + 5, {})
        before = [len(served.asked) for served in files.values()]
        again = fetch(out, *wanted)
        assert (again.already, again.size) == (3, 0)
        assert [len(served.asked) for served in files.values()] == before  # not even asked
    assert [(out / name).stat().st_size for name in ("x.bin", "b c.bin", "empty")] == [len(DATA), 5, 0]


@pytest.mark.parametrize("cut", [250_000, -250_000, 0])
def test_resets_in_the_middle_are_resumed_from(tmp_path, cut):
    served = Served(DATA, cuts=[cut, cut, 1000])
    with serving({"/x.bin": served}) as server:
        assert not fetch(tmp_path, RemoteFile(server.url("/x.bin"), md5=hashlib.md5(DATA).hexdigest())).failed
    assert_only(tmp_path, DATA)
    if cut > 0:
        assert served.asked[2:] == [(f"bytes={at}-", '"1"') for at in (cut, 2 * cut, 2 * cut + 1000)]
        assert served.sent == len(DATA) + 1


@pytest.mark.parametrize("note", [None, "", "{", "[]", "1", '["elsewhere", 600000, null]'])
def test_an_interrupted_run_is_resumed_if_it_is_known_what_of(tmp_path, note):
    served = Served(DATA)
    with serving({"/x.bin": served}) as server:
        file = begin(tmp_path, server)
        if note is not None:
            (tmp_path / "x.bin.part").write_bytes(NEWER[:400_000])
            (tmp_path / "x.bin.part.json").write_text(note)
        report = fetch(tmp_path, replace(file, sha256=hashlib.sha256(DATA).hexdigest()))
    assert_only(tmp_path, DATA)
    assert report.size == (200_000 if note is None else 600_000)
    assert served.asked[-1] == (("bytes=400000-", '"1"') if note is None else (None, None))


DATE = {"Last-Modified": "Mon, 02 Jan 2023 00:00:00 GMT"}
CHANGED = {
    "if-range": Served(NEWER, {"ETag": '"2"'}),
    "if-range ignored": Served(NEWER, {"ETag": '"2"'}, if_range=False),  # gives the new file's rest all the same
    "weak": Served(NEWER, {"ETag": 'W/"2"'}),
    "date": Served(NEWER, DATE, if_range=False),
    "size": Served(NEWER[:500_000], {}),  # nothing else says so
    "shorter": Served(NEWER[:300_000], {}, if_range=False),  # than what came of the old one
    "no ranges": Served(NEWER, {"ETag": '"2"'}, ranges=False),
}


@pytest.mark.parametrize("kind", CHANGED)
def test_a_changed_file_is_not_glued_together(tmp_path, kind):
    with serving({"/x.bin": Served(DATA)}) as server:
        file = begin(tmp_path, server)
        server.files["/x.bin"] = CHANGED[kind]
        assert not fetch(tmp_path, file).failed
    assert_only(tmp_path, CHANGED[kind].data)


ODD = {
    "changes after a reset": (Served(DATA, cuts=[400_000], later=(2, NEWER)), NEWER),
    "without ranges": (Served(DATA, ranges=False, cuts=[300_000, 300_000]), DATA),
    "without a length": (Served(DATA, {}, chunked=True, cuts=[300_000]), DATA),  # a break is seen all the same
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
    if expected is not None:
        assert_only(tmp_path, expected)


@pytest.mark.parametrize("known", [{"size": 600_001}, {"md5": "0" * 32}, {"sha256": "0" * 64}], ids=str)
def test_wrong_sizes_and_hashes(tmp_path, known):
    with serving({"/x.bin": Served(DATA)}) as server:
        file = RemoteFile(server.url("/x.bin"), **known)
        for verify, there in ((True, False), (False, True), (True, True)):  # a file that lies there is checked too
            assert list(fetch(tmp_path, file, verify=verify).failed) == [file.url] * verify
            assert (tmp_path / "x.bin").exists() == there
            assert not any(path.stat().st_size for path in tmp_path.glob("*.part"))  # resumed it would stay wrong
    assert (tmp_path / "x.bin").read_bytes() == DATA


def test_what_cannot_be_had_does_not_keep_the_others(tmp_path):
    with serving({}) as server:
        closed = server.url("/y.bin")
    with serving({"/x.bin": Served(DATA)}) as server:
        gone = server.url("/gone.tar")
        report = fetch(tmp_path, *map(RemoteFile, (gone, closed, "nothttp://x/z.bin", server.url("/x.bin"))))
    assert report.failed.keys() == {gone, closed, "nothttp://x/z.bin"}
    assert "404" in report.failed[gone]
    assert gone in report.text()
    assert_only(tmp_path, DATA)
    for bad in (["http://127.0.0.1/"], [closed, f"{closed}?v=2"]):  # no name, and two of the same
        with pytest.raises(DataError):
            fetch(tmp_path, *map(RemoteFile, bad))


@pytest.mark.parametrize("after", ["", "120", format_datetime(datetime.now(UTC) + timedelta(minutes=9), usegmt=True)])
def test_the_waits_grow_or_are_as_the_server_asks(after):
    served, waited = Served(DATA, refusals=[(503, {"Retry-After": after} if after else {})] * 6), []
    network = replace(QUICK, retries=5, wait=1.0, max_wait=6.0)
    with serving({"/x.bin": served}) as server, Client(network, sleep=waited.append) as client:
        with pytest.raises(DataError, match=r"x\.bin"):
            client.read(server.url("/x.bin"), 5, 10, Version(len(DATA), '"1"'))
        assert waited == [1, 2, 4, 6, 6] if not after else min(waited) > 60
        assert client.read(server.url("/x.bin"), 5, 10, Version(len(DATA), '"1"')) == DATA[5:10]


def test_room_is_asked_for_first_and_a_full_disk_keeps_what_came(tmp_path, monkeypatch):
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving({"/x.bin": Served(DATA), "/y.bin": Served(DATA)}) as server:
        wanted = [RemoteFile(server.url(path)) for path in server.files]
        with monkeypatch.context() as patch:
            patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 900_000})())
            with pytest.raises(DataError, match=str(tmp_path)):
                fetch(tmp_path, *wanted)  # each alone would fit
        assert not list(tmp_path.iterdir())
        # A real failure of write(2): the kernel refuses the bytes beyond the limit (EFBIG), as a full disk does.
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, old[1]))
        try:
            with pytest.raises(OSError, match=r"x\.bin\.part"):
                fetch(tmp_path, wanted[0])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert (tmp_path / "x.bin.part").read_bytes() == DATA[:400_000]
        with lock_folder(tmp_path), pytest.raises(FolderInUse):
            fetch(tmp_path, wanted[0])  # two runs would mix their bytes
        assert fetch(tmp_path, wanted[0]).size == 200_000
    assert_only(tmp_path, DATA)
