"""Whole files from a server on this machine that misbehaves; what arrives must be its bytes, or an error."""

import fcntl
import hashlib
import json
import resource
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest

from marigold.data.download.http import Client, Network
from marigold.data.download.run import Report, download_files
from marigold.data.download.whole import RemoteFile, download_file
from marigold.data.errors import DataError
from web_server import Served, serving

QUICK = Network(retries=3, wait=0.001, max_wait=0.002, max_retry_after=600, timeout=5, connections=2)
DATA = np.random.default_rng(0).bytes(1_500_000)
NEWER = np.random.default_rng(1).bytes(1_500_000)


def fetch(
    out: Path, *files: RemoteFile, network: Network = QUICK, verify: bool = True, dry_run: bool = False
) -> Report:
    return download_files(str(out), list(files), network, verify, dry_run, "prepare it")


def assert_only(out: Path, data: bytes) -> None:
    """The file is whole and nothing else is left."""
    assert {path.name for path in out.iterdir()} == {"x.bin"}
    assert (out / "x.bin").read_bytes() == data


def begun(out: Path, url: str, data: bytes, etag: str | None = '"1"', size: int | None = len(DATA)) -> None:
    """What a killed run leaves."""
    out.mkdir(exist_ok=True)
    (out / "x.bin.part").write_bytes(data)
    (out / "x.bin.part.json").write_text(json.dumps({"url": url, "size": size, "etag": etag, "modified": None}))


def test_two_files_then_nothing_to_do(tmp_path):
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
    assert {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()} == {
        "x.bin": len(DATA),
        "b c.bin": 5,
        "empty": 0,
    }
    assert "next: prepare it" in report.text()


@pytest.mark.parametrize("cut", [600_000, -600_000, 0])
def test_resets_in_the_middle_are_gone_on_from(tmp_path, cut):
    served = Served(DATA, cuts=[cut, cut, 1000])
    with serving({"/x.bin": served}) as server:
        md5 = hashlib.md5(DATA).hexdigest()
        assert not fetch(tmp_path, RemoteFile(server.url("/x.bin"), md5=md5)).failed
    assert_only(tmp_path, DATA)
    starts = [int(asked[0][6:-1]) for asked in served.asked[2:] if asked[0]]
    assert starts == sorted(starts)
    if cut > 0:
        assert starts == [cut, 2 * cut, 2 * cut + 1000]
        assert {condition for _, condition in served.asked[2:]} == {'"1"'}
        assert served.sent <= len(DATA) + 1


def test_a_killed_run_is_gone_on_from(tmp_path):
    served = Served(DATA)
    with serving({"/x.bin": served}) as server:
        begun(tmp_path, server.url("/x.bin"), DATA[:1_000_000])
        report = fetch(tmp_path, RemoteFile(server.url("/x.bin"), sha256=hashlib.sha256(DATA).hexdigest()))
    assert_only(tmp_path, DATA)
    assert report.size == 500_000
    assert served.asked[-1] == ("bytes=1000000-", '"1"')


def test_all_bytes_there_but_not_renamed(tmp_path):
    served = Served(DATA)
    with serving({"/x.bin": served}) as server:
        begun(tmp_path, server.url("/x.bin"), DATA)
        assert not fetch(tmp_path, RemoteFile(server.url("/x.bin"))).failed
        assert len(served.asked) == 1  # the size only
    assert_only(tmp_path, DATA)


@pytest.mark.parametrize(
    "served",
    [
        Served(NEWER, etag='"2"'),
        Served(NEWER, etag='"2"', if_range=False),  # gives the new file's rest all the same
        Served(NEWER, etag='W/"2"'),
        Served(NEWER[:1_200_000], etag=None),  # nothing but the size says so
        Served(NEWER[:900_000], etag=None),  # shorter than what came of the old one
        Served(NEWER, etag='"2"', ranges=False),
    ],
    ids=["if-range", "if-range ignored", "weak", "size", "shorter", "no ranges"],
)
def test_a_changed_file_is_not_glued_together(tmp_path, served):
    with serving({"/x.bin": served}) as server:
        begun(tmp_path, server.url("/x.bin"), DATA[:1_000_000])
        assert not fetch(tmp_path, RemoteFile(server.url("/x.bin"))).failed
    assert_only(tmp_path, served.data)


def test_a_file_that_changes_between_two_tries(tmp_path):
    served = Served(DATA, cuts=[700_000])
    with serving({"/x.bin": served}) as server, Client(QUICK, sleep=lambda _: change()) as client:

        def change() -> None:
            served.data, served.etag = NEWER, '"2"'

        counts: list[int] = []
        download_file(client, RemoteFile(server.url("/x.bin")), tmp_path / "x.bin", counts.append)
    assert_only(tmp_path, NEWER)
    assert sum(counts) == len(NEWER)
    assert -700_000 in counts  # the bar goes back


@pytest.mark.parametrize("note", [None, "{", "[]", '{"url": "elsewhere", "size": 9, "etag": null, "modified": null}'])
def test_a_part_of_unknown_origin_is_begun_anew(tmp_path, note):
    (tmp_path / "x.bin.part").write_bytes(NEWER[:1_000_000])
    if note is not None:
        (tmp_path / "x.bin.part.json").write_text(note)
    with serving({"/x.bin": Served(DATA)}) as server:
        assert not fetch(tmp_path, RemoteFile(server.url("/x.bin"))).failed
    assert_only(tmp_path, DATA)


def test_a_server_without_ranges(tmp_path):
    served = Served(DATA, ranges=False, cuts=[600_000, 600_000])
    with serving({"/x.bin": served}) as server:
        assert not fetch(tmp_path, RemoteFile(server.url("/x.bin"))).failed
    assert_only(tmp_path, DATA)
    assert served.sent == 2 * 600_000 + len(DATA) + 1_500_000  # the probe's answer was all of it, too


def test_a_server_that_always_breaks_off_is_left(tmp_path):
    served = Served(DATA, ranges=False, cuts=[600_000] * 99)
    with serving({"/x.bin": served}) as server:
        report = fetch(tmp_path, RemoteFile(server.url("/x.bin")))
    assert "given up after 4 tries" in report.failed["x.bin"]
    assert not (tmp_path / "x.bin").exists()
    assert (tmp_path / "x.bin.part").stat().st_size == 600_000
    assert "not downloaded: x.bin" in report.text()


def test_without_a_length(tmp_path):
    """A chunked answer says its end, so a break is seen, though the size is unknown."""
    served = Served(DATA, etag=None, chunked=True, cuts=[600_000])
    with serving({"/x.bin": served}) as server:
        assert not fetch(tmp_path, RemoteFile(server.url("/x.bin"))).failed
    assert_only(tmp_path, DATA)


def test_a_length_that_is_a_lie(tmp_path):
    with serving({"/x.bin": Served(DATA, etag=None, ranges=False, lie=len(DATA) + 10)}) as server:
        report = fetch(tmp_path, RemoteFile(server.url("/x.bin")))
    assert "broken off" in report.failed["x.bin"]
    assert not (tmp_path / "x.bin").exists()


def test_an_archive_is_not_unpacked_on_the_way(tmp_path):
    """Servers call .tar.gz gzip-encoded; what is wanted is the file as it lies there."""
    with serving({"/x.bin": Served(DATA, encoding="gzip")}) as server:
        assert not fetch(tmp_path, RemoteFile(server.url("/x.bin"))).failed
    assert_only(tmp_path, DATA)


def test_wrong_size_and_wrong_hash(tmp_path):
    served = Served(DATA)
    with serving({"/x.bin": served}) as server:
        file = RemoteFile(server.url("/x.bin"), size=len(DATA) + 1)
        report = fetch(tmp_path, file)
        assert "1,500,000 bytes, expected 1,500,001" in report.failed["x.bin"]
        assert served.sent <= 2 * len(DATA)
        for name in ("md5", "sha256"):
            report = fetch(tmp_path, replace(file, size=None, **{name: "0" * 32}))
            assert getattr(hashlib, name)(DATA).hexdigest() in report.failed["x.bin"]
            assert f"expected {'0' * 32}" in report.failed["x.bin"]
            assert not (tmp_path / "x.bin").exists()
            assert not (tmp_path / "x.bin.part").exists()  # going on with it would never help
        assert not fetch(tmp_path, file, verify=False).failed
        assert (tmp_path / "x.bin").read_bytes() == DATA
        report = fetch(tmp_path, file)  # a file that lies there is checked too
        assert "expected 1,500,001" in report.failed["x.bin"]


def test_what_is_missing_does_not_keep_the_others(tmp_path):
    with serving({"/x.bin": Served(DATA)}) as server:
        report = fetch(tmp_path, RemoteFile(server.url("/gone.tar")), RemoteFile(server.url("/x.bin")))
    assert list(report.failed) == ["gone.tar"]
    assert "the server says 404 Not Found: the file is not (or no longer) there" in report.failed["gone.tar"]
    assert_only(tmp_path, DATA)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_says_how_long_to_wait(tmp_path, status, form):
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=120), usegmt=True)
    served = Served(DATA, refusals=[(status, {"Retry-After": "120" if form == "seconds" else moment})])
    waited: list[float] = []
    with serving({"/x.bin": served}) as server, Client(QUICK, sleep=waited.append) as client:
        download_file(client, RemoteFile(server.url("/x.bin")), tmp_path / "x.bin", lambda _: None)
    assert len(waited) == 1
    assert 115 < waited[0] <= 120
    assert_only(tmp_path, DATA)


def test_a_wait_that_is_too_long_is_told(tmp_path):
    served = Served(DATA, refusals=[(429, {"Retry-After": "7200"})])
    with serving({"/x.bin": served}) as server:
        report = fetch(tmp_path, RemoteFile(server.url("/x.bin")))
    assert "asks to come back in 7200 s" in report.failed["x.bin"]


def test_the_waits_grow(tmp_path):
    served = Served(DATA, refusals=[(500, {})] * 9)
    waited: list[float] = []
    network = replace(QUICK, retries=5, wait=1.0, max_wait=6.0)
    with (
        serving({"/x.bin": served}) as server,
        Client(network, sleep=waited.append) as client,
        pytest.raises(DataError, match="500 Internal Server Error; given up after 6 tries"),
    ):
        download_file(client, RemoteFile(server.url("/x.bin")), tmp_path / "x.bin", lambda _: None)
    assert waited == [1, 2, 4, 6, 6]


def test_nobody_answers_and_no_address(tmp_path):
    with serving({}) as server:
        url = server.url("/x.bin")
    report = fetch(tmp_path, RemoteFile(url), RemoteFile("nothttp://x/y.bin"))
    assert "Connection refused" in report.failed["x.bin"]
    assert "given up after 4 tries" in report.failed["x.bin"]
    assert "No connection adapters" in report.failed["y.bin"]
    with pytest.raises(DataError, match="no file name"):
        fetch(tmp_path, RemoteFile("http://127.0.0.1/"))
    with pytest.raises(DataError, match="the same name"):
        fetch(tmp_path, RemoteFile(url), RemoteFile(url + "?v=2"))


def test_room_is_asked_for_first(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2_000_000})())
    files = {"/x.bin": Served(DATA), "/y.bin": Served(DATA)}
    with serving(files) as server:
        wanted = [RemoteFile(server.url(path)) for path in files]
        with pytest.raises(DataError, match=r"0\.00 GiB are needed and 0\.00 GiB are free"):
            fetch(tmp_path, *wanted)  # each alone would fit
        assert not list(tmp_path.iterdir())
        begun(tmp_path, wanted[0].url, DATA[:1_200_000])
        assert not fetch(tmp_path, *wanted).failed  # the rest fits


def test_a_full_disk_keeps_what_came(tmp_path):
    """A real failure of write(2): the kernel refuses the bytes beyond the limit (EFBIG), as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    served = Served(DATA)
    with serving({"/x.bin": served}) as server:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, old[1]))
        try:
            with pytest.raises(OSError, match="run again to go on") as caught:
                fetch(tmp_path, RemoteFile(server.url("/x.bin")))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old)
        assert "x.bin.part" in str(caught.value)
        assert (tmp_path / "x.bin.part").read_bytes() == DATA[:1_000_000]
        assert fetch(tmp_path, RemoteFile(server.url("/x.bin"))).size == 500_000
    assert_only(tmp_path, DATA)


def test_two_processes_do_not_mix_their_bytes(tmp_path):
    with serving({"/x.bin": Served(DATA)}) as server, (tmp_path / "x.bin.part").open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        report = fetch(tmp_path, RemoteFile(server.url("/x.bin")))
    assert "another process is downloading it" in report.failed["x.bin"]
