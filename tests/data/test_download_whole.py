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
from marigold.data.download.run import Report, download_files
from marigold.data.download.whole import RemoteFile
from marigold.data.errors import DataError
from marigold.files import FolderInUse, lock_folder
from web_server import Served, serving

QUICK = Network(retries=3, wait=0.001, max_wait=0.002, max_retry_after=600, timeout=5, connections=2)
DATA, NEWER = (np.random.default_rng(seed).bytes(600_000) for seed in (0, 1))


def fetch(out: Path, *files: RemoteFile, verify: bool = True, dry_run: bool = False, **network: int) -> Report:
    return download_files(str(out), list(files), replace(QUICK, **network), verify, dry_run, "prepare it")


def assert_only(out: Path, data: bytes) -> None:
    """The file is whole and nothing else is left."""
    assert {path.name for path in out.iterdir()} == {".lock", "x.bin"}
    assert (out / "x.bin").read_bytes() == data


def begin(out: Path, server, cut: int = 400_000) -> None:
    """A run that ends in the middle."""
    served = server.files["/x.bin"]
    served.cuts.append(cut)
    url = server.url("/x.bin")
    assert url in fetch(out, RemoteFile(url), retries=0).failed[url]
    assert (out / "x.bin.part").read_bytes() == served.data[:cut]


def test_files_then_nothing_to_do(tmp_path):
    files = {"/a/x.bin": Served(DATA), "/b%20c.bin": Served(b"small"), "/empty": Served(b"")}
    with serving(files) as server:
        wanted = [RemoteFile(server.url(path)) for path in files]
        plan = fetch(tmp_path / "out", *wanted, dry_run=True)
        assert (plan.size, plan.already, plan.dry_run) == (len(DATA) + 5, 0, True)
        assert not (tmp_path / "out").exists()
        report = fetch(tmp_path / "out", *wanted)
        assert (report.files, report.already, report.size, report.failed) == (3, 0, len(DATA) + 5, {})
        before = [len(served.asked) for served in files.values()]
        again = fetch(tmp_path / "out", *wanted)
        assert (again.already, again.size) == (3, 0)
        assert [len(served.asked) for served in files.values()] == before  # not even asked
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()}
    assert sizes.items() >= {"x.bin": len(DATA), "b c.bin": 5, "empty": 0}.items()


@pytest.mark.parametrize("cut", [250_000, -250_000, 0])
def test_resets_in_the_middle_are_resumed_from(tmp_path, cut):
    served = Served(DATA, cuts=[cut, cut, 1000])
    with serving({"/x.bin": served}) as server:
        assert not fetch(tmp_path, RemoteFile(server.url("/x.bin"), md5=hashlib.md5(DATA).hexdigest())).failed
    assert_only(tmp_path, DATA)
    starts = [int(wanted[6:-1]) for wanted, _ in served.asked[2:] if wanted]
    assert starts == sorted(starts)
    if cut > 0:
        assert starts == [cut, 2 * cut, 2 * cut + 1000]
        assert {condition for _, condition in served.asked[2:]} == {'"1"'}
        assert served.sent <= len(DATA) + 1


@pytest.mark.parametrize("note", [None, "", "{", "[]", "1", '["elsewhere", 600000, null]'])
def test_an_interrupted_run_is_resumed_if_it_is_known_what_of(tmp_path, note):
    served = Served(DATA)
    with serving({"/x.bin": served}) as server:
        begin(tmp_path, server)
        if note is not None:
            (tmp_path / "x.bin.part").write_bytes(NEWER[:400_000])
            (tmp_path / "x.bin.part.json").write_text(note)
        report = fetch(tmp_path, RemoteFile(server.url("/x.bin"), sha256=hashlib.sha256(DATA).hexdigest()))
    assert_only(tmp_path, DATA)
    assert report.size == (200_000 if note is None else 600_000)
    assert served.asked[-1] == (("bytes=400000-", '"1"') if note is None else (None, None))


@pytest.mark.parametrize(
    "newer",
    [
        Served(NEWER, {"ETag": '"2"'}),
        Served(NEWER, {"ETag": '"2"'}, if_range=False),  # gives the new file's rest all the same
        Served(NEWER, {"ETag": 'W/"2"'}),
        Served(NEWER, {"Last-Modified": "Mon, 02 Jan 2023 00:00:00 GMT"}, if_range=False),
        Served(NEWER[:500_000], {}),  # nothing but the size says so
        Served(NEWER[:300_000], {}, if_range=False),  # shorter than what came of the old one
        Served(NEWER, {"ETag": '"2"'}, ranges=False),
    ],
    ids=["if-range", "if-range ignored", "weak", "date", "size", "shorter", "no ranges"],
)
def test_a_changed_file_is_not_glued_together(tmp_path, newer):
    with serving({"/x.bin": Served(DATA)}) as server:
        begin(tmp_path, server)
        server.files["/x.bin"] = replace(newer, asked=[], cuts=[], sent=0)
        assert not fetch(tmp_path, RemoteFile(server.url("/x.bin"))).failed
    assert_only(tmp_path, newer.data)


SERVERS = {
    "changes after a reset": (Served(DATA, cuts=[400_000], later=(2, NEWER)), NEWER),
    "without ranges": (Served(DATA, ranges=False, cuts=[300_000, 300_000]), DATA),
    "without a length": (Served(DATA, {}, chunked=True, cuts=[300_000]), DATA),  # a break is seen all the same
    "calls .tar.gz gzip-encoded": (Served(DATA, {"Content-Encoding": "gzip"}), DATA),
    "always breaks off": (Served(DATA, ranges=False, cuts=[300_000] * 99), None),
    "lies about the length": (Served(DATA, {}, ranges=False, lie=len(DATA) + 10), None),
    "asks for hours": (Served(DATA, refusals=[(429, {"Retry-After": "7200"})]), None),
    "answers another range": (Served(DATA, {"Content-Range": "bytes 7-9/600000"}, cuts=[300_000]), DATA),
}


@pytest.mark.parametrize("kind", SERVERS)
def test_odd_servers(tmp_path, kind):
    served, expected = SERVERS[kind]
    with serving({"/x.bin": served}) as server:
        url = server.url("/x.bin")
        report = fetch(tmp_path, RemoteFile(url))
    assert list(report.failed) == ([] if expected else [url])
    if expected is not None:
        assert_only(tmp_path, expected)
    assert (tmp_path / "x.bin").exists() == (expected is not None)


def test_wrong_sizes_and_hashes(tmp_path):
    served = Served(DATA)
    with serving({"/x.bin": served}) as server:
        url = server.url("/x.bin")
        for known, found in (
            ({"size": len(DATA) + 1}, "600,001"),
            ({"md5": "0" * 32}, hashlib.md5(DATA).hexdigest()),
            ({"sha256": "0" * 64}, hashlib.sha256(DATA).hexdigest()),
        ):
            assert found in fetch(tmp_path, RemoteFile(url, **known)).failed[url]
            assert not [path for path in tmp_path.glob("x.bin.part") if path.stat().st_size]  # would never be right
            assert not (tmp_path / "x.bin").exists()
        assert not fetch(tmp_path, RemoteFile(url, **known), verify=False).failed
        assert (tmp_path / "x.bin").read_bytes() == DATA
        assert found in fetch(tmp_path, RemoteFile(url, **known)).failed[url]  # a file that lies there is checked too


def test_what_cannot_be_had_does_not_keep_the_others(tmp_path):
    with serving({}) as server:
        closed = server.url("/y.bin")
    with serving({"/x.bin": Served(DATA)}) as server:
        gone = server.url("/gone.tar")
        report = fetch(tmp_path, *map(RemoteFile, (gone, closed, "nothttp://x/z.bin", server.url("/x.bin"))))
    assert report.failed.keys() == {gone, closed, "nothttp://x/z.bin"}
    assert "404" in report.failed[gone]
    assert "refused" in report.failed[closed]
    assert gone in report.text()
    assert_only(tmp_path, DATA)
    for bad in (["http://127.0.0.1/"], [closed, f"{closed}?v=2"]):  # no name, and two of the same
        with pytest.raises(DataError):
            fetch(tmp_path, *map(RemoteFile, bad))


@pytest.mark.parametrize("after", [None, "seconds", "date"])
def test_the_waits_grow_or_are_as_the_server_asks(after):
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=120), usegmt=True)
    headers = {None: {}, "seconds": {"Retry-After": "120"}, "date": {"Retry-After": moment}}[after]
    served, waited = Served(DATA, refusals=[(503, headers)] * 5), []
    network = replace(QUICK, retries=5, wait=1.0, max_wait=6.0)
    with serving({"/x.bin": served}) as server, Client(network, sleep=waited.append) as client:
        assert client.read(server.url("/x.bin"), 5, 10, Version(len(DATA), '"1"')) == DATA[5:10]
        assert (
            waited == [1, 2, 4, 6, 6] if after is None else [115 < seconds <= 120 for seconds in waited] == [True] * 5
        )
        served.refusals = [(503, {})] * 6
        with pytest.raises(DataError, match=r"x\.bin"):
            client.read(server.url("/x.bin"), 5, 10, Version(len(DATA), '"1"'))


def test_room_is_asked_for_first(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 900_000})())
    with serving({"/x.bin": Served(DATA), "/y.bin": Served(DATA)}) as server:
        wanted = [RemoteFile(server.url(path)) for path in server.files]
        with pytest.raises(DataError, match=str(tmp_path)):
            fetch(tmp_path, *wanted)  # each alone would fit
        assert not list(tmp_path.iterdir())
        begin(tmp_path, server)
        assert not fetch(tmp_path, *wanted).failed  # the rest fits


def test_a_full_disk_keeps_what_came(tmp_path):
    """A real failure of write(2): the kernel refuses the bytes beyond the limit (EFBIG), as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    with serving({"/x.bin": Served(DATA)}) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, old[1]))
        try:
            with pytest.raises(OSError, match=r"x\.bin\.part"):
                fetch(tmp_path, RemoteFile(server.url("/x.bin")))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert (tmp_path / "x.bin.part").read_bytes() == DATA[:400_000]
        assert fetch(tmp_path, RemoteFile(server.url("/x.bin"))).size == 200_000
    assert_only(tmp_path, DATA)


def test_two_runs_do_not_mix_their_bytes(tmp_path):
    with serving({"/x.bin": Served(DATA)}) as server, lock_folder(tmp_path), pytest.raises(FolderInUse):
        fetch(tmp_path, RemoteFile(server.url("/x.bin")))
