"""The training target against numpy's quantiles and a hand-computed map."""

import math

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


@pytest.mark.parametrize("quantile", [0.0, 0.02])
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_the_ends_are_numpys_quantiles_of_the_mapped_depth(mapping, quantile):
    generator = torch.Generator().manual_seed(2)
    depth = 0.3 + 80 * torch.rand((2, 1, 41, 53), generator=generator) ** 4
    valid = torch.rand(depth.shape, generator=generator) < 0.7
    depth[:, :, :5], depth[:, :, 5:9] = 0, 655.35
    valid[:, :, 5:9] = False
    result, half_range = normalize(depth, valid, quantile, mapping)
    valid &= depth > 0  # unknown depth is 0, whatever the mask says
    for got, half, one, mask in zip(result, half_range, depth, valid, strict=True):
        values = FORMULAS[mapping](one[mask].double().numpy())
        low, high = np.quantile(values, [quantile, 1 - quantile])
        np.testing.assert_allclose(got[mask].numpy(), np.clip((values - low) / (high - low) * 2 - 1, -1, 1), atol=1e-5)
        assert half.item() == pytest.approx((high - low) / 2, rel=1e-5)
        far = 1 if MAPPINGS[mapping].increasing else -1
        # Neither unknown depth, which counts as nearest, nor the sky moves a quantile.
        assert (got[:, 5:9] == far).all()
        assert (got[:, :5] == -far).all()


def test_by_hand():
    # 0..4 m above 1 m: the quantile 0.1 lies at position 0.4, so at 1.4 m; 0.9 at 4.6 m.
    depth = torch.tensor([[[5.0, 1.0, 3.0, 2.0, 4.0]]])
    result = normalize_depth(depth, depth > 0, 0.1)
    assert result.flatten().tolist() == pytest.approx([1.0, -1.0, 0.0, -0.625, 0.625], abs=1e-6)


@pytest.mark.parametrize(
    ("depth", "valid", "quantile", "named"),
    [
        ([1.0, 2.0], [False, False], 0.02, "map 0 of 1"),
        ([7.0, 7.0], [True, True], 0.02, "map 0 of 1"),
        ([1.0, math.inf], [True, True], 0.02, "map 0 of 1"),
        ([1.0, 2.0, math.nan], [True, True, False], 0.02, "map 0 of 1"),
        ([1.0, 2.0], [True, True], 0.5, "quantile"),
    ],
)
def test_maps_without_a_range_and_such_quantiles_are_refused(depth, valid, quantile, named):
    with pytest.raises(ValueError, match=named):
        normalize_depth(torch.tensor([[depth]]), torch.tensor([[valid]]), quantile)
