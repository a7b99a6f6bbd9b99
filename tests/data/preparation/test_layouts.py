"""From the names of a set's files to the lines and lists of its rule."""

import pytest

from marigold.data.errors import DataError
from marigold.data.preparation.layouts import lines_of, plan_lists
from marigold.data.splits import KNOWN_SPLITS

KITTI = "2011_09_26/2011_09_26_drive_0002_sync/image_02/data/{:010d}.png".format
TRUTH = "2011_09_26_drive_0002_sync/proj_depth/groundtruth/image_02/{:010d}.png".format
ETH3D = "rgb/{}/images/dslr_images/DSC_{}.JPG".format
LASER = "depth/{0}_dslr_depth/{0}/ground_truth_depth/dslr_images/DSC_{1}.JPG".format
DIODE = "{0}.png {0}_depth.npy {0}_depth_mask.npy".format
NYU = "{0}/rgb_{1}.png {0}/depth_{1}.png {0}/filled_{1}.png".format
INDOORS, OUTDOOR = DIODE("indoors/s/a"), DIODE("outdoor/s/a")
# The names of a set's files, and the lines of every list that must follow from them.
RULES = {
    "diode": (
        [*OUTDOOR.split(), *INDOORS.split(), "diode_meta.json"],
        {
            "filename_list_all.txt": [INDOORS, OUTDOOR],
            "filename_list_indoor.txt": [INDOORS],
            "filename_list_outdoor.txt": [OUTDOOR],
        },
    ),
    "nyu": (
        ["test/bath_1/rgb_0002.png", "test/attic_2/rgb_0009.png", "train/attic_2/rgb_0004.png"],
        {
            "filename_list_train.txt": [NYU("train/attic_2", "0004")],
            "filename_list_test.txt": [NYU("test/bath_1", "0002"), NYU("test/attic_2", "0009")],  # by number
        },
    ),
    "kitti": (
        [KITTI(7), KITTI(5), TRUTH(5)],
        {"eigen_test.txt": [f"{KITTI(5)} {TRUTH(5)} 721.5377", f"{KITTI(7)} None 721.5377"]},  # the day's focal length
    ),
    "eth3d": (
        [ETH3D("pipes", 2), ETH3D("office", 1), ETH3D("office", 3)],
        {  # by number over all scenes
            "filename_list.txt": [
                f"{ETH3D(scene, number)} {LASER(scene, number)}"
                for scene, number in (("office", 1), ("pipes", 2), ("office", 3))
            ]
        },
    ),
}


@pytest.mark.parametrize("dataset", RULES)
def test_lists_by_the_rule(dataset):
    names, expected = RULES[dataset]
    lists = plan_lists(dataset, lines_of(dataset, names), "eigen_test" if dataset == "kitti" else None)
    assert {planned.file: [*planned.lines.values()] for planned in lists} == expected
    assert all(planned.official in KNOWN_SPLITS for planned in lists)


def test_wrong_kitti():
    with pytest.raises(DataError, match="2011_09_27"):
        lines_of("kitti", {"2011_09_27/2011_09_27_drive_0002_sync/image_02/data/0000000000.png"})
    with pytest.raises(ValueError, match=r"prepare\.split"):
        plan_lists("kitti", lines_of("kitti", RULES["kitti"][0]), "test")
