"""The fit through a mapping against known inverses, a grid of other lines, and its own invariances."""

import pytest
import torch

from marigold.depth.alignment import apply_affine, fit_affine
from marigold.depth.mapping import MAPPINGS, TINY_DEPTH
from marigold.depth.prefit import fit_through

CURVED = [name for name in MAPPINGS if name != "depth"]


def scene(own, noise, *, high=10.0, seed=0):
    """A noisy prediction in [0, 1] of depth from 0.5 m on, that depth, and where it is known."""
    generator = torch.Generator().manual_seed(seed)
    depth = 0.5 + (high - 0.5) * torch.rand(1, 1, 24, 32, generator=generator) ** 2
    values = MAPPINGS[own].of_depth(depth)
    span = values.max() - values.min()
    values = (values - values.min()) / span + noise * (values.std() / span) * torch.randn(
        depth.shape, generator=generator
    )
    return 0.2 + 0.6 * values, depth, torch.rand(depth.shape, generator=generator) > 0.2


def quantity_of(line, pred, own, quantity="depth"):
    depth = MAPPINGS[own].to_depth(line[0] * pred.double() + line[1]).clamp_min(TINY_DEPTH)
    return MAPPINGS[quantity].of_depth(depth)


def criterion(line, pred, depth, valid, own):
    return (quantity_of(line, pred, own) - depth.double())[valid].square().sum()


def fitted(pred, depth, valid, own, quantity="depth"):
    return fit_through(pred, depth, valid, MAPPINGS[own], MAPPINGS[quantity])


@pytest.mark.parametrize("quantity", MAPPINGS)
@pytest.mark.parametrize("own", MAPPINGS)
def test_an_affine_map_of_the_true_quantity_is_undone(own, quantity):
    pred, depth, valid = scene(own, 0.0)
    found = MAPPINGS[own].to_depth(apply_affine(pred, fitted(pred, depth, valid, own, quantity)))
    assert torch.allclose(found[valid], depth[valid], rtol=1e-5)


@pytest.mark.parametrize("noise", [0.2, 1.0])
@pytest.mark.parametrize("own", CURVED)
def test_no_other_line_is_better(own, noise):
    pred, depth, valid = scene(own, noise, high=80.0)
    fit = fitted(pred, depth, valid, own)
    ours, known = criterion(fit, pred, depth, valid, own), depth[valid].double()
    # Neither least squares in the prediction's own space, nor the mean, nor a neighbouring line
    assert ours <= criterion(fit_affine(pred, MAPPINGS[own].of_depth(depth), valid), pred, depth, valid, own)
    assert ours <= (known - known.mean()).square().sum() * 1.001
    for scale in torch.linspace(0.5, 1.5, 11, dtype=torch.float64):
        for end in torch.linspace(-0.5, 0.5, 11, dtype=torch.float64):
            other = (fit.scale * scale, fit.shift + end * fit.scale)
            assert ours <= criterion(other, pred, depth, valid, own) * (1 + 1e-8)


@pytest.mark.parametrize("own", MAPPINGS)
def test_the_result_is_the_same_for_every_scale_and_shift_of_the_prediction(own):
    pred, depth, valid = scene(own, 0.3)
    quantity = "log_depth" if own == "depth" else "depth"
    changed = [pred.double(), 40 * pred.double() + 7, -0.01 * pred.double() - 3]
    first, *others = (quantity_of(fitted(p, depth, valid, own, quantity), p, own, quantity) for p in changed)
    assert all(torch.allclose(first, other, rtol=1e-5) for other in others)


def test_a_constant_prediction_becomes_the_mean():
    _, depth, valid = scene("disparity", 0.0)
    fit = fitted(torch.full_like(depth, 0.3), depth, valid, "disparity")
    assert 1 / float(fit.scale * 0.3 + fit.shift) == pytest.approx(float(depth[valid].mean()), rel=1e-5)


def test_every_image_of_a_batch_is_fitted_alone():
    scenes = [scene("log_depth", 0.2, seed=seed) for seed in (1, 2)]
    pred, depth, valid = (torch.cat(parts) for parts in zip(*scenes, strict=True))
    together = torch.stack(fitted(pred, depth, valid, "log_depth"))
    assert torch.equal(together, torch.cat([torch.stack(fitted(*one, "log_depth")) for one in scenes], 1))
