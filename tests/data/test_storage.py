"""Folder, tar and zip give the same bytes; archives that are damaged or hostile are refused by name."""

import io
import os
import pickle
import tarfile
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from marigold.data import storage as storages
from marigold.data.errors import DataError, MissingDataError
from marigold.data.storage import FolderStorage, LayeredStorage, open_storage, relative_name

FILES = {f"a/b{i % 3}/{i:03d}.bin": bytes([i]) * (700 * i) for i in range(40)} | {
    "top.txt": b"top",
    "ä/ö.txt": b"umlaut",
}
LARGE = "a/b0/039.bin"


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """Where an index is kept if not beside its archive."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    return Path.home()


def write_folder(root: Path) -> Path:
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tar_member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, target: str = "") -> tuple:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, target
    return member, io.BytesIO(data)


def write_tar(path: Path, prefix: str = "", mode: str = "w", files: dict[str, bytes] = FILES) -> Path:
    with tarfile.open(path, mode) as archive:
        archive.addfile(*tar_member(f"{prefix}a", kind=tarfile.DIRTYPE))
        for name, data in files.items():
            archive.addfile(*tar_member(prefix + name, data))
    return path


def write_zip(path: Path, compression: int = zipfile.ZIP_DEFLATED, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/", "")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


WRITERS = {
    "folder": lambda path: write_folder(path / "root"),
    "tar": lambda path: write_tar(path / "root.tar"),
    "tar with ./": lambda path: write_tar(path / "root.tar", "./"),
    "zip": lambda path: write_zip(path / "root.zip"),
    "stored zip": lambda path: write_zip(path / "root.zip", zipfile.ZIP_STORED),
}


@pytest.fixture(params=WRITERS)
def root(request, tmp_path) -> Path:
    return WRITERS[request.param](tmp_path)


def test_every_storage_gives_the_same_bytes(root, monkeypatch):
    storage = open_storage(root)
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


def test_absent_names_what_read_would_not_find(root):
    storage = open_storage(root)
    gone = ["a/none.bin", "a", "a/b0", "top.txt/x", "none/x", "./a/none.bin", "a/none.bin"]
    assert storage.absent(iter([*FILES, "./top.txt", *gone])) == gone
    for name in gone:
        with pytest.raises(DataError, match=name.removeprefix("./")):
            storage.read(name)
    for outside in ("../top.txt", "/etc/passwd", "a/../../top.txt", "", "a\\b", "a\0b"):
        for call in (storage.read, lambda name: storage.absent([name])):
            with pytest.raises(DataError):
                call(outside)


def test_absent_lists_each_folder_once(tmp_path, monkeypatch):
    """3,000 names in 30 folders, and a link that leads nowhere, cost 30 listings and no stat of a file."""
    names = [f"scene_{i % 30:03d}/{i:06d}.png" for i in range(3_000)]
    for name in names[:100]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / names[100]).symlink_to(tmp_path / names[0])
    (tmp_path / names[101]).symlink_to(tmp_path / "nowhere")
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("a look at a single file"))
    assert FolderStorage(tmp_path).absent(names) == names[101:]
    assert len(listed) == 30


@pytest.mark.parametrize("place", ["beside", "read-only"])
def test_the_index_of_a_tar_is_kept_and_renewed(tmp_path, monkeypatch, home, place):
    path = write_tar(tmp_path / "root.tar")
    if place == "read-only":
        (tmp_path / "root.tar.index").mkdir()  # no file can take its place, as where nothing may be written
    open_storage(path, cache_index=False)
    assert not [file for file in (*tmp_path.iterdir(), *home.rglob("*")) if file.is_file() and file != path]
    open_storage(path)
    (index,) = [file for file in (*tmp_path.iterdir(), *home.rglob("*")) if file.is_file() and file != path]
    assert (index.parent == tmp_path) == (place == "beside")
    (tmp_path / "link.tar").symlink_to(path)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *_: pytest.fail("read through again"))
        patch.setattr(tarfile, "is_tarfile", lambda _: True)
        assert open_storage(tmp_path / "link.tar").read(LARGE) == FILES[LARGE]
    whole = index.read_bytes()
    for damaged in (b"", whole[:200], b"nonsense", b"[]", b"\x93NUMPY"):
        index.write_bytes(damaged)
        assert open_storage(path).read("top.txt") == b"top"
        assert index.read_bytes() == whole
    for order in ("xy", "yx"):  # another archive of the same size
        write_tar(path, files={name: name.encode() for name in order})
        os.utime(path, ns=(1, 10**18 + ord(order[0])))
        storage = open_storage(path)
        assert (storage.read("x"), storage.read("y")) == (b"x", b"y")


def test_links_and_pipes_in_a_folder(tmp_path):
    root = write_folder(tmp_path / "root")
    (tmp_path / "secret").write_text("secret")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    (root / "inside").symlink_to("top.txt")
    os.mkfifo(root / "pipe")  # must not block
    (tmp_path / "other").symlink_to(root)  # the root itself may be one
    storage = FolderStorage(tmp_path / "other")
    assert storage.read("inside") == storage.read("top.txt") == b"top"
    for name in ("out", "up/secret", "pipe"):
        with pytest.raises(DataError, match=name):
            storage.read(name)


HOSTILE = [
    tar_member("../../etc/passwd"),
    tar_member("/etc/passwd"),
    tar_member("a/../../x"),
    tar_member("hard", kind=tarfile.LNKTYPE, target="/etc/passwd"),
    tar_member("soft", kind=tarfile.SYMTYPE, target="../../secret"),
    tar_member("pipe", kind=tarfile.FIFOTYPE),
    tar_member("null", kind=tarfile.CHRTYPE),
]


@pytest.mark.parametrize("member", HOSTILE, ids=lambda member: member[0].name)
def test_hostile_tars(tmp_path, member):
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        archive.addfile(*member)
    with pytest.raises(DataError, match=r"bad\.tar") as caught:
        open_storage(tmp_path / "bad.tar")
    assert member[0].name in str(caught.value)


UNREADABLE = {
    "nothing.tar": lambda path: None,
    "text.tar": lambda path: path.write_text("not a tar"),
    "zero.tar": lambda path: path.write_bytes(b""),
    "empty.tar": lambda path: write_tar(path, files={}),
    "cut.tar": lambda path: path.write_bytes(write_tar(path).read_bytes()[:60_000]),
    "cut_in_a_header.tar": lambda path: path.write_bytes(write_tar(path).read_bytes()[:-10_000] + b"x" * 700),
    "compressed.tar.gz": lambda path: write_tar(path, mode="w:gz"),
    "cut.zip": lambda path: path.write_bytes(write_zip(path).read_bytes()[:-30]),
    "lzma.zip": lambda path: write_zip(path, zipfile.ZIP_LZMA),
    "outside.zip": lambda path: write_zip(path, files={"../evil": b"x"}),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_archives_that_cannot_be_read(tmp_path, name):
    UNREADABLE[name](tmp_path / name)
    with pytest.raises(DataError, match=name):
        open_storage(tmp_path / name)


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_an_archive_that_shrinks_while_it_is_open(tmp_path, write):
    storage = open_storage(write(tmp_path / "root"))
    os.truncate(tmp_path / "root", 2048)
    with pytest.raises(DataError, match=LARGE):
        storage.read(LARGE)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_no_flipped_bit_in_a_zip_goes_unseen(tmp_path, compression):
    """Neither in the data nor in the signature and the lengths of the member's own header."""
    data = b"some bytes" * 5
    path = write_zip(tmp_path / "x.zip", compression, {"x": data})
    whole = path.read_bytes()
    end = whole.index(b"PK\x01\x02")
    start = whole.rindex(b"PK\x03\x04", 0, end)
    positions = [*range(start, start + 4), *range(start + 26, start + 30), *range(start + 31, end)]
    unseen = 0
    for position in positions:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with suppress(DataError):
            assert open_storage(path).read("x") == data
            unseen += 1
    assert unseen == 0 or compression == zipfile.ZIP_DEFLATED  # whose last bits change no byte


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


def test_layers_below_prefixes(tmp_path):
    layers = [("rgb/", open_storage(write_tar(tmp_path / "root.tar"))), ("depth/", FolderStorage(tmp_path))]
    layered = LayeredStorage(layers)
    assert layered.read("rgb/top.txt") == b"top"
    assert layered.read("./depth/root.tar") == (tmp_path / "root.tar").read_bytes()
    assert len(layered.names()) == len(FILES) + 2  # the tar and its index
    names = ["top.txt", "./depth/none", "rgb/top.txt", "rgb", "depth/root.tar", "rgb/a", "other/top.txt"]
    gone = ["top.txt", "./depth/none", "rgb", "rgb/a", "other/top.txt"]
    assert layered.absent(names) == gone
    for name in gone:
        with pytest.raises(MissingDataError, match=name.rpartition("/")[2]):
            layered.read(name)


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_a_folder_stands_for_the_archives_in_it(tmp_path, suffix):
    write = {"tar": write_tar, "zip": write_zip}[suffix]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / f"set.{suffix}").symlink_to(write(tmp_path / f"set.{suffix}"))
    write_tar(folder / "val.tar", files={"val/empty.txt": b""})
    (folder / "top.txt").write_text("of the folder")
    storage = pickle.loads(pickle.dumps(open_storage(folder)))
    assert storage.read("top.txt") == b"of the folder"
    assert storage.read(LARGE) == FILES[LARGE]
    assert storage.read("val/empty.txt") == b""
    assert {*FILES, "val/empty.txt"} <= set(storage.names())
    assert storage.absent(["val/empty.txt", "x", *FILES, "a/none", "a"]) == ["x", "a/none", "a"]
    with pytest.raises(MissingDataError, match=rf"data/a/none.*set\.{suffix}:a/none.*val\.tar:a/none"):
        storage.read("a/none")


def test_an_archive_is_opened_only_for_what_the_folder_lacks(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nowhere.tar")
    storage = open_storage(tmp_path)
    assert storage.absent(FILES) == []
    assert storage.read("top.txt") == b"top"
    with pytest.raises(DataError, match=r"gone\.tar"):
        storage.absent(["other.txt"])


@pytest.mark.parametrize(("name", "plain"), [("a/b", "a/b"), ("./a//b/.", "a/b"), ("././a", "a")])
def test_relative_name(name, plain):
    assert relative_name(name) == plain
