"""Trees of a set's real layout with its real number of files -> the lists of its rule."""

import pytest

from marigold.data.errors import DataError
from marigold.data.preparation.layouts import ETH3D_SCENES, lines_of, plan_lists
from marigold.data.splits import KNOWN_SPLITS, KnownSplit, canonical_sha256

# The published counts: per kind, scene and scan (DIODE), and per scene (ETH3D).
DIODE_SCANS = {
    ("indoors", 19): {183: 73},
    ("indoors", 20): {184: 27, 185: 29, 186: 48, 187: 33},
    ("indoors", 21): {188: 25, 189: 22, 190: 25, 191: 18, 192: 25},
    ("outdoor", 22): {193: 51, 194: 44, 195: 52, 196: 53, 197: 61},
    ("outdoor", 23): {198: 27, 199: 38, 200: 40},
    ("outdoor", 24): {201: 43, 202: 37},
}
ETH3D_COUNTS = dict(zip(ETH3D_SCENES, (38, 44, 45, 76, 31, 15, 26, 14, 38, 31, 31, 23, 42), strict=True))


def diode_names() -> set[str]:
    names = {"diode_meta.json"}
    for (kind, scene), scans in DIODE_SCANS.items():
        for scan, count in scans.items():
            for i in range(count):
                angles = f"{10 * (i % 36):03d}_{10 * (i // 36):03d}"
                stem = f"{kind}/scene_{scene:05d}/scan_{scan:05d}/{scene:05d}_{scan:05d}_{kind}_{angles}"
                names |= {f"{stem}.png", f"{stem}_depth.npy", f"{stem}_depth_mask.npy"}
    return names


def eth3d_names() -> list[str]:
    """Numbers run over all scenes: the published order."""
    order = [scene for i in range(76) for scene, count in ETH3D_COUNTS.items() if i < count]
    return [f"rgb/{scene}/images/dslr_images/DSC_{number:04d}.JPG" for number, scene in enumerate(order, 201)]


def nyu_names() -> list[str]:
    parts = {i: "test" if i % 2 == 0 and i <= 1308 else "train" for i in range(1, 1450)}
    return [f"{part}/office_{i % 464:04d}/rgb_{i:04d}.png" for i, part in parts.items()]


def kitti_names(count: int, with_depth: int) -> set[str]:
    days = [("2011_09_26", "2011_10_03")[i % 2] for i in range(count)]
    images = {f"{day}/{day}_drive_0002_sync/image_02/data/{i:010d}.png" for i, day in enumerate(days)}
    truth = "{}_drive_0002_sync/proj_depth/groundtruth/image_02/{:010d}.png"
    return images | {truth.format(day, i) for i, day in enumerate(days[:with_depth])}


def scannet_names() -> list[str]:
    return [f"scene{scan:04d}_00/color/{frame * 100:06d}.jpg" for scan in range(200) for frame in range(4)]


DIODE_STEM = "indoors/scene_00019/scan_00183/00019_00183_indoors_000_000"
# Names, the split that is stated, the lists with their counts, and one line of the first.
LISTS = {
    "diode": (
        (diode_names(), None),
        {"filename_list_all.txt": 771, "filename_list_indoor.txt": 325, "filename_list_outdoor.txt": 446},
        f"{DIODE_STEM}.png {DIODE_STEM}_depth.npy {DIODE_STEM}_depth_mask.npy",
    ),
    "nyu": (
        (nyu_names(), None),
        {"filename_list_train.txt": 795, "filename_list_test.txt": 654},
        "train/office_0001/rgb_0001.png train/office_0001/depth_0001.png train/office_0001/filled_0001.png",
    ),
    "kitti": (
        (kitti_names(697, 652), "eigen_test"),
        {"eigen_test.txt": 697},
        "2011_10_03/2011_10_03_drive_0002_sync/image_02/data/0000000695.png None 718.856",
    ),
    "scannet": (
        (scannet_names(), None),
        {"filename_list_val_800.txt": 800},
        "scene0000_00/color/000100.jpg scene0000_00/depth/000100.png",
    ),
    "eth3d": (
        (eth3d_names(), None),
        {"filename_list.txt": 454},
        "rgb/courtyard/images/dslr_images/DSC_0214.JPG "
        "depth/courtyard_dslr_depth/courtyard/ground_truth_depth/dslr_images/DSC_0214.JPG",
    ),
}


@pytest.mark.parametrize("dataset", LISTS)
def test_lists_by_the_rule(dataset):
    (names, split), expected, line = LISTS[dataset]
    lists = plan_lists(dataset, lines_of(dataset, names), split)
    assert {planned.file: len(planned.lines) for planned in lists} == expected
    assert [KNOWN_SPLITS[planned.official].count for planned in lists] == list(expected.values())
    assert line in lists[0].lines.values()
    if dataset == "diode":  # the parts make the whole
        parts = [line for part in lists[1:] for line in part.lines.values()]
        assert canonical_sha256(parts) == canonical_sha256(lists[0].lines.values())


def test_eth3d_is_in_the_published_order():
    assert list(lines_of("eth3d", eth3d_names()[::-1])) == eth3d_names()


def test_wrong_kitti(monkeypatch):
    with pytest.raises(DataError, match="2011_09_27"):
        lines_of("kitti", {"2011_09_27/2011_09_27_drive_0002_sync/image_02/data/0000000000.png"})
    lines = lines_of("kitti", kitti_names(800, 800))
    with pytest.raises(ValueError, match=r"prepare\.split"):
        plan_lists("kitti", lines, "test")
    (stated,) = plan_lists("kitti", lines, "eigen_test")  # what was stated, whatever the number of lines
    assert (stated.file, len(stated.lines)) == ("eigen_test.txt", 800)
    known = KnownSplit(800, canonical_sha256(lines.values()))
    monkeypatch.setitem(KNOWN_SPLITS, "kitti/eigen_val_800", known)
    with pytest.raises(DataError, match=r"kitti/eigen_val_800.*prepare\.split"):
        plan_lists("kitti", lines, "eigen_test")
