"""The two synthetic sets that the method is trained on."""

from pathlib import Path

from marigold.data.base import DepthDataset
from marigold.data.storage import MountedStorage, Storage, open_storage


class Hypersim(DepthDataset):
    """Hypersim, tone-mapped and with planar depth, as `scripts/prepare.py dataset=hypersim` writes it.

    Depth is millimetres in a 16-bit PNG, 0 where unknown. Roberts et al., ICCV 2021.
    """


class VirtualKitti(DepthDataset):
    """Virtual KITTI 2, in folders or straight from the publisher's two tars (see VKITTI_ARCHIVES).

    Depth is centimetres in a 16-bit PNG; the sky is 655.35 m. It stays in `depth`, so that normalisation
    puts it at the far end, and is not `valid`. Cabon et al., 2020.
    """

    units_per_metre = 100.0

    def _open(self, root: str) -> Storage:
        return open_vkitti(root)


# The publisher's names, and the first part of a list's names that each stands for.
VKITTI_ARCHIVES = {"rgb": "vkitti_2.0.3_rgb.tar", "depth": "vkitti_2.0.3_depth.tar"}


def open_vkitti(root: str | Path) -> Storage:
    """A folder or archive with `rgb/` and `depth/`, or a folder that holds the publisher's two tars."""
    archives = {part: Path(root, archive) for part, archive in VKITTI_ARCHIVES.items()}
    if all(archive.is_file() for archive in archives.values()):
        return MountedStorage({part: open_storage(archive) for part, archive in archives.items()})
    return open_storage(root)
