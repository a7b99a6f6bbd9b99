"""Ensembling against known affine maps, torch.median, numpy's eigenvectors and diffusers' own function."""

import numpy as np
import pytest
import torch
from diffusers import MarigoldDepthPipeline

from marigold.depth.alignment import apply_affine, fit_affine
from marigold.depth.ensemble import ensemble_depth
from marigold.depth.metrics import METRICS


def scene(height=48, width=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 5, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def unit(depth):
    return (depth - depth.min()) / (depth.max() - depth.min())


def noisy_members(count, noise=0.03, seed=1):
    generator = torch.Generator().manual_seed(seed)
    scale = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
    shift = torch.rand(count, 1, 1, 1, generator=generator)
    clean = scene()
    noise_maps = noise * torch.randn(count, 1, *clean.shape[-2:], generator=generator)
    return scale * (clean + noise_maps) + shift


def error(result, clean):
    everywhere = torch.ones_like(clean, dtype=torch.bool)
    aligned = apply_affine(result, fit_affine(result, clean, everywhere))
    return METRICS["abs_rel"](aligned, clean, everywhere).item()


@pytest.mark.parametrize("reduction", ["median", "mean"])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 64])
def test_affine_copies_of_one_map_give_that_map(count, reduction):
    result = ensemble_depth(noisy_members(count, noise=0.0), reduction=reduction)
    assert torch.allclose(result.depth, unit(scene()), atol=2e-6)
    assert result.uncertainty.abs().max() < 2e-6


def test_one_member_is_the_identity_after_the_range_mapping():
    member = torch.tensor([[[[2.0, 3.0], [6.0, 4.0]]]])
    result = ensemble_depth(member)
    assert torch.allclose(result.depth, torch.tensor([[[[0.0, 0.25], [1.0, 0.5]]]]), atol=1e-6)
    assert result.uncertainty.tolist() == [[[[0.0, 0.0], [0.0, 0.0]]]]
    assert (result.scale.item(), result.shift.item()) == pytest.approx((0.25, -0.5), abs=1e-6)


def test_a_clipped_member_is_aligned_on_what_clipping_left():
    clean = unit(scene())
    low, high = torch.quantile(clean, 0.15), torch.quantile(clean, 0.85)
    clipped = clean.clamp(low, high)
    members = torch.cat([0.6 * clean + 0.1, 0.8 * clean, 0.7 * clean + 0.2, clipped])
    result = ensemble_depth(members)
    left = (clean > low) & (clean < high)
    first, last = (result.scale[i] * members[i] + result.shift[i] for i in (slice(0, 1), slice(3, 4)))
    # Matched in mean and deviation over all pixels, as if nothing had been clipped.
    untouched = (clipped - clipped.mean()) / clipped.std() * first.std() + first.mean()
    assert (last - first)[left].abs().max() < (untouched - first)[left].abs().max() / 3


def test_scales_are_the_leading_eigenvector_of_the_correlation():
    members = noisy_members(6, noise=0.1)
    result = ensemble_depth(members, min_agreement=0.0)
    flat = members.flatten(1).double().numpy()
    expected = np.linalg.eigh(np.corrcoef(flat))[1][:, -1] / flat.std(1)
    ratio = result.scale.double().numpy() / expected
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)
    # All aligned members have the same mean.
    aligned = result.scale.numpy() * flat.mean(1) + result.shift.numpy()
    np.testing.assert_allclose(aligned, aligned[0], atol=1e-5)


@pytest.mark.parametrize("count", [2, 3, 4, 7, 10])
def test_median_and_deviation_are_those_of_torch(count):
    members = noisy_members(count)
    result = ensemble_depth(members, min_agreement=0.0)
    aligned = result.scale[:, None, None, None] * members + result.shift[:, None, None, None]
    median = aligned.median(0, keepdim=True).values
    assert torch.allclose(result.depth, median, atol=1e-5)
    assert torch.allclose(result.uncertainty, (aligned - median).abs().median(0, keepdim=True).values, atol=1e-5)
    assert (result.depth.min().item(), result.depth.max().item()) == (0.0, 1.0)


def test_mean_has_the_standard_deviation_as_uncertainty():
    members = noisy_members(5)
    result = ensemble_depth(members, reduction="mean", min_agreement=0.0)
    aligned = result.scale[:, None, None, None] * members + result.shift[:, None, None, None]
    assert torch.allclose(result.depth, aligned.mean(0, keepdim=True), atol=1e-5)
    assert torch.allclose(result.uncertainty, aligned.std(0, keepdim=True), atol=1e-5)


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
    assert (result.scale.tolist(), result.shift.tolist()) == ([1.0] * 4, [0.0] * 4)


@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_no_worse_than_the_reference(noise):
    members = noisy_members(6, noise)
    theirs, _ = MarigoldDepthPipeline.ensemble_depth(members)
    clean = scene() + 1
    assert error(ensemble_depth(members).depth, clean) <= error(theirs, clean)


def test_a_foreign_scene_is_left_out():
    members = noisy_members(8)
    members[3] = scene(seed=9)[0]
    others = torch.cat((members[:3], members[4:]))
    result, without = ensemble_depth(members), ensemble_depth(others)
    assert torch.allclose(result.depth, without.depth, atol=1e-5)
    assert torch.allclose(result.scale[[0, 1, 2, 4, 5, 6, 7]], without.scale, rtol=1e-5)
    assert abs(result.scale[3]) < 0.5 * without.scale.min()


def test_an_inverted_member_is_left_out_and_gets_scale_0():
    members = noisy_members(5)
    members[2] = 1 - members[2]
    result = ensemble_depth(members)
    assert result.scale[2] == 0
    assert (result.scale[[0, 1, 3, 4]] > 0).all()
    assert torch.allclose(result.depth, ensemble_depth(members[[0, 1, 3, 4]]).depth, atol=1e-5)


def test_two_opposite_members_give_the_first():
    member = scene()
    result = ensemble_depth(torch.cat((member, 1 - member)))
    assert torch.allclose(result.depth, unit(member), atol=1e-6)


def test_constant_members_are_left_out():
    members = noisy_members(4)
    members[0], members[3] = 0.25, 0.0
    result = ensemble_depth(members)
    assert torch.allclose(result.depth, ensemble_depth(members[1:3]).depth, atol=1e-5)
    assert result.scale[[0, 3]].tolist() == [0, 0]


@pytest.mark.parametrize("count", [1, 3])
def test_constants_alone_give_0_everywhere(count):
    result = ensemble_depth(torch.full((count, 1, 4, 5), 0.3))
    assert result.depth.unique().tolist() == [0]
    assert result.uncertainty.unique().tolist() == [0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("alignment", ["affine", "scale", "none"])
def test_members_that_are_not_finite_are_named(value, alignment):
    members = noisy_members(5)
    members[1, 0, 2, 3] = members[4, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"member\(s\) 1, 4 of 5 have NaN or infinity"):
        ensemble_depth(members, alignment=alignment)


def test_other_input_that_cannot_be_ensembled_is_refused():
    members = noisy_members(2)
    for arguments, message in [
        ({"method": "bfgs"}, "unknown ensembling method 'bfgs'"),
        ({"reduction": "mode"}, "reduction is"),
        ({"alignment": "shift"}, "alignment"),
    ]:
        with pytest.raises(ValueError, match=message):
            ensemble_depth(members, **arguments)
    with pytest.raises(ValueError, match="nothing to ensemble"):
        ensemble_depth(members[:0])
    with pytest.raises(ValueError, match="above 1e"):
        ensemble_depth(members * 1e38)
    with pytest.raises(ValueError, match="scale-only ensembling needs members of 0 or more"):
        ensemble_depth(members - 9, alignment="scale")


def test_a_function_can_ensemble_instead():
    members = noisy_members(4)

    def reference(depth):
        return MarigoldDepthPipeline.ensemble_depth(depth, output_uncertainty=True)

    result = ensemble_depth(members, method=reference)
    depth, uncertainty = reference(members)
    assert torch.equal(result.depth, depth)
    assert torch.equal(result.uncertainty, uncertainty)
    aligned = result.scale[:, None, None, None] * members + result.shift[:, None, None, None]
    assert (aligned - depth).abs().mean() < 0.03


@pytest.mark.parametrize("offset", [0.0, 100.0, -1e4])
def test_members_far_from_zero_are_aligned_as_well(offset):
    members = noisy_members(5).double()
    result = ensemble_depth((members + offset).float())
    assert (result.depth - ensemble_depth(members).depth).abs().max() < max(1e-5, 1e-6 * abs(offset))


def test_half_precision_maps_are_ensembled_in_float32():
    members = noisy_members(4)
    result = ensemble_depth(members.half())
    assert result.depth.dtype == torch.float32
    assert torch.allclose(result.depth, ensemble_depth(members.half().float()).depth)


def test_the_input_stays_as_it_was():
    members = noisy_members(4)
    before = members.clone()
    ensemble_depth(members)
    ensemble_depth(members, alignment="none", reduction="mean")
    assert torch.equal(members, before)
