"""The two synthetic sets that the method is trained on, and a set as part of a training run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from marigold.data.base import DepthDataset
from marigold.data.latent_cache import IMAGE, LATENTS, PIXELS, CacheConfig, Store
from marigold.data.storage import LayeredStorage, Storage, open_storage
from marigold.data.transforms import Target, Transform
from marigold.identity import fingerprint, identity


@dataclass(frozen=True)
class TrainingSet:
    """One data set of the mixture; `reader` holds the settings that `samples` was built from."""

    name: str
    samples: DepthDataset
    transform: Transform
    weight: float
    licence: str
    reader: Mapping[str, Any]

    def stores(self, cache: CacheConfig, target: Target, vae_hash: str, *, latents: bool, pixels: bool) -> list[Store]:
        """The stores of this set's cache: the images' latents, and the targets as `latents`, as `pixels`, or both."""
        augmentation = target.augmentation
        settings = {**asdict(augmentation), "seed": target.seed} if augmentation.variants else {}
        changes = {f"augmentation.{key}": value for key, value in settings.items()}
        # In the folder's name, so that the stores of several augmentations can be kept side by side.
        ending = f"-augmented-{fingerprint(changes)[:8]}" if changes else ""
        learned = target.mapping if target.far == "mask" else f"{target.mapping}-{target.far}"
        of_encoder = {"vae": vae_hash, "precision": cache.precision}
        of_target = {"mapping": target.mapping, "far": target.far}
        # An image's latents depend on neither mapping nor quantile, so that every recipe shares them.
        chosen = [("image", IMAGE, ("size", "antialias"), of_encoder)]
        if latents:
            chosen.append((learned, LATENTS, ("size", "quantile"), {**of_target, **of_encoder}))
        if pixels:
            chosen.append((f"{learned}-pixels", PIXELS, ("size", "quantile"), of_target))
        return [
            Store(
                folder=Path(cache.folder, self.name, name + ending),
                parts=parts,
                depends_on=self._identity(transform, {**facts, **changes}),
                count=len(self.samples),
                variants=augmentation.variants,
                dtype=cache.dtype,
                shard_size=cache.shard_size,
            )
            for name, parts, transform, facts in chosen
        ]

    def _identity(self, transform: Sequence[str], facts: Mapping[str, Any]) -> dict[str, Any]:
        settings = {"reader": self.reader, "transform": {key: getattr(self.transform, key) for key in transform}}
        of_set = {"data_set": self.name, **self.samples.content}
        return identity({"data": {self.name: settings}}, {**of_set, **facts})


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
    """A folder with `rgb` and `depth`, each a folder or the publisher's tar.

    Each part may be a symbolic link: it is opened as a root of its own.
    """
    # The members of the tars are named without rgb/ or depth/, the names in the published lists begin with it.
    return LayeredStorage([(f"{part}/", open_storage(place)) for part, place in vkitti_places(root).items()])


def vkitti_places(root: str | Path) -> dict[str, Path]:
    """The places of `rgb` and `depth` below a root: the publisher's tar or, without it, the unpacked folder."""
    tars = {part: Path(root, archive) for part, archive in VKITTI_ARCHIVES.items()}
    return {part: tar if tar.is_file() else Path(root, part) for part, tar in tars.items()}
