"""Training examples: flips, sizes, targets of every mapping, and the pixels that count in the loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from marigold.data.augmentation import Augmentation, augment
from marigold.data.latent_cache import LatentBatch
from marigold.data.transforms import AUGMENTATION, PixelExamples, Target, Transform, training_example
from marigold.depth.mapping import MAPPINGS
from marigold.types import DepthSample

SKY = 655.35
WHOLE = Transform(None, False, 0.02)


def street(seed=0, size=(48, 64)):
    """Depth of 1 to 60 m, the upper quarter sky, a column unknown and another too near to count."""
    rng = np.random.default_rng(seed)
    depth = torch.from_numpy(1 + 59 * rng.random((1, *size), dtype=np.float32) ** 2)
    depth[:, : size[0] // 4], depth[..., 3], depth[..., 5] = SKY, 0, 1e-6
    image = torch.from_numpy(rng.random((3, *size), dtype=np.float32))
    return DepthSample(f"street {seed}", image, depth, (depth > 1e-5) & (depth < 80))


def nearest(values, height, width):
    """The nearest pixel to the centre of each new one, as numpy indexing."""
    rows, columns = (
        np.floor((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip((height, width), values.shape[-2:], strict=True)
    )
    return values[..., rows[:, None], columns]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [None, (32, 40)])
def test_an_example_is_flipped_normalised_and_resized(flip, size):
    sample = street()
    image, depth_norm, valid, half_range = training_example(sample, Transform(size, False, 0.02), Target(), flip=flip)
    photo, depth, known = (
        part.numpy()[..., :: -1 if flip else 1] for part in (sample.image, sample.depth, sample.valid)
    )
    low, high = np.quantile(depth[known].astype(np.float64), (0.02, 0.98))
    target = np.clip((depth.astype(np.float64) - low) / (high - low) * 2 - 1, -1, 1)
    if size is not None:
        photo, target, known = (nearest(part, *size) for part in (photo, target, known))
    np.testing.assert_array_equal(image.numpy(), photo * np.float32(2) - np.float32(1))
    np.testing.assert_allclose(depth_norm.numpy(), target, atol=2e-6)
    np.testing.assert_array_equal(valid.numpy(), known)
    assert half_range.item() == pytest.approx((high - low) / 2, rel=1e-6)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_supervising_what_is_far_adds_the_sky_alone_at_the_far_end(mapping):
    sample = street()
    masked = training_example(sample, WHOLE, Target(mapping), flip=False)
    supervised = training_example(sample, WHOLE, Target(mapping, far="supervise"), flip=False)
    for one, two in zip((*masked[:2], masked[3]), (*supervised[:2], supervised[3]), strict=True):
        assert torch.equal(one, two)
    added = supervised[2] & ~masked[2]
    assert torch.equal(masked[2], sample.valid)
    assert torch.equal(added, sample.depth == SKY)
    assert (supervised[1][added] == (1 if MAPPINGS[mapping].increasing else -1)).all()


def test_a_batch_holds_the_versions_that_were_asked_for():
    samples, names = [street(seed) for seed in range(3)], ["a", "b", "c"]
    settings = Augmentation(variants=2, crop=0.6, photometric=0.5)
    target = Target("log_depth", augmentation=settings, seed=9)
    batch = PixelExamples(samples, names, WHOLE, target).batch([2, 0], [True, False], [1, 0])
    assert batch.names == ("c", "a")
    for row, (index, flip, variant) in enumerate([(2, True, 1), (0, False, 0)]):
        changed = augment(samples[index], settings, (9, AUGMENTATION, index, variant))
        wanted = training_example(changed, WHOLE, target, flip=flip)
        got = (batch.image_norm, batch.depth_norm, batch.valid, batch.half_range)
        assert all(torch.equal(part[row], one) for part, one in zip(got, wanted, strict=True))
    plain = PixelExamples(samples, names, WHOLE, replace(target, augmentation=replace(settings, variants=0)))
    assert torch.equal(plain.batch([1], [False], [0]).image_norm[0], samples[1].image * 2 - 1)


def test_pinning_keeps_every_part(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # a CPU alone has no pinned memory
    pixels = PixelExamples([street()], ["a"], WHOLE, Target()).batch([0], [False], [0])
    for batch in (pixels, LatentBatch(("a",), torch.rand(1, 4, 6, 8), half_range=pixels.half_range)):
        pinned = vars(batch.pin_memory())
        assert pinned.keys() == vars(batch).keys()
        for key, part in vars(batch).items():
            if isinstance(part, torch.Tensor):
                assert pinned[key] is not part
                assert torch.equal(pinned[key], part)


def test_samples_that_cannot_be_used_are_named():
    samples = [street(), street(1, (32, 64)), street(2, (20, 64)), replace(street(3), valid=street().valid & False)]

    def batch(*indices, transform=WHOLE):
        names = [f"image {index}" for index in range(4)]
        return PixelExamples(samples, names, transform, Target()).batch(indices, [False] * 2, [0] * 2)

    with pytest.raises(ValueError, match=r"image 0 of 48x64 and image 1 of 32x64.*transform\.size"):
        batch(0, 1)
    assert batch(0, 1, transform=Transform((16, 24), True, 0.02)).image_norm.shape == (2, 3, 16, 24)
    with pytest.raises(ValueError, match="street 2: 20x64"):
        batch(0, 2)
    with pytest.raises(ValueError, match="street 3"):
        batch(0, 3)
