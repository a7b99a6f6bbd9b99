"""Round trips: a tree of a set's real layout with its real number of files -> the lists of its rule."""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from marigold.config import build
from marigold.data.errors import DataError
from marigold.data.preparation.archives import diode_lists, eth3d_lists, kitti_lists, nyu_lists, scannet_lists
from marigold.data.splits import KNOWN_SPLITS, KnownSplit, canonical_sha256

CONFIGS = Path(__file__).parents[3] / "configs"


def prepare(dataset: str, archive: Path, out: Path, *overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose("prepare", [f"dataset={dataset}", f"prepare.archive={archive}", f"out={out}", *overrides])
    return build(config.prepare, "prepare")


def write_tar(path: Path, names: Iterable[str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(f"./{name}"), io.BytesIO())
    return path


# The published counts, per scene and scan (DIODE) and per scene (ETH3D).
DIODE_SCANS = {
    "indoors": {
        19: {183: 73},
        20: {184: 27, 185: 29, 186: 48, 187: 33},
        21: {188: 25, 189: 22, 190: 25, 191: 18, 192: 25},
    },
    "outdoor": {
        22: {193: 51, 194: 44, 195: 52, 196: 53, 197: 61},
        23: {198: 27, 199: 38, 200: 40},
        24: {201: 43, 202: 37},
    },
}
ETH3D_COUNTS = {
    "courtyard": 38,
    "delivery_area": 44,
    "electro": 45,
    "facade": 76,
    "kicker": 31,
    "meadow": 15,
    "office": 26,
    "pipes": 14,
    "playground": 38,
    "relief": 31,
    "relief_2": 31,
    "terrace": 23,
    "terrains": 42,
}


def diode_names() -> list[str]:
    names = []
    for kind, scenes in DIODE_SCANS.items():
        for scene, scans in scenes.items():
            for scan, count in scans.items():
                for i in range(count):
                    yaw, pitch = 10 * (i % 36), 10 * (i // 36)
                    stem = (
                        f"{kind}/scene_{scene:05d}/scan_{scan:05d}/{scene:05d}_{scan:05d}_{kind}_{yaw:03d}_{pitch:03d}"
                    )
                    names += [f"{stem}.png", f"{stem}_depth.npy", f"{stem}_depth_mask.npy"]
    return names


def test_diode(tmp_path):
    archive = write_tar(tmp_path / "diode_val.tar", [*diode_names(), "diode_meta.json"])
    summary = prepare("diode", archive, tmp_path / "out")
    counts = {Path(result.split.path).name: result.split.count for result in summary.lists}
    assert counts == {"filename_list_all.txt": 771, "filename_list_indoor.txt": 325, "filename_list_outdoor.txt": 446}
    first = (tmp_path / "out/filename_list_indoor.txt").read_text().splitlines()[0].split()
    stem = "indoors/scene_00019/scan_00183/00019_00183_indoors_000_000"
    assert first == [f"{stem}.png", f"{stem}_depth.npy", f"{stem}_depth_mask.npy"]


def test_a_listed_file_that_is_not_there(tmp_path):
    archive = write_tar(tmp_path / "diode_val.tar", diode_names()[:-1])
    with pytest.raises(DataError, match=r"1 listed file\(s\) are not in it: outdoor/.*_depth_mask\.npy"):
        prepare("diode", archive, tmp_path / "out")
    archive = write_tar(tmp_path / "other.tar", ["readme.txt"])
    for dataset in ("diode", "nyu", "kitti", "eth3d", "scannet"):
        with pytest.raises(DataError, match="none of its 1 members"):
            prepare(dataset, archive, tmp_path / "out")


def test_dry_run_writes_nothing(tmp_path):
    archive = write_tar(tmp_path / "diode_val.tar", diode_names())
    assert "771 images" in prepare("diode", archive, tmp_path / "out", "dry_run=true").text()
    assert list(tmp_path.iterdir()) == [archive]  # no index either


def test_an_unpacked_archive_is_listed_where_it_is(tmp_path):
    folder = tmp_path / "diode"
    for name in diode_names()[:3]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    with pytest.raises(DataError, match=f"a folder is read where it is: give out={folder} too"):
        prepare("diode", folder, tmp_path / "out")
    assert prepare("diode", folder, folder).lists[0].split.count == 1
    archive = write_tar(tmp_path / "diode_val.TAR", diode_names())
    with pytest.raises(DataError, match=r"diode_val\.TAR: readers look for archives named \*\.tar or \*\.zip"):
        prepare("diode", archive, tmp_path / "out")


def test_eth3d():
    names, number = [], 200
    for i in range(max(ETH3D_COUNTS.values())):
        for scene, count in ETH3D_COUNTS.items():
            if i < count:
                number += 1
                names.append(f"rgb/{scene}/images/dslr_images/DSC_{number:04d}.JPG")
                names.append(f"depth/{scene}_dslr_depth/{scene}/ground_truth_depth/dslr_images/DSC_{number:04d}.JPG")
    (planned,) = eth3d_lists(sorted(names))
    assert len(planned.lines) == KNOWN_SPLITS[planned.official].count
    assert [line.split() for line in planned.lines] == [
        list(pair) for pair in zip(names[::2], names[1::2], strict=True)
    ]


def test_nyu():
    names = []
    for number in range(1, 1450):
        split, scene = ("test" if number % 2 == 0 and number <= 1308 else "train"), f"office_{number % 464:04d}"
        names += [f"{split}/{scene}/{kind}_{number:04d}.png" for kind in ("rgb", "depth", "filled")]
    lists = {planned.file: planned for planned in nyu_lists(sorted(names))}
    assert [len(planned.lines) for planned in lists.values()] == [795, 654]
    line = lists["filename_list_test.txt"].lines[1]
    assert line == "test/office_0004/rgb_0004.png test/office_0004/depth_0004.png test/office_0004/filled_0004.png"


def kitti_names(count: int, with_depth: int) -> list[str]:
    names = []
    for i in range(count):
        date = ("2011_09_26", "2011_10_03")[i % 2]
        names.append(f"{date}/{date}_drive_0002_sync/image_02/data/{i:010d}.png")
        if i < with_depth:
            names.append(f"{date}_drive_0002_sync/proj_depth/groundtruth/image_02/{i:010d}.png")
    return names


def test_kitti():
    (planned,) = kitti_lists(kitti_names(697, 652), "eigen_test")
    assert (planned.file, planned.official) == ("eigen_test.txt", "kitti/eigen_test")
    assert len(planned.lines) == 697
    assert sum(line.split()[1] == "None" for line in planned.lines) == 45
    assert planned.lines[0] == (
        "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/0000000000.png "
        "2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/0000000000.png 721.5377"
    )
    assert planned.lines[-1].endswith("data/0000000695.png None 718.856")
    with pytest.raises(DataError, match="no KITTI recording of that day"):
        kitti_lists(["2011_09_27/2011_09_27_drive_0002_sync/image_02/data/0000000000.png"], "eigen_test")


def test_a_kitti_list_has_the_name_that_was_stated(monkeypatch):
    names = kitti_names(800, 800)
    (planned,) = kitti_lists(names, "eigen_test")  # 800 lines, and yet no guess
    assert (planned.file, planned.official) == ("eigen_test.txt", "kitti/eigen_test")
    (planned,) = kitti_lists(names[:20], "eigen_val_800")
    assert (planned.file, planned.official) == ("eigen_val_800.txt", "kitti/eigen_val_800")
    (planned,) = kitti_lists(names, "eigen_val_800")
    known = KnownSplit(800, canonical_sha256(planned.lines))
    monkeypatch.setitem(KNOWN_SPLITS, "kitti/eigen_val_800", known)
    with pytest.raises(DataError, match=r"the 800 lines of kitti/eigen_val_800, not of kitti/eigen_test; state prep"):
        kitti_lists(names, "eigen_test")
    with pytest.raises(ValueError, match=r"prepare\.split: expected one of eigen_test, eigen_val_800, got 'test'"):
        kitti_lists(names, "test")


def test_scannet():
    names = [
        name
        for scan in range(200)
        for frame in range(4)
        for name in (
            f"scene{scan:04d}_00/color/{frame * 100:06d}.jpg",
            f"scene{scan:04d}_00/depth/{frame * 100:06d}.png",
        )
    ]
    (planned,) = scannet_lists(names)
    assert len(planned.lines) == KNOWN_SPLITS[planned.official].count
    assert planned.lines[1] == "scene0000_00/color/000100.jpg scene0000_00/depth/000100.png"


def test_lists_of_diode_parts_make_the_whole():
    every, indoor, outdoor = diode_lists(diode_names())
    assert canonical_sha256([*indoor.lines, *outdoor.lines]) == canonical_sha256(every.lines)
