"""How the five benchmarks name their files, and the split lists that follow from the names.

The published evaluation archives (prs-eth/Marigold's kitti_eigen_split_test.tar, nyu_labeled_extracted.tar, ...) hold
only the listed files, so that the list follows from their names. The publishers' downloads hold the same files under
other names.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from marigold.data.errors import DataError
from marigold.data.preparation.lists import PlannedList

# Focal length in px of the left colour camera on each recording day (KITTI's calibration files).
KITTI_FOCAL = {
    "2011_09_26": "721.5377",
    "2011_09_28": "707.0493",
    "2011_09_29": "718.3351",
    "2011_09_30": "707.0912",
    "2011_10_03": "718.856",
}
# fmt: off
ETH3D_SCENES = (
    "courtyard", "delivery_area", "electro", "facade", "kicker", "meadow", "office", "pipes", "playground", "relief",
    "relief_2", "terrace", "terrains",
)
# fmt: on


@dataclass(frozen=True)
class Layout:
    """The names of one benchmark; the patterns are regular expressions of whole names, the templates of their groups.

    image: of the images. columns: templates of the further columns of an image's line. lists: a list's file -> the
    known list that it should be, and what its images' names begin with. order: template that the lines are sorted by.
    focal: recording day (group 1) -> last column; such a set also lists images without depth, as None.
    raw: (pattern of the publisher's names, template of the name in the archive), where they differ.
    drawn: whether the images were drawn at random, so that the publisher's files do not determine the list.
    """

    image: str
    columns: tuple[str, ...]
    lists: Mapping[str, tuple[str, str]]
    order: str = r"\g<0>"
    focal: Mapping[str, str] = field(default_factory=dict)
    raw: tuple[tuple[str, str], ...] = ()
    drawn: bool = False

    def name_of(self, raw: str) -> str:
        """The name in the archive of one of the publisher's files."""
        return next((match.expand(name) for pattern, name in self.raw if (match := re.fullmatch(pattern, raw))), raw)


LAYOUTS = {
    "nyu": Layout(
        r"((train|test)/[^/]+/)rgb_(\d{4}\.png)",
        (r"\1depth_\3", r"\1filled_\3"),
        {f"filename_list_{split}.txt": (f"nyu/{split}", f"{split}/") for split in ("train", "test")},
        order=r"\3",  # by id, as published
    ),
    "kitti": Layout(
        r"(\d{4}_\d\d_\d\d)/(\1_drive_\d{4}_sync)/image_02/data/(\d{10}\.png)",
        (r"\2/proj_depth/groundtruth/image_02/\3",),
        {f"{split}.txt": (f"kitti/{split}", "") for split in ("eigen_test", "eigen_val_800")},
        focal=KITTI_FOCAL,
        raw=((r"(?:data_depth_annotated/)?(?:train|val)/(.*)", r"\1"),),
        drawn=True,
    ),
    "eth3d": Layout(
        r"rgb/([^/]+)/images/dslr_images/(DSC_\d+\.JPG)",
        (r"depth/\1_dslr_depth/\1/ground_truth_depth/dslr_images/\2",),
        {"filename_list.txt": ("eth3d/all", "")},
        order=r"\2",  # over all scenes, as published
        # Unpacked side by side the depth archives share the scenes' folders, else each has its own.
        raw=(
            (rf"((?:{'|'.join(ETH3D_SCENES)})/images/.*)", r"rgb/\1"),
            (r"(?:\w+_dslr_depth/)?(\w+)(/ground_truth_depth/.*)", r"depth/\1_dslr_depth/\1\2"),
        ),
    ),
    "scannet": Layout(
        r"(scene\d{4}_\d\d)/color/(\d{6})\.jpg",
        (r"\1/depth/\2.png",),
        {"filename_list_val_800.txt": ("scannet/val_800", "")},
        drawn=True,
    ),
    # Never from the devkit's diode_meta.json, which knows only 612 of the 771 images.
    "diode": Layout(
        r"((?:indoors|outdoor)/.*)\.png",
        (r"\1_depth.npy", r"\1_depth_mask.npy"),
        {
            "filename_list_all.txt": ("diode/val", ""),
            "filename_list_indoor.txt": ("diode/val_indoor", "indoors/"),
            "filename_list_outdoor.txt": ("diode/val_outdoor", "outdoor/"),
        },
        raw=((r"val/(.*)", r"\1"),),
    ),
}


def lines_of(dataset: str, names: Collection[str]) -> dict[str, str]:
    """Image -> its line of the split list, in the published order, for all images among the names."""
    layout, lines = LAYOUTS[dataset], {}
    found = [match for name in sorted(names) if (match := re.fullmatch(layout.image, name))]
    for match in sorted(found, key=lambda match: match.expand(layout.order)):
        columns = [match.expand(column) for column in layout.columns]
        if layout.focal:
            if match[1] not in layout.focal:
                raise DataError(f"{match[0]}: no KITTI recording of that day")
            columns = [columns[0] if columns[0] in names else "None", layout.focal[match[1]]]
        lines[match[0]] = " ".join([match[0], *columns])
    return lines


def plan_lists(dataset: str, lines: Mapping[str, str], split: str | None = None) -> list[PlannedList]:
    """The lists that have lines. split: which one they are, where the lines do not show it (KITTI)."""
    lists = LAYOUTS[dataset].lists
    if split is not None:
        if f"{split}.txt" not in lists:
            raise ValueError(f"prepare.split: expected one of {', '.join(lists)} without .txt, got {split!r}")
        lists = {f"{split}.txt": lists[f"{split}.txt"]}
    parts = [
        PlannedList(file, {image: line for image, line in lines.items() if image.startswith(start)}, official)
        for file, (official, start) in lists.items()
    ]
    return [part for part in parts if part.lines]
