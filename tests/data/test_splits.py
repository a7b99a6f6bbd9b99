"""Lists by rule match the hashes of the field's lists; bad lists are refused with file and line."""

import hashlib
from pathlib import Path

import pytest

from marigold.data.errors import DataError
from marigold.data.splits import (
    KNOWN_SPLITS,
    canonical_sha256,
    describe_split,
    evenly_spaced,
    log_official,
    part_of_split,
    read_split,
    vkitti_lines,
)

COMMITTED = Path(__file__).parents[2] / "data_split"


@pytest.mark.parametrize(("split", "count"), [("train", 20148), ("val", 5364)])
def test_virtual_kitti_lists_match_the_published_ones(split, count):
    lines = vkitti_lines(split)
    assert len(lines) == count
    assert canonical_sha256(lines) == KNOWN_SPLITS[f"vkitti/{split}"].sha256
    # The order is the published one too: the hash of the lines as they stand.
    in_order = {
        "train": "ab29b106fa6dbea810e0ea2e4ebf09393db19faca2648b307f6e018a1bd94bf0",
        "val": "e837eada4ac3bf3de58d08a53f9bc8dcec83505fd358388b7c67c79f7f8a9ada",
    }
    assert hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest() == in_order[split]
    assert (COMMITTED / "vkitti" / f"{split}.txt").read_text().splitlines() == lines


def test_canonical_hash_by_hand():
    # printf 'a b\nc\n' | sha256sum
    expected = hashlib.sha256(b"a b\nc\n").hexdigest()
    assert canonical_sha256(["c", "", "  a \t b  "]) == canonical_sha256(["a b\r", "c\n"]) == expected


def test_evenly_spaced():
    assert evenly_spaced("abcdefghij", 3) == ["a", "d", "g"]
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"{n} of 3"):
            evenly_spaced("abc", n)


@pytest.mark.parametrize("line", ["b.png", "b.png ../d.png", "a.png other.png"])
def test_bad_lines_are_named(tmp_path, line):
    path = tmp_path / "list.txt"
    path.write_text("a.png  a_d.png 721.5\r\n\n")
    assert read_split(path, columns=2) == [("a.png", "a_d.png", "721.5")]
    path.write_text(f"{path.read_text()}{line}\n")
    with pytest.raises(DataError, match=r"list\.txt, line 3"):
        read_split(path, columns=2)


def test_bad_files(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "list.txt").write_text("\n \n")
    for name in ("none.txt", "list.txt", "binary.txt", ""):
        with pytest.raises(DataError, match=str(tmp_path / name)):
            read_split(tmp_path / name)


def test_official_or_not(tmp_path, caplog):
    lines = [tuple(line.split()) for line in vkitti_lines("val")]
    path = tmp_path / "val.txt"
    split = describe_split(path, lines, "vkitti/val")
    log_official(split)
    assert (split.name, split.count, split.official) == ("vkitti/val", 5364, True)
    assert describe_split(path, lines, None).official is None
    caplog.clear()
    other = describe_split(path, lines[1:], "vkitti/val")
    log_official(other)
    assert other.official is False
    assert all(part in caplog.text for part in (str(path), "5363", "5364", other.sha256, split.sha256))
    part = part_of_split(split, lines[:10])
    assert (part.name, part.count, part.official, part.part) == ("vkitti/val[10]", 10, False, True)
    with pytest.raises(DataError, match="vkitti/all"):
        describe_split(path, lines, "vkitti/all")
