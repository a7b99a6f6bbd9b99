"""Ensembling against known affine maps, torch.median, numpy's eigenvectors, diffusers' own function, and any input."""

import math

import numpy as np
import pytest
import torch
from diffusers import MarigoldDepthPipeline
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marigold.depth.alignment import apply_affine, fit_affine
from marigold.depth.ensemble import ensemble_depth
from marigold.depth.metrics import METRICS


def scene(seed=0):
    coarse = torch.rand(1, 1, 5, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, size=(48, 64), mode="bilinear")


def unit(depth):
    return (depth - depth.min()) / (depth.max() - depth.min())


def noisy_members(count, noise=0.03):
    generator = torch.Generator().manual_seed(1)
    scale = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    shift = torch.rand(count, 1, 1, 1, generator=generator)
    return scale * (scene() + noise * torch.randn(count, 1, 48, 64, generator=generator)) + shift


def aligned(result, members):
    return result.scale[:, None, None, None] * members + result.shift[:, None, None, None]


@pytest.mark.parametrize("reduction", ["median", "mean"])
@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_affine_copies_of_one_map_give_that_map(count, reduction):
    result = ensemble_depth(noisy_members(count, noise=0.0), reduction=reduction)
    assert torch.allclose(result.depth, unit(scene()), atol=2e-6)
    assert result.uncertainty.abs().max() < 2e-6


def test_a_clipped_member_is_aligned_on_what_clipping_left():
    clean = unit(scene())
    low, high = torch.quantile(clean, 0.15), torch.quantile(clean, 0.85)
    clipped = clean.clamp(low, high)
    members = torch.cat([0.6 * clean + 0.1, 0.8 * clean, 0.7 * clean + 0.2, clipped])
    first, *_, last = aligned(ensemble_depth(members), members)
    left = ((clean > low) & (clean < high))[0]
    # Matched in mean and deviation over all pixels, as if nothing had been clipped.
    untouched = (clipped[0] - clipped.mean()) / clipped.std() * first.std() + first.mean()
    assert (last - first)[left].abs().max() < (untouched - first)[left].abs().max() / 3


def test_scales_are_the_leading_eigenvector_of_the_correlation():
    members = noisy_members(6, noise=0.1)
    result = ensemble_depth(members)
    flat = members.flatten(1).double().numpy()
    ratio = result.scale.double().numpy() / (np.linalg.eigh(np.corrcoef(flat))[1][:, -1] / flat.std(1))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    means = aligned(result, members).mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(means, means[0], atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 7, 10])
def test_centre_and_spread_are_those_of_torch(count):
    members = noisy_members(count)
    result = ensemble_depth(members)
    found = aligned(result, members)
    median = found.median(0, keepdim=True).values
    assert torch.allclose(result.depth, median, atol=1e-5)
    assert torch.allclose(result.uncertainty, (found - median).abs().median(0, keepdim=True).values, atol=1e-5)
    assert (result.depth.min().item(), result.depth.max().item()) == (0.0, 1.0)
    result = ensemble_depth(members, reduction="mean")
    found = aligned(result, members)
    assert torch.allclose(result.depth, found.mean(0, keepdim=True), atol=1e-5)
    assert torch.allclose(result.uncertainty, found.std(0, keepdim=True), atol=1e-5)


def test_scale_only_keeps_zero_and_recovers_the_scales():
    clean = scene() + 1
    factors = torch.tensor([0.5, 1.0, 3.0]).reshape(3, 1, 1, 1)
    result = ensemble_depth(factors * clean, alignment="scale")
    assert torch.allclose(result.depth, clean / clean.max(), atol=1e-6)
    assert result.shift.tolist() == [0, 0, 0]
    assert torch.allclose(result.scale * factors.flatten(), result.scale[1].expand(3), rtol=1e-5)


def test_no_alignment_is_the_plain_median_in_the_members_units():
    members = torch.tensor([1.0, 9.0, 4.0, 5.0]).reshape(4, 1, 1, 1).expand(4, 1, 2, 3)
    result = ensemble_depth(members, alignment="none")
    assert result.depth.unique().tolist() == [4.0]  # the lower median of 1 4 5 9
    assert result.uncertainty.unique().tolist() == [1.0]  # of the distances 3 0 1 5


def test_no_worse_than_the_reference():
    members, clean = noisy_members(6, 0.1), scene() + 1
    everywhere = torch.ones_like(clean, dtype=torch.bool)

    def error(depth):
        return METRICS["abs_rel"](apply_affine(depth, fit_affine(depth, clean, everywhere)), clean, everywhere).item()

    assert error(ensemble_depth(members).depth) <= error(MarigoldDepthPipeline.ensemble_depth(members)[0])


@pytest.mark.parametrize("spoilt", [scene(seed=9)[0], 1 - scene()[0], torch.full((1, 48, 64), 0.25)])
def test_a_member_that_disagrees_or_is_constant_is_left_out(spoilt):
    members = noisy_members(8)
    others = members[[0, 1, 2, 4, 5, 6, 7]].clone()
    members[3] = spoilt
    result, without = ensemble_depth(members), ensemble_depth(others)
    assert torch.allclose(result.depth, without.depth, atol=1e-5)
    assert 0 <= result.scale[3] < 0.5 * without.scale.min()


def test_two_opposite_members_give_the_first_and_constants_0_everywhere():
    assert torch.allclose(ensemble_depth(torch.cat((scene(), 1 - scene()))).depth, unit(scene()), atol=1e-6)
    result = ensemble_depth(torch.full((3, 1, 4, 5), 0.3))
    assert (result.depth.unique().tolist(), result.uncertainty.unique().tolist()) == ([0], [0])


@pytest.mark.parametrize(
    ("members", "arguments", "named"),
    [
        (noisy_members(2), {"method": "bfgs"}, "'bfgs'"),
        (noisy_members(2), {"reduction": "mode"}, "'mode'"),
        (noisy_members(2)[:0], {}, "0, 1, 48, 64"),
        (noisy_members(2) - 9, {"alignment": "scale"}, "scale"),
        (torch.cat([noisy_members(1), scene() * 1e38, scene() * math.nan]), {}, "1, 2 of 3"),
        (torch.cat([noisy_members(1), scene() - math.inf]), {"alignment": "none"}, "1 of 2"),
    ],
)
def test_input_that_cannot_be_ensembled_is_refused(members, arguments, named):
    with pytest.raises(ValueError, match=named):
        ensemble_depth(members, **arguments)


def test_members_far_from_zero_are_aligned_as_well():
    members = noisy_members(5).double()
    result = ensemble_depth((members - 1e4).float())
    assert (result.depth - ensemble_depth(members).depth).abs().max() < 1e-2


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    kinds=st.lists(st.integers(0, 5), min_size=1, max_size=9),
    shape=st.tuples(st.just(1), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**31),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
    reduction=st.sampled_from(["median", "mean"]),
    alignment=st.sampled_from(["affine", "scale", "none"]),
)
def test_any_finite_members_give_a_sound_result(kinds, shape, seed, dtype, reduction, alignment):
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ramp = torch.linspace(0, 1, noise.numel(), dtype=torch.float64).view(shape)
    # Noise, a ramp and its inverse, a constant, one outlying pixel, next to nothing
    members = torch.stack(
        [(noise, ramp + 0.01 * noise, 1 - ramp, 0 * ramp + 0.5, (ramp == 0).double(), 1e-20 * noise)[k] for k in kinds]
    ).to(dtype)
    before = members.clone()
    result = ensemble_depth(members, reduction=reduction, alignment=alignment)
    assert torch.equal(members, before)  # the input is left alone
    assert all(part.isfinite().all() for part in result)
    assert result.depth.shape == result.uncertainty.shape == (1, *shape)
    assert result.depth.dtype == torch.promote_types(dtype, torch.float32)
    assert (result.uncertainty >= 0).all()
    assert alignment == "none" or result.depth.max() <= 1 + 1e-5
    assert alignment != "affine" or result.depth.min() >= -1e-5
