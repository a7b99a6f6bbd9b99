"""Split lists: reading, hashing, the rules that generate them, and the hashes of the official lists."""

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import TypeVar

from marigold.data.errors import DataError, MissingDataError
from marigold.data.storage import relative_name

log = logging.getLogger(__name__)
T = TypeVar("T")

Line = tuple[str, ...]


@dataclass(frozen=True)
class SplitInfo:
    """The list that a result was measured on.

    `sha256` is the canonical hash of its `count` lines. `official`: whether this is the official list, None when none
    is named; a result on another list is stamped "unofficial split". `part`: only some of the list's lines.
    """

    name: str
    path: str
    count: int
    sha256: str
    official: bool | None
    part: bool = False


@dataclass(frozen=True)
class KnownSplit:
    """An official list: its number of lines and canonical sha256."""

    count: int
    sha256: str


# The lists behind the published numbers (prs-eth/Marigold at b1dffaa), hashed by `canonical_sha256`.
KNOWN_SPLITS = {
    "hypersim/train": KnownSplit(53_885, "9ec63e4c60b630549bc80814185b3f05416f1ff09f3aab9a56a0a52bf8fccd92"),
    "hypersim/val": KnownSplit(7370, "33b57e3d266f60a3015cab8155cd0991594b03b9e03987df1c69a6b982b601e1"),
    "hypersim/test": KnownSplit(7682, "fa391ee406f8452b9d5cea543db4e31779d3211a91fb759a2c3790b3d7689182"),
    "hypersim/val_small_80": KnownSplit(80, "3dde2499f3b11490b7c41c9b8c737fd0e41c4ff3d90c0361392e0ce70548468e"),
    "hypersim/vis_3": KnownSplit(3, "6e4b25823c9236c57fc88da0ceb3770989dec20bacc726b01fc7516324c25819"),
    "vkitti/train": KnownSplit(20_148, "9a2a672f7aad0ef85681d641d8e1c39b92b2ee75cc74e5766c8caff77e131698"),
    "vkitti/val": KnownSplit(5364, "aba48eae92b5a25bd7ae8d29b98ba0dd74d31515665804769ddedef7b2d8ac4e"),
    "nyu/train": KnownSplit(795, "543a25ba60046999d25c6d279f0d69b0a4bf29fd5c0e01dd33d33bae9b941387"),
    "nyu/test": KnownSplit(654, "3a82c47eac33b4ba5b27584c5df4e9cc6331853d757df7670c2d02217fa85c5c"),
    "nyu/train_small_100": KnownSplit(100, "9ec4945d30061831086e8416071f0ef7805090e9157fcf4bbd3efccc41f4ddd5"),
    "kitti/eigen_test": KnownSplit(697, "ad7de5c328cd4a0bdfce972cf3b2291d076e4f9bb6337d1ce4e214eba08010ad"),
    "kitti/eigen_val_800": KnownSplit(800, "94ec7616e640134dfaed617201aecf9a0201832f799875e71995e9594a0dddf1"),
    "kitti/eigen_val_100": KnownSplit(100, "37c19cd1d536f92b18655f980d134a48964e61a105c0e8c47a93600f27ff1fed"),
    "eth3d/all": KnownSplit(454, "db927bb12de946a01efdad32c83e333a26752efc0bee0ce3d44f4a4a4beab33f"),
    "scannet/val_800": KnownSplit(800, "59209de9edc09f286f09e29c38b79ae1f9bfaefbf4d9ba8b8d13b124892476f0"),
    "diode/val": KnownSplit(771, "c03a9c61547351cdf2ed98448612adf10b011d8f7361d4d3fc6e85204e9825a2"),
    "diode/val_indoor": KnownSplit(325, "b0497d97031be517b279df9eb43f507224b645249bb2c627187bbe89db6047d4"),
    "diode/val_outdoor": KnownSplit(446, "73fa895ebadf517c58b6f1c8d292497bb10c4e3223592dc0d00a205e487c52cf"),
}

# Virtual KITTI 2: the last frame of each scene. Fog, rain and the 30 degree cameras are left out.
VKITTI_LAST_FRAMES = {"Scene01": 446, "Scene02": 232, "Scene06": 269, "Scene18": 338, "Scene20": 836}
VKITTI_SPLITS = {"train": ("Scene02", "Scene06", "Scene18", "Scene20"), "val": ("Scene01",)}
VKITTI_VARIATIONS = ("clone", "morning", "overcast", "sunset", "15-deg-left", "15-deg-right")
VKITTI_CAMERAS = (0, 1)


def canonical_sha256(lines: Iterable[str]) -> str:
    """The hash of a list, independent of its order, blank lines and line endings.

    White space collapses to one blank; non-empty lines are sorted by code point and each ends in a newline.
    """
    canonical = sorted(" ".join(line.split()) for line in lines if line.strip())
    return hashlib.sha256("".join(f"{line}\n" for line in canonical).encode()).hexdigest()


def read_split(path: str | Path, *, columns: int = 1) -> list[Line]:
    """The columns of each line of a list file; blank lines are skipped.

    Raises DataError, naming file and line, for fewer than `columns` columns, a name that is absolute or
    leaves the root by `..`, a first column that came before, and a file that is empty or not text.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingDataError(f"{path}: no such split list") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file ({error.reason} at byte {error.start})") from error
    lines: list[Line] = []
    first_seen: dict[str, int] = {}
    for number, raw in enumerate(text.split("\n"), 1):
        line = tuple(raw.split())
        if not line:
            continue
        where = f"{path}, line {number}"
        if len(line) < columns:
            raise DataError(f"{where}: {len(line)} column(s), expected {columns}: {raw.strip()!r}")
        for column in line:
            try:  # a list may come from anywhere, and files of these names are opened, linked and written
                relative_name(column)
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
        if line[0] in first_seen:  # the rows of a result are found by this name
            raise DataError(f"{where}: {line[0]!r} is already in line {first_seen[line[0]]}")
        first_seen[line[0]] = number
        lines.append(line)
    if not lines:
        raise DataError(f"{path}: an empty split list")
    return lines


def describe_split(path: str | Path, lines: Sequence[Line], official_name: str | None) -> SplitInfo:
    """Hash the lines and compare them with the official list `official_name`, a key of KNOWN_SPLITS.

    A list that differs is no error; `official` is then False. Raises DataError for a name that is not known.
    """
    sha256 = canonical_sha256(" ".join(line) for line in lines)
    if official_name is None:
        return SplitInfo(Path(path).stem, str(path), len(lines), sha256, None)
    if official_name not in KNOWN_SPLITS:
        raise DataError(f"{path}: no known list has the name {official_name!r}; known: {', '.join(KNOWN_SPLITS)}")
    return SplitInfo(official_name, str(path), len(lines), sha256, sha256 == KNOWN_SPLITS[official_name].sha256)


@cache
def log_official(split: SplitInfo) -> None:
    """Log whether a list is the official one, with both counts and hashes if not; once a command and list."""
    if split.official is None:
        return
    if split.official:
        log.info("%s: official split %s, %d lines", split.path, split.name, split.count)
        return
    ours, known = f"{split.count} lines with sha256 {split.sha256}", KNOWN_SPLITS[split.name]
    official = f"{known.count} with {known.sha256}"
    log.warning("%s: not the official split %s: %s, official %s", split.path, split.name, ours, official)


def part_of_split(split: SplitInfo, lines: Sequence[Line]) -> SplitInfo:
    """The description of some of a split's lines, which are never an official split."""
    sha256 = canonical_sha256(" ".join(line) for line in lines)
    official = None if split.official is None else False
    name = f"{split.name}[{len(lines)}]"
    return replace(split, name=name, count=len(lines), sha256=sha256, official=official, part=True)


def evenly_spaced(lines: Sequence[T], n: int) -> list[T]:
    """`n` of the lines at equal distances: line floor(i * len / n) for i in 0..n-1."""
    if not 1 <= n <= len(lines):
        raise ValueError(f"cannot take {n} of {len(lines)} lines evenly; ask for 1 to {len(lines)}")
    # In integers: rounded steps could take a line twice.
    return [lines[i * len(lines) // n] for i in range(n)]


def vkitti_lines(split: str) -> list[str]:
    """The list of Virtual KITTI 2's `train` or `val` by its rule, in the published order."""
    return [
        f"rgb/{scene}/{variation}/frames/rgb/Camera_{camera}/rgb_{frame:05d}.jpg "
        f"depth/{scene}/{variation}/frames/depth/Camera_{camera}/depth_{frame:05d}.png"
        for scene, variation, camera in product(VKITTI_SPLITS[split], VKITTI_VARIATIONS, VKITTI_CAMERAS)
        for frame in range(VKITTI_LAST_FRAMES[scene] + 1)
    ]
