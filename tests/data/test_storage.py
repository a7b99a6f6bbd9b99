"""Folder, tar and zip give the same bytes; archives that are damaged or hostile are refused by name."""

import io
import os
import pickle
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mini_archives import unpack

from marigold.data import storage as storages
from marigold.data.errors import DataError, MissingDataError
from marigold.data.storage import FolderStorage, open_storage

FILES = {f"a/b{i % 3}/{i:03d}.bin": bytes([i]) * (700 * i) for i in range(40)} | {
    "top.txt": b"top",
    "ä/ö.txt": b"umlaut",
}
LARGE = "a/b0/039.bin"


def write_tar(path: Path, prefix="", mode="w", files=FILES, kind=tarfile.REGTYPE, link="") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in {"a": None, **files}.items():
            member = tarfile.TarInfo(prefix + name)
            member.type, member.linkname = tarfile.DIRTYPE if data is None else kind, link
            member.size = len(data or b"")
            archive.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, compression=zipfile.ZIP_DEFLATED, files=FILES) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/", "")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


WRITERS = {
    "folder": lambda path: unpack(path / "root", FILES),
    "tar": lambda path: write_tar(path / "root.tar", ".//./"),
    "zip": lambda path: write_zip(path / "root.zip"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_storage_gives_the_same_bytes_and_nothing_from_outside(tmp_path, kind, monkeypatch):
    storage = open_storage(WRITERS[kind](tmp_path))
    assert list(storage.names()) == sorted(FILES)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(storage.read, FILES)) == list(FILES.values())
    child = os.fork()
    if child == 0:  # a forked worker shares the descriptor and must not disturb the parent
        os._exit(0 if all(storage.read(name) == data for name, data in FILES.items()) else 1)
    assert all(storage.read(f"./{name}") == data for name, data in FILES.items())
    assert os.waitpid(child, 0)[1] == 0
    content = pickle.dumps(storage)
    assert len(content) < 1000  # no file content, no index
    assert pickle.loads(content).read("top.txt") == b"top"
    monkeypatch.setattr(storages, "MAX_FILE_BYTES", 10_000)
    with pytest.raises(DataError, match=LARGE):
        storage.read(LARGE)
    for name in ("a/none.bin", "a/b0", "top.txt/x"):
        with pytest.raises(DataError, match=name):
            storage.read(f"./{name}")
    for outside in ("/etc/passwd", "a/../../top.txt", "", "a\\b", "a\0b"):
        with pytest.raises(DataError):
            storage.read(outside)


def test_the_index_of_a_tar_is_kept_and_renewed(tmp_path, monkeypatch):
    path, index = write_tar(tmp_path / "root.tar"), tmp_path / "root.tar.index"
    index.mkdir()  # no file can take its place, as where nothing may be written
    assert open_storage(path).read("top.txt") == b"top"
    index.rmdir()
    assert open_storage(path).names()
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.TarFile, "next", lambda *_: pytest.fail("read through again"))
        patch.setattr(tarfile, "is_tarfile", lambda _: True)
        assert open_storage(path).read(LARGE) == FILES[LARGE]
    whole = index.read_bytes()
    for damaged in (b"", whole[:200], b"[]", b"\x93NUMPY"):
        index.write_bytes(damaged)
        assert open_storage(path).read("top.txt") == b"top"
        assert index.read_bytes() == whole
    for order in ("xy", "yx"):  # another archive of the same size
        write_tar(path, files={name: name.encode() for name in order})
        os.utime(path, ns=(1, 10**18 + ord(order[0])))
        assert [open_storage(path).read(name) for name in "xy"] == [b"x", b"y"]


def test_links_and_pipes_in_a_folder(tmp_path):
    root = unpack(tmp_path / "root", FILES)
    (tmp_path / "secret").write_text("secret")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    (root / "inside").symlink_to("top.txt")
    os.mkfifo(root / "pipe")  # must not block
    (tmp_path / "other").symlink_to(root)  # the root itself may be one
    (root / "nowhere").symlink_to("none")
    storage = FolderStorage(tmp_path / "other")
    assert set(storage.names()) == {*FILES, "inside", "out"}  # neither a pipe nor what lies behind links to folders
    assert storage.read("inside") == storage.read("top.txt") == b"top"
    for name in ("out", "up/secret", "pipe"):
        with pytest.raises(DataError, match=name):
            storage.read(name)


BAD = {
    "nothing.tar": lambda path: None,
    "text.tar": lambda path: path.write_text("not a tar"),
    "empty.tar": lambda path: write_tar(path, files={}),
    "cut.tar": lambda path: path.write_bytes(write_tar(path).read_bytes()[:60_000]),
    "compressed.tar.gz": lambda path: write_tar(path, mode="w:gz"),
    "above.tar": lambda path: write_tar(path, files={"a/../../x": b"x"}),
    "link.tar": lambda path: write_tar(path, files={"x": b""}, kind=tarfile.SYMTYPE, link="../secret"),
    "cut.zip": lambda path: path.write_bytes(write_zip(path).read_bytes()[:-30]),
    "lzma.zip": lambda path: write_zip(path, zipfile.ZIP_LZMA),
    "above.zip": lambda path: write_zip(path, files={"../evil": b"x"}),
}


@pytest.mark.parametrize("name", BAD)
def test_archives_that_cannot_be_read_or_trusted(tmp_path, name):
    BAD[name](tmp_path / name)
    with pytest.raises(DataError, match=name):
        open_storage(tmp_path / name)


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_an_archive_that_shrinks_while_it_is_open(tmp_path, write):
    storage = open_storage(write(tmp_path / "root"))
    os.truncate(tmp_path / "root", 2048)
    with pytest.raises(DataError, match=LARGE):
        storage.read(LARGE)


@pytest.mark.parametrize("position", [0, 28, 60])
def test_a_zip_with_a_flipped_bit(tmp_path, position):
    """In the signature, a length or the data of the member."""
    path = write_zip(tmp_path / "x.zip", zipfile.ZIP_STORED, {"x": b"some bytes" * 5})
    damaged = bytearray(path.read_bytes())
    damaged[damaged.rindex(b"PK\x03\x04") + position] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"x\.zip:x"):
        open_storage(path).read("x")


def test_a_zip_bomb_that_lies_about_its_size(tmp_path):
    path = write_zip(tmp_path / "bomb.zip", files={"bomb": bytes(5_000_000)})
    path.write_bytes(path.read_bytes().replace((5_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    assert path.stat().st_size < 6_000
    tracemalloc.start()
    with pytest.raises(DataError, match="bomb"):
        open_storage(path).read("bomb")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_folder_stands_for_the_archives_in_it(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "set.zip").symlink_to(write_zip(tmp_path / "set.zip"))
    write_tar(folder / "val.tar", files={"val/empty.txt": b""})
    (folder / "top.txt").write_text("of the folder")
    storage = pickle.loads(pickle.dumps(open_storage(folder)))
    assert storage.read("top.txt") == b"of the folder"
    assert storage.read(LARGE) == FILES[LARGE]
    assert storage.read("val/empty.txt") == b""
    assert {*FILES, "val/empty.txt"} <= set(storage.names())
    with pytest.raises(MissingDataError, match=r"data/a/none.*set\.zip:a/none.*val\.tar:a/none"):
        storage.read("a/none")
