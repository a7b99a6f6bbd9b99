"""The training target against numpy's quantiles and hand-computed maps."""

import numpy as np
import pytest
import torch

from marigold.depth.mapping import MAPPINGS, normalize
from marigold.depth.normalization import normalize_depth

FORMULAS = {
    "depth": lambda z: z,
    "disparity": lambda z: 1 / z,
    "sqrt_disparity": lambda z: 1 / np.sqrt(z),
    "log_depth": np.log,
}


def reference(depth, valid, quantile=0.02):
    values = depth[valid & (depth > 0)].double().numpy()
    low, high = np.quantile(values, [quantile, 1 - quantile])
    return np.clip((depth.double().numpy() - low) / (high - low) * 2 - 1, -1, 1)


@pytest.mark.parametrize("quantile", [0.0, 0.02, 0.25])
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_quantiles_of_the_mapped_depth_become_the_ends(mapping, quantile):
    generator = torch.Generator().manual_seed(2)
    depth = 0.3 + 80 * torch.rand((2, 1, 41, 53), generator=generator) ** 4
    valid = torch.rand(depth.shape, generator=generator) < 0.7
    depth[:, :, :5], depth[:, :, 5:9] = 0, 655.35
    valid[:, :, :9] = False
    result, half_range = normalize(depth, valid, quantile, mapping)
    for got, half, one, mask in zip(result, half_range, depth, valid, strict=True):
        values = FORMULAS[mapping](one[mask].double().numpy())
        low, high = np.quantile(values, [quantile, 1 - quantile])
        np.testing.assert_allclose(got[mask].numpy(), np.clip((values - low) / (high - low) * 2 - 1, -1, 1), atol=1e-5)
        assert half.item() == pytest.approx((high - low) / 2, rel=1e-5)
        far = 1 if MAPPINGS[mapping].increasing else -1
        # Unknown depth is 0, the nearest there is; neither it nor the sky moves a quantile.
        assert (got[:, 5:9] == far).all()
        assert (got[:, :5] == -far).all()
        ordered = got[one > 0][one[one > 0].argsort()] * far
        assert (ordered.diff() >= 0).all()
        inside = (values > low) & (values < high)
        assert np.unique(got[mask].numpy()[inside]).size > 0.9 * np.unique(values[inside]).size


def test_hand_computed_2x2_with_full_range():
    depth = torch.tensor([[[1.0, 2.0], [3.0, 5.0]]])
    result = normalize_depth(depth, torch.ones_like(depth, dtype=torch.bool), quantile=0.0)
    assert torch.allclose(result, torch.tensor([[[-1.0, -0.5], [0.0, 1.0]]]))


def test_hand_computed_interpolation_between_ranks():
    # 0..4 m above 1 m: the quantile 0.1 lies at position 0.4, so at 1.4 m; 0.9 at 4.6 m.
    depth = torch.tensor([[[5.0, 1.0, 3.0, 2.0, 4.0]]])
    result = normalize_depth(depth, torch.ones_like(depth, dtype=torch.bool), quantile=0.1)
    assert torch.allclose(result, torch.tensor([[[1.0, -1.0, 0.0, -0.625, 0.625]]]), atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 37, 53), (1, 1, 1, 4), (3, 1, 40, 31)])
def test_equals_numpy_quantiles(shape):
    generator = torch.Generator().manual_seed(1)
    depth = torch.rand(shape, generator=generator) ** 3 * 80
    valid = torch.rand(shape, generator=generator) < 0.8
    depth[torch.rand(shape, generator=generator) < 0.1] = 0
    result = normalize_depth(depth, valid)
    for got, one, mask in zip(
        result.reshape(-1, *shape[-2:]), depth.reshape(-1, *shape[-2:]), valid.reshape(-1, *shape[-2:]), strict=True
    ):
        np.testing.assert_allclose(got.numpy(), reference(one, mask), atol=2e-6)


def test_many_equal_depths_and_a_map_beyond_the_limit_of_torch_quantile():
    depth = torch.arange(17_000_000).remainder(1000).div(10).add(1).reshape(1, 4000, 4250)
    result = normalize_depth(depth, torch.ones_like(depth, dtype=torch.bool))
    assert result[0, 0, 500].item() == pytest.approx(float(reference(depth, depth > 0)[0, 0, 500]), abs=1e-6)


def test_unknown_pixels_do_not_count_and_get_what_the_formula_gives():
    depth = torch.tensor([[[1.0, 2.0, 3.0, 0.0, 65535.0]]])
    valid = torch.tensor([[[True, True, True, True, False]]])
    assert normalize_depth(depth, valid, quantile=0.0).tolist() == [[[-1.0, 0.0, 1.0, -1.0, 1.0]]]


@pytest.mark.parametrize(
    ("depth", "valid", "message"),
    [
        ([[1.0, 2.0]], [[False, False]], "map 0 of 1 has no valid pixel"),
        ([[0.0, 0.0]], [[True, True]], "no valid pixel"),
        ([[7.0, 7.0]], [[True, True]], "are both 7"),
        ([[1.0, float("inf")]], [[True, True]], "infinite"),
        ([[1.0, 2.0, float("nan")]], [[True, True, True]], "NaN"),
        ([[1.0, 2.0, float("nan")]], [[True, True, False]], "NaN"),
    ],
)
def test_maps_without_a_range_are_refused(depth, valid, message):
    with pytest.raises(ValueError, match=message):
        normalize_depth(torch.tensor([depth]), torch.tensor([valid]))


def test_quantile_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="quantile must be in"):
        normalize_depth(torch.ones(1, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool), quantile=0.5)
