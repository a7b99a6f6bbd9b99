"""Marigold-DC on random weights: it meets its points, depends on image and seed, and refuses what it cannot do."""

import pytest
import torch
from tiny_models import tiny_model

from marigold.model.guided import guided
from marigold.model.recipe import Switches

POINTS = torch.tensor([[3.0, 2.0], [30.5, 7.25], [12.0, 29.0], [38.0, 20.0]])
METRES = torch.tensor([2.0, 3.0, 2.5, 4.0])
IMAGE = torch.rand(1, 3, 32, 44, generator=torch.Generator().manual_seed(0))


def test_it_is_steered_towards_the_points(depth_model):
    few, many = (guided(depth_model, IMAGE, POINTS, METRES, steps=steps).depth for steps in (1, 20))
    assert many.shape == (1, 1, 32, 44)
    assert bool((many > 0).all() & many.isfinite().all())
    x, y = POINTS.round().long().unbind(1)
    before, after = ((depth[0, 0, y, x] - METRES).abs().mean() for depth in (few, many))
    assert after < 0.7 * before
    assert all(parameter.grad is None for parameter in depth_model.backbone.unet.parameters())


def test_members_are_functions_of_the_seed_and_do_not_see_each_other(depth_model):
    one, again, other = (guided(depth_model, IMAGE, POINTS, METRES, steps=2, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(one.depth, again.depth)
    assert not torch.equal(one.depth, other.depth)
    assert (one.space, one.uncertainty) == ("metric_depth", None)
    two = guided(depth_model, IMAGE, POINTS, METRES, steps=2, seed=4, ensemble_size=2)
    assert bool((two.depth <= one.depth).all())  # the lower median of two is the smaller one, and `one` is member 0
    assert bool((two.uncertainty >= 0).all())


@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        (Switches(noise="zeros", timesteps="terminal"), "zeros"),
        (Switches(noise="gaussian", timesteps="terminal"), "one pass"),
        (Switches(mapping="log_depth"), "affine_log_depth"),
        (Switches(), r"room_7.*point 0 .*x=3"),  # beyond the image
    ],
)
def test_models_without_a_latent_to_steer_and_wrong_points_are_refused(switches, reason):
    with pytest.raises(ValueError, match=reason):
        guided(tiny_model(switches), IMAGE[..., :3], POINTS, METRES, name="room_7")
