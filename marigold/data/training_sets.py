"""The two synthetic sets that the method is trained on, and what a set is to a training run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from marigold.data.base import DepthDataset
from marigold.data.storage import MountedStorage, Storage, open_storage
from marigold.data.transforms import Transform
from marigold.identity import identity


@dataclass(frozen=True)
class TrainingSet:
    """One data set of the mixture; `reader` holds the settings that `samples` was built from."""

    name: str
    samples: DepthDataset
    transform: Transform
    weight: float
    licence: str
    reader: Mapping[str, Any]

    def identity(self, vae_hash: str, precision: str) -> dict[str, Any]:
        """What its cached latents depend on, besides the type that they are stored in."""
        settings = {"reader": self.reader, "transform": asdict(self.transform)}
        facts = {"data_set": self.name, "lines": self.samples.lines_sha256, "vae": vae_hash, "precision": precision}
        return identity({"data": {self.name: settings}}, facts)


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
