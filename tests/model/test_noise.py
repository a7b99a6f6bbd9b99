import pytest
import torch
import torch.nn.functional as F

from marigold.model.noise import annealed_strength, multi_resolution_noise


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("strength", "expected", "tolerance"), [(0.0, 0.050, 0.001), (0.45, 0.130, 0.005), (0.9, 0.426, 0.02)]
)
def test_low_frequencies_have_the_reference_statistics(strength: float, expected: float, tolerance: float):
    """Means over 20 x 20 cells; white noise has 1 / 20."""
    generator = seeded(0)
    draws = [multi_resolution_noise((1, 4, 60, 80), strength, generator=generator) for _ in range(400)]
    pooled = [F.avg_pool2d(noise, 20).std() for noise in draws]
    assert torch.stack(pooled).mean().item() == pytest.approx(expected, abs=tolerance)
    assert torch.stack([noise.std() for noise in draws]).sub(1).abs().max() < 1e-5


def test_a_strength_per_sample_counts_for_that_sample():
    one = multi_resolution_noise((2, 4, 12, 16), 0.5, generator=seeded(3))
    each = multi_resolution_noise((2, 4, 12, 16), torch.tensor([0.5, 0.5]), generator=seeded(3))
    assert torch.equal(one, each)
    noise = multi_resolution_noise((2, 4, 60, 80), torch.tensor([0.0, 0.9]), generator=seeded(4))
    weak, strong = F.avg_pool2d(noise, 20).std(dim=(1, 2, 3)) / noise.std(dim=(1, 2, 3))
    assert weak.item() < 0.1 < 0.2 < strong.item()


def test_annealed_strength_is_linear_in_the_timestep():
    strength = annealed_strength(torch.tensor([0, 500, 999]), 0.9)
    torch.testing.assert_close(strength, torch.tensor([0.0, 0.45, 0.8991]))


def test_the_smallest_latent_has_noise_and_a_strength_of_1_is_refused():
    assert multi_resolution_noise((1, 4, 1, 1), 0.9, generator=seeded(7)).isfinite().all()
    for strength in (1.0, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            multi_resolution_noise((1, 4, 6, 8), strength, generator=seeded(0))
