"""Folder, tar and zip give the same bytes; archives that are damaged or hostile are refused by name."""

import io
import os
import pickle
import tarfile
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from marigold.data import archive_index
from marigold.data.errors import DataError
from marigold.data.storage import FolderStorage, MountedStorage, open_storage, relative_name

FILES = {f"a/b{i % 3}/{i:03d}.bin": bytes([i]) * (700 * i) for i in range(40)} | {
    "top.txt": b"top",
    "ä/ö.txt": b"umlaut",
}


@pytest.fixture(autouse=True)
def cache_folder(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(archive_index, "_CACHE_FOLDER", tmp_path_factory.mktemp("cache"))


def write_folder(root: Path) -> Path:
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_tar(path: Path, prefix: str = "", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        folder = tarfile.TarInfo(prefix + "a")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in FILES.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_zip(path: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("a/", "")
        for name, data in FILES.items():
            archive.writestr(name, data)
    return path


@pytest.fixture(params=["folder", "tar", "tar with ./", "zip", "stored zip"])
def root(request, tmp_path) -> Path:
    if request.param == "folder":
        return write_folder(tmp_path / "root")
    if request.param.startswith("tar"):
        return write_tar(tmp_path / "root.tar", "./" if "./" in request.param else "")
    return write_zip(tmp_path / "root.zip", zipfile.ZIP_STORED if "stored" in request.param else zipfile.ZIP_DEFLATED)


def test_every_storage_gives_the_same_bytes(root):
    storage = open_storage(root)
    assert list(storage.names()) == sorted(FILES)
    for name, data in FILES.items():
        assert storage.read(name) == data
        assert storage.read(f"./{name}") == data
    with pytest.raises(DataError, match=r"a/none\.bin"):
        storage.read("a/none.bin")
    with pytest.raises(DataError):
        storage.read("a")
    for outside in ("../top.txt", "/etc/passwd", "a/../../top.txt", "", "a\\b"):
        with pytest.raises(DataError, match="not a relative name"):
            storage.read(outside)
        with pytest.raises(DataError, match="not a relative name"):
            storage.absent([outside])


def test_threads_and_a_fork_read_at_once(root):
    storage = open_storage(root)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(storage.read, list(FILES) * 5)) == list(FILES.values()) * 5
    child = os.fork()
    if child == 0:  # a forked worker shares the descriptor and must not disturb the parent
        os._exit(0 if all(storage.read(name) == data for name, data in FILES.items()) else 1)
    assert all(storage.read(name) == data for name, data in FILES.items())
    assert os.waitpid(child, 0)[1] == 0


def test_a_pickle_opens_again(root):
    storage = pickle.loads(pickle.dumps(open_storage(root)))
    assert storage.read("top.txt") == b"top"
    assert len(pickle.dumps(storage)) < 1000  # no file content, no index


def test_the_index_is_kept_and_renewed(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "root.tar")
    open_storage(path)
    assert (tmp_path / "root.tar.index").exists()
    with monkeypatch.context() as patch:
        patch.setattr(archive_index, "_build", lambda path: pytest.fail("indexed again"))
        assert open_storage(path).read("top.txt") == b"top"


def test_another_archive_of_the_same_size_is_indexed_again(tmp_path):
    path = tmp_path / "root.tar"
    for order in ("xy", "yx"):
        with tarfile.open(path, "w") as archive:
            for name in order:
                member = tarfile.TarInfo(name)
                member.size = 1
                archive.addfile(member, io.BytesIO(name.encode()))
        os.utime(path, ns=(1, 10**18 + ord(order[0])))
        storage = open_storage(path)
        assert (storage.read("x"), storage.read("y")) == (b"x", b"y")


def test_a_damaged_index_is_built_again(tmp_path):
    path = write_tar(tmp_path / "root.tar")
    open_storage(path)
    index = tmp_path / "root.tar.index"
    for damaged in (b"", index.read_bytes()[:200], b"nonsense"):
        index.write_bytes(damaged)
        assert open_storage(path).read("top.txt") == b"top"


def test_no_place_beside_the_archive(tmp_path):
    # A folder in the index's place cannot be replaced by a file, as in a folder that cannot be written.
    path = write_tar(tmp_path / "root.tar")
    (tmp_path / "root.tar.index").mkdir()
    assert open_storage(path).read("top.txt") == b"top"
    assert [file.suffix for file in archive_index._CACHE_FOLDER.iterdir()] == [".index"]
    assert open_storage(path).read("top.txt") == b"top"


def test_a_read_only_folder():
    with tempfile.TemporaryDirectory() as made:  # pytest's own folders are closed to other users
        path = write_tar(Path(made, "root.tar"))
        Path(made).chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may write anywhere
        try:
            with pytest.raises(PermissionError):
                Path(made, "file").touch()
            assert open_storage(path).read("top.txt") == b"top"
        finally:
            os.seteuid(user)
            Path(made).chmod(0o755)


def test_no_such_root(tmp_path):
    with pytest.raises(DataError, match="no such folder or archive"):
        open_storage(tmp_path / "nothing")
    (tmp_path / "text.tar").write_text("not a tar")
    with pytest.raises(DataError, match=r"text\.tar: neither a folder, a tar nor a zip"):
        open_storage(tmp_path / "text.tar")
    (tmp_path / "empty.tar").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.tar"):
        open_storage(tmp_path / "empty.tar")


def test_a_symbolic_link_out_of_the_root(tmp_path):
    root = write_folder(tmp_path / "root")
    (tmp_path / "secret").write_text("secret")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    (root / "inside").symlink_to("top.txt")
    storage = FolderStorage(root)
    for name in ("out", "up/secret"):
        with pytest.raises(DataError, match=f"{name}: a symbolic link out of"):
            storage.read(name)
    assert storage.read("inside") == b"top"
    (tmp_path / "other").symlink_to(root)  # the root itself may be one
    assert FolderStorage(tmp_path / "other").read("top.txt") == b"top"


def test_a_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe: not a file"):
        FolderStorage(tmp_path).read("pipe")


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (special("../../etc/passwd", tarfile.REGTYPE), "outside the archive"),
        (special("/etc/passwd", tarfile.REGTYPE), "outside the archive"),
        (special("a/../../x", tarfile.REGTYPE), "outside the archive"),
        (special("hard", tarfile.LNKTYPE, "/etc/passwd"), "a link to '/etc/passwd'"),
        (special("soft", tarfile.SYMTYPE, "../../secret"), "a link to"),
        (special("pipe", tarfile.FIFOTYPE), "not a plain file"),
        (special("null", tarfile.CHRTYPE), "not a plain file"),
    ],
)
def test_hostile_tars(tmp_path, member, reason):
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(member)
    with pytest.raises(DataError, match=reason) as caught:
        open_storage(path)
    assert str(path) in str(caught.value)
    assert member.name in str(caught.value)


def test_a_zip_with_a_name_outside(tmp_path):
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr("../evil", "x")
    with pytest.raises(DataError, match="outside the archive"):
        open_storage(tmp_path / "bad.zip")


def test_cut_and_compressed_tars(tmp_path):
    path = write_tar(tmp_path / "root.tar")
    path.write_bytes(path.read_bytes()[:60_000])
    with pytest.raises(DataError, match=r"root\.tar.*(ends in the middle|damaged)"):
        open_storage(path)
    with pytest.raises(DataError, match="unpack it"):
        open_storage(write_tar(tmp_path / "root.tar.gz", mode="w:gz"))


def test_an_archive_that_shrinks_after_indexing(tmp_path):
    path = write_tar(tmp_path / "root.tar")
    storage = open_storage(path)
    os.truncate(path, 2048)
    with pytest.raises(DataError, match="ends in the middle"):
        storage.read("a/b0/039.bin")


def test_damaged_zip_data(tmp_path):
    path = write_zip(tmp_path / "root.zip", zipfile.ZIP_STORED)
    data = path.read_bytes()
    at = data.index(bytes([20]) * 700)
    path.write_bytes(data[:at] + b"!" + data[at + 1 :])
    with pytest.raises(DataError, match=r"020\.bin: checksum mismatch"):
        open_storage(path).read("a/b2/020.bin")
    path.write_bytes(data[:-30])
    with pytest.raises(DataError, match=r"root\.zip"):
        open_storage(path)


def test_a_file_beyond_the_size_limit(root):
    storage = open_storage(root, max_file_bytes=10_000)
    with pytest.raises(DataError, match=r"039\.bin: 27,300 bytes, more than the limit of 10,000"):
        storage.read("a/b0/039.bin")
    assert storage.read("a/b0/003.bin") == FILES["a/b0/003.bin"]


def test_a_zip_bomb_that_lies_about_its_size(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", bytes(50_000_000))
    data = path.read_bytes()
    assert len(data) < 60_000
    true, false = (50_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    path.write_bytes(data.replace(true, false))
    start = time.process_time()
    with pytest.raises(DataError, match="more data than the 1,000 bytes promised"):
        open_storage(path).read("bomb")
    assert time.process_time() - start < 0.5  # it stopped after 1,001 bytes


def test_unreadable_zip_methods(tmp_path):
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x", "x")
    with pytest.raises(DataError, match="only stored and deflated"):
        open_storage(tmp_path / "lzma.zip")


def test_mounted_storages(tmp_path):
    write_tar(tmp_path / "root.tar")
    mounted = MountedStorage(
        {"rgb": open_storage(tmp_path / "root.tar"), "depth": FolderStorage(write_folder(tmp_path / "f"))}
    )
    assert mounted.read("rgb/top.txt") == mounted.read("./depth/top.txt") == b"top"
    assert len(mounted.names()) == 2 * len(FILES)
    with pytest.raises(DataError, match="expected a name below depth, rgb"):
        mounted.read("top.txt")
    names = ["top.txt", "./depth/none", "rgb/top.txt", "rgb", "depth/top.txt", "rgb/a", "other/top.txt"]
    assert mounted.absent(names) == ["top.txt", "./depth/none", "rgb", "rgb/a", "other/top.txt"]


def test_absent_names_what_read_would_not_find(root):
    storage = open_storage(root)
    wanted = [*FILES, "./top.txt", "a/none.bin", "a", "a/b0", "top.txt/x", "none/x", "./a/none.bin", "a/none.bin"]
    missing = storage.absent(iter(wanted))
    assert missing == ["a/none.bin", "a", "a/b0", "top.txt/x", "none/x", "./a/none.bin", "a/none.bin"]
    for name in missing:
        with pytest.raises(DataError):
            storage.read(name)


def test_absent_lists_each_folder_once(tmp_path, monkeypatch):
    """75,000 names in 75 folders, and a link that leads nowhere, cost 75 listings and no stat of a file."""
    names = [f"scene_{i % 75:03d}/{i:06d}.png" for i in range(75_000)]
    for name in names[:75]:
        (tmp_path / name).parent.mkdir()
    for name in names[:3_000]:
        (tmp_path / name).touch()
    (tmp_path / names[3_000]).symlink_to(tmp_path / names[0])
    (tmp_path / names[3_001]).symlink_to(tmp_path / "nowhere")
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    monkeypatch.setattr(os, "stat", lambda *_, **__: pytest.fail("a look at a single file"))
    assert FolderStorage(tmp_path).absent(names) == names[3_001:]
    assert len(listed) == 75


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_a_folder_stands_for_the_archives_in_it(tmp_path, suffix):
    write = {"tar": write_tar, "zip": write_zip}[suffix]
    elsewhere, folder = tmp_path / "downloads", tmp_path / "data"
    elsewhere.mkdir()
    folder.mkdir()
    (folder / f"set.{suffix}").symlink_to(write(elsewhere / f"set.{suffix}"))
    with tarfile.open(folder / "val.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("./val/empty.txt"), io.BytesIO())
    (folder / "top.txt").write_text("of the folder")
    storage = pickle.loads(pickle.dumps(open_storage(folder)))
    assert storage.read("top.txt") == b"of the folder"
    assert storage.read("a/b1/001.bin") == FILES["a/b1/001.bin"]
    assert storage.read("val/empty.txt") == b""
    assert {*FILES, "val/empty.txt"} <= set(storage.names())
    assert storage.absent(["val/empty.txt", "x", *FILES, "a/none"]) == ["x", "a/none"]
    with pytest.raises(DataError, match=rf"data/a/none: No such file.*set\.{suffix}:a/none: no such.*val\.tar:a/none"):
        storage.read("a/none")
    assert storage.absent(["a"]) == ["a"]


def test_an_archive_is_opened_only_for_what_the_folder_lacks(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nowhere.tar")
    storage = open_storage(tmp_path)
    assert storage.absent(FILES) == []
    assert storage.read("top.txt") == b"top"
    with pytest.raises(DataError, match=r"gone\.tar: No such file"):
        storage.absent(["other.txt"])


def test_the_index_of_an_archive_serves_its_links(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "root.tar")
    open_storage(path, cache_index=False)
    assert list(tmp_path.iterdir()) == [path]
    open_storage(path)
    (tmp_path / "link.tar").symlink_to(path)
    monkeypatch.setattr(archive_index, "_build", lambda path: pytest.fail("indexed again"))
    assert open_storage(tmp_path / "link.tar").read("top.txt") == b"top"


@pytest.mark.parametrize(("name", "plain"), [("a/b", "a/b"), ("./a//b/.", "a/b"), ("././a", "a")])
def test_relative_name(name, plain):
    assert relative_name(name) == plain


@pytest.mark.slow
def test_the_paper_sets_size(tmp_path):
    """54,000 pairs in one tar: the index loads in far less than 3 s and holds little memory."""
    names = [
        f"ai_{i // 1000:03d}_{i % 100:03d}/{kind}_cam_00_fr{i:05d}.png"
        for i in range(54_000)
        for kind in ("rgb", "depth_plane")
    ]
    path = tmp_path / "large.tar"
    with open(path, "wb") as file:
        for name in names:
            member = tarfile.TarInfo(name)
            file.write(member.tobuf(tarfile.USTAR_FORMAT))
        file.write(bytes(1024))
    open_storage(path)
    start = time.process_time()
    storage = open_storage(path)
    assert time.process_time() - start < 1  # of the processor: a busy machine is no failure
    assert storage._index._table.nbytes < 20e6
    assert storage.read(names[77_777]) == b""
