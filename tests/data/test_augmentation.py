"""Augmented versions of samples: a function of the key; crops keep depth in metres, colours leave it alone."""

from dataclasses import asdict, replace

import pytest
import torch

from marigold.data.augmentation import NO_AUGMENTATION, Augmentation, augment
from marigold.data.errors import DataError
from marigold.types import Camera, DepthSample

HEIGHT, WIDTH = 60, 80
BOTH = Augmentation(variants=4, crop=0.5, photometric=1.0)
CROPS = replace(BOTH, photometric=0.0)
COLOURS = replace(BOTH, crop=1.0)


@pytest.fixture
def sample():
    """Red is the column, green the row, as shares of the sides; depth is 1 m + the column; a corner is invalid."""
    rows = torch.linspace(0, 1, HEIGHT)[:, None].expand(HEIGHT, WIDTH)
    columns = torch.linspace(0, 1, WIDTH).expand(HEIGHT, WIDTH)
    depth = (1 + torch.arange(WIDTH).float()).expand(1, HEIGHT, WIDTH).contiguous()
    valid = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    valid[:, :10, :10] = False
    image = torch.stack([columns, rows, 0.5 * torch.ones_like(rows)])
    return DepthSample("ramp", image, depth, valid, Camera(50.0, 50.0, 40.0, 30.0))


def same(one, two):
    return all(torch.equal(getattr(one, part), getattr(two, part)) for part in ("image", "depth", "valid"))


def test_nothing_to_change_gives_the_sample_itself(sample):
    assert augment(sample, NO_AUGMENTATION, (1, 2, 3)) is sample
    assert augment(sample, replace(BOTH, crop=1.0, photometric=0.0), (1, 2, 3)) is sample


def test_the_key_alone_decides_every_bit(sample):
    before = replace(sample, image=sample.image.clone(), depth=sample.depth.clone(), valid=sample.valid.clone())
    versions = [augment(sample, BOTH, (7, 1, variant)) for variant in range(4)]
    assert same(sample, before)
    torch.set_num_threads(2)
    try:
        again = [augment(sample, BOTH, (7, 1, variant)) for variant in range(4)]
    finally:
        torch.set_num_threads(1)
    assert all(same(one, two) for one, two in zip(versions, again, strict=True))
    others = [*versions[1:], augment(sample, BOTH, (7, 2, 0)), augment(sample, BOTH, (8, 1, 0))]
    assert not any(same(versions[0], other) for other in others)


def test_a_crop_keeps_one_share_of_both_sides_and_depth_in_metres(sample):
    shares, lefts = [], []
    for variant in range(100):
        crop = augment(sample, CROPS, (0, variant))
        assert crop.camera is None
        assert crop.image.shape == sample.image.shape
        assert 0 <= crop.image.amin() <= crop.image.amax() <= 1
        # What is seen at a pixel is 1 m + its old column, to one pixel: red says which it was.
        assert (crop.depth - 1 - crop.image[:1] * (WIDTH - 1)).abs().max() <= 1
        assert torch.equal(crop.depth, crop.depth.round())
        # Both sides are whole pixels, so their shares are the same to one pixel.
        columns = crop.depth.unique().numel()
        rows = crop.image[1].amax() - crop.image[1].amin()
        assert columns / WIDTH == pytest.approx(rows.item(), abs=2 / HEIGHT)
        # The corner of 10 x 10 pixels.
        known = ~((crop.image[1] * (HEIGHT - 1) < 9) & (crop.depth[0] <= 10))
        assert (known != crop.valid[0]).float().mean() < 0.05
        shares.append(columns / WIDTH)
        lefts.append(crop.depth.min().item() - 1)
    assert min(shares) >= 0.5 - 1 / WIDTH
    # Uniform in [0.5, 1]: the mean's standard deviation is 0.0144.
    assert sum(shares) / 100 == pytest.approx(0.75, abs=0.05)
    assert min(lefts) == 0
    assert max(lefts) > WIDTH / 4


def test_crops_of_nothing_but_sky_or_a_wall_are_not_taken(sample):
    depth = sample.depth.clone()
    depth[:, :20], depth[:, 20:40] = 655.35, 9.0
    scene = replace(sample, depth=depth, valid=depth < 80)
    for variant in range(100):
        crop = augment(scene, replace(CROPS, crop=0.2), (0, variant))
        known = crop.depth[crop.valid]
        assert 2 * known.numel() >= 2 / 3 * crop.valid.numel()
        assert known.quantile(0.25) < known.quantile(0.75)
    wall = replace(sample, depth=torch.full_like(sample.depth, 3.0))
    assert augment(wall, CROPS, (0, 0)) is wall


def test_colours_leave_depth_alone_and_grow_with_the_strength(sample):
    moved = []
    for strength in (0.05, 1.0):
        changed = [augment(sample, replace(COLOURS, photometric=strength), (0, variant)) for variant in range(200)]
        assert all(one.depth is sample.depth and one.camera == sample.camera for one in changed)
        assert all(0 <= one.image.amin() <= one.image.amax() <= 1 for one in changed)
        moved.append(torch.stack([(one.image - sample.image).abs().mean() for one in changed]).median())
    assert 0 < moved[0] < moved[1] / 10


@pytest.mark.parametrize("wrong", [{"variants": -1}, {"crop": 0.0}, {"photometric": -0.1}])
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(DataError, match=rf"augmentation\.{next(iter(wrong))}="):
        Augmentation(**{**asdict(BOTH), **wrong})
