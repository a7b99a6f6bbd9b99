"""The fit through a mapping against known inverses, a grid of other lines, and its own invariances."""

import pytest
import torch

from marigold.depth.alignment import apply_affine, fit_affine
from marigold.depth.mapping import MAPPINGS, TINY_DEPTH
from marigold.depth.prefit import fit_through

CURVED = [name for name in MAPPINGS if name != "depth"]


def scene(own, noise, *, high=10.0, size=(24, 32), seed=0):
    """True depth from 0.5 m on, a noisy prediction of it in [0, 1], and where it is known."""
    generator = torch.Generator().manual_seed(seed)
    depth = 0.5 + (high - 0.5) * torch.rand(1, 1, *size, generator=generator) ** 2
    values = MAPPINGS[own].of_depth(depth)
    span = values.max() - values.min()
    values = (values - values.min()) / span + noise * (values.std() / span) * torch.randn(
        depth.shape, generator=generator
    )
    return 0.2 + 0.6 * values, depth, torch.rand(depth.shape, generator=generator) > 0.2


def quantity_of(line, pred, own, quantity):
    depth = MAPPINGS[own].to_depth(line[0] * pred.double() + line[1]).clamp_min(TINY_DEPTH)
    return MAPPINGS[quantity].of_depth(depth)


def criterion(line, pred, depth, valid, own, quantity="depth"):
    wanted = MAPPINGS[quantity].of_depth(depth.double())
    return (quantity_of(line, pred, own, quantity) - wanted)[valid].square().sum()


def fitted(pred, depth, valid, own, quantity="depth"):
    return fit_through(pred, depth, valid, MAPPINGS[own], MAPPINGS[quantity])


@pytest.mark.parametrize("quantity", MAPPINGS)
@pytest.mark.parametrize("own", MAPPINGS)
def test_what_is_an_affine_map_of_the_true_quantity_is_undone(own, quantity):
    pred, depth, valid = scene(own, 0.0)
    found = MAPPINGS[own].to_depth(apply_affine(pred, fitted(pred, depth, valid, own, quantity)))
    assert torch.allclose(found[valid], depth[valid], rtol=1e-5)


@pytest.mark.parametrize("high", [10.0, 80.0])
@pytest.mark.parametrize("own", CURVED)
def test_no_other_line_is_better(own, high):
    pred, depth, valid = scene(own, 0.2, high=high)
    fit = fitted(pred, depth, valid, own)
    ours = criterion(fit, pred, depth, valid, own)
    # The line that the noise was added to
    values = MAPPINGS[own].of_depth(depth).double()
    scale = (values.max() - values.min()) / 0.6
    assert ours <= criterion((scale, values.min() - 0.2 * scale), pred, depth, valid, own)
    for scale in torch.linspace(0.5, 1.5, 11, dtype=torch.float64):
        for end in torch.linspace(-0.5, 0.5, 11, dtype=torch.float64):
            other = (fit.scale * scale, fit.shift + end * fit.scale)
            assert ours <= criterion(other, pred, depth, valid, own) * (1 + 1e-8)


@pytest.mark.parametrize("own", MAPPINGS)
def test_the_result_is_the_same_for_every_scale_and_shift_of_the_prediction(own):
    pred, depth, valid = scene(own, 0.3)
    quantity = "log_depth" if own == "depth" else "depth"
    first, *others = (
        quantity_of(fitted(p, depth, valid, own, quantity), p, own, quantity)
        for p in (pred.double(), 40 * pred.double() + 7, -0.01 * pred.double() - 3)
    )
    for other in others:
        assert torch.allclose(first, other, rtol=1e-5)


@pytest.mark.parametrize("own", CURVED)
def test_it_is_never_worse_than_least_squares_in_the_own_space_or_the_mean(own):
    pred, depth, valid = scene(own, 1.0, high=80.0)
    ours = criterion(fitted(pred, depth, valid, own), pred, depth, valid, own)
    least_squares = fit_affine(pred, MAPPINGS[own].of_depth(depth), valid)
    assert ours <= criterion(least_squares, pred, depth, valid, own)
    known = depth[valid].double()
    assert ours <= (known - known.mean()).square().sum() * 1.001


def test_a_constant_prediction_becomes_the_mean():
    _, depth, valid = scene("disparity", 0.0)
    fit = fitted(torch.full_like(depth, 0.3), depth, valid, "disparity")
    assert 1 / float(fit.scale * 0.3 + fit.shift) == pytest.approx(float(depth[valid].mean()), rel=1e-5)


def test_images_of_a_batch_are_apart_and_an_image_without_pixels_is_named():
    scenes = [scene("log_depth", 0.2, seed=seed) for seed in (1, 2)]
    pred, depth, valid = (torch.cat(parts) for parts in zip(*scenes, strict=True))
    together = fitted(pred, depth, valid, "log_depth")
    for index, one in enumerate(scenes):
        alone = fitted(*one, "log_depth")
        assert (together.scale[index], together.shift[index]) == (alone.scale[0], alone.shift[0])
    valid[1] = False
    with pytest.raises(ValueError, match="image 1"):
        fitted(pred, depth, valid, "log_depth")
