"""Marigold-DC on random weights: it meets its points, depends on image and seed, and refuses what it cannot do."""

import pytest
import torch
from tiny_models import tiny_model

from marigold.model.guided import guided
from marigold.model.recipe import Switches

POINTS = torch.tensor([[3.0, 2.0], [30.5, 7.25], [12.0, 29.0], [38.0, 20.0]])
METRES = torch.tensor([2.0, 3.0, 2.5, 4.0])
IMAGE = torch.rand(1, 3, 32, 44, generator=torch.Generator().manual_seed(0))


def missed(prediction):
    at = POINTS.round().long()
    return float((prediction.depth[0, 0, at[:, 1], at[:, 0]] - METRES).abs().mean())


def test_it_is_steered_towards_the_points(depth_model):
    few, many = (guided(depth_model, IMAGE, POINTS, METRES, steps=steps) for steps in (1, 20))
    assert many.space == "metric_depth"
    assert many.depth.shape == (1, 1, 32, 44)
    assert bool((many.depth > 0).all() & many.depth.isfinite().all())
    assert missed(many) < 0.7 * missed(few)
    assert all(parameter.grad is None for parameter in depth_model.backbone.unet.parameters())


def test_members_are_functions_of_the_seed_and_do_not_see_each_other(depth_model):
    one, again, other = (guided(depth_model, IMAGE, POINTS, METRES, steps=2, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(one.depth, again.depth)
    assert not torch.equal(one.depth, other.depth)
    assert one.uncertainty is None
    two = guided(depth_model, IMAGE, POINTS, METRES, steps=2, seed=4, ensemble_size=2)
    assert bool((two.depth <= one.depth).all())  # the lower median of two is the smaller one, and `one` is member 0
    assert bool((two.uncertainty >= 0).all())


@pytest.mark.parametrize(
    ("switches", "reason"),
    [
        (Switches(noise="zeros", timesteps="terminal"), "zeros"),
        (Switches(noise="gaussian", timesteps="terminal"), "one pass"),
        (Switches(mapping="log_depth"), "affine_log_depth"),
    ],
)
def test_models_without_a_latent_to_steer_are_refused(switches, reason):
    with pytest.raises(ValueError, match=reason):
        guided(tiny_model(switches), IMAGE, POINTS, METRES)


def test_the_points_are_checked(depth_model):
    with pytest.raises(ValueError, match=r"room_7.*point 1 .*x=44"):
        guided(depth_model, IMAGE, torch.tensor([[0.0, 0.0], [44.0, 3.0]]), torch.ones(2), name="room_7")
