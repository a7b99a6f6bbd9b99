"""Training examples made from pictures on the fly."""

from collections.abc import Sequence

from torch.utils.data import default_collate

from marigold.data.transforms import PixelBatch, Transform, training_example
from marigold.types import DepthSample


class PixelExamples:
    """A data set whose examples are read, flipped, normalised and resized each time."""

    def __init__(self, samples: Sequence[DepthSample], names: Sequence[str], transform: Transform) -> None:
        self.samples = samples
        self.names = names
        self.transform = transform

    def batch(self, indices: Sequence[int], flips: Sequence[bool]) -> PixelBatch:
        """Read one micro-batch; raises ValueError naming the sample that cannot be used."""
        examples = [
            training_example(self.samples[index], self.transform, flip=flip)
            for index, flip in zip(indices, flips, strict=True)
        ]
        # Stacks; in a DataLoader's worker straight into the memory that is shared with the trainer.
        image_norm, depth_norm, valid = (default_collate(list(part)) for part in zip(*examples, strict=True))
        return PixelBatch(tuple(self.names[index] for index in indices), image_norm, depth_norm, valid)
