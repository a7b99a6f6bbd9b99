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


def open_vkitti(root: str | Path, *, cache_index: bool = True) -> Storage:
    """A folder with `rgb` and `depth`, each a folder or the publisher's tar; or one archive with both.

    Each part may be a symbolic link: it is opened as a root of its own. cache_index: as in `open_storage`.
    """
    if not Path(root).is_dir():
        return open_storage(root, cache_index=cache_index)
    parts = {}
    for part, archive in VKITTI_ARCHIVES.items():
        tar = Path(root, archive)
        parts[part] = open_storage(tar if tar.is_file() else Path(root, part), cache_index=cache_index)
    return MountedStorage(parts)
