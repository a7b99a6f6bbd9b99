"""Loss terms against numpy, finite differences and values worked out by hand."""

from functools import partial

import numpy as np
import pytest
import torch

from marigold.training.losses import gradient_huber, gradient_l1, l1, latent_mse, mse, ssi_l1

ssi = partial(ssi_l1, weighting="unit", pooling="batch")
PIXEL_TERMS = {
    "l1": l1,
    "mse": mse,
    "ssi": ssi,
    "ssi per image in metres": partial(ssi_l1, weighting="metres", pooling="image"),
    "gradient_l1": partial(gradient_l1, scales=3),
    "gradient_huber": partial(gradient_huber, delta=0.6),  # about as many differences below as above
}
each_pixel_term = pytest.mark.parametrize("term", PIXEL_TERMS.values(), ids=PIXEL_TERMS)


def draw(shape=(3, 1, 6, 7), seed=0, dtype=torch.float64, share=0.7):
    """A prediction, a target, validity and half ranges."""
    generator = torch.Generator().manual_seed(seed)
    prediction, target = (2 * torch.rand(2, *shape, generator=generator, dtype=dtype) - 1).unbind()
    valid = torch.rand(shape[0], 1, *shape[2:], generator=generator) < share
    return prediction, target, valid, 1 + 9 * torch.rand(shape[0], generator=generator, dtype=dtype)


def image(*rows):
    return torch.tensor(rows)[None, None]


def gradient(term, prediction, *rest):
    prediction = prediction.clone().requires_grad_()
    (slope,) = torch.autograd.grad(term(prediction, *rest), prediction)
    return slope


# ---- every term


@each_pixel_term
def test_gradient_is_that_of_finite_differences(term):
    prediction, target, valid, half_range = draw()
    assert torch.autograd.gradcheck(lambda p: term(p, target, valid, half_range), prediction.requires_grad_())


@each_pixel_term
def test_invalid_pixels_do_not_count_and_a_good_prediction_costs_nothing(term):
    prediction, target, valid, half_range = draw()
    other = [torch.where(valid, values, fill) for values, fill in ((prediction, 900.0), (target, -1.0))]
    assert term(*other, valid, half_range).item() == term(prediction, target, valid, half_range).item()
    assert gradient(term, *other, valid, half_range)[~valid].eq(0).all()
    nothing = torch.zeros_like(valid)
    assert term(prediction, target, nothing, half_range).item() == 0
    assert gradient(term, prediction, target, nothing, half_range).eq(0).all()
    assert term(target, target, valid, half_range).item() == pytest.approx(0, abs=1e-14)
    valid[1] = False  # an image without any beside images with some
    assert gradient(term, prediction, target, valid, half_range).isfinite().all()


@each_pixel_term
def test_float32_whatever_autocast_made(term):
    prediction, target, valid, half_range = draw(dtype=torch.float32)
    prediction = prediction.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = term(prediction, target, valid, half_range)
    assert loss.dtype == torch.float32
    assert loss.item() == term(prediction.float(), target, valid, half_range).item()


# ---- means


def test_means_over_the_valid_pixels_of_the_micro_batch():
    prediction, target, valid, half_range = draw()
    errors = (prediction - target)[valid].numpy()
    assert l1(prediction, target, valid, half_range).item() == pytest.approx(np.abs(errors).mean(), rel=1e-12)
    assert mse(prediction, target, valid, half_range).item() == pytest.approx((errors**2).mean(), rel=1e-12)
    latents = [part.expand(-1, 4, -1, -1) for part in (prediction, target)]
    assert latent_mse(*latents, valid).item() == pytest.approx((errors**2).mean(), rel=1e-12)
    assert latent_mse(*latents, valid & False).item() == 0


# ---- scale and shift


@pytest.mark.parametrize(("scale", "shift"), [(3.0, -0.7), (0.01, 40.0), (-2.0, 0.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ssi_is_blind_to_scale_and_shift(scale, shift, dtype):
    prediction, target, valid, half_range = draw(dtype=dtype)
    precision = torch.finfo(dtype).eps * (1 + abs(shift / scale))
    exact = ssi(scale * target + shift, target, valid, half_range).item()
    assert exact == pytest.approx(0, abs=4 * precision)
    moved = ssi(scale * prediction + shift, target, valid, half_range).item()
    assert moved == pytest.approx(ssi(prediction, target, valid, half_range).item(), abs=4 * precision)


def test_ssi_is_numpys_least_squares():
    prediction, target, valid, half_range = draw(share=0.3)
    errors = []
    for p, t, mask in zip(prediction.numpy(), target.numpy(), valid.numpy(), strict=True):
        columns = np.stack([p[mask], np.ones(mask.sum())], axis=1)
        solution = np.linalg.lstsq(columns, t[mask], rcond=None)[0]
        errors.append(np.abs(columns @ solution - t[mask]))
    pooled = np.concatenate(errors).mean()
    assert ssi(prediction, target, valid, half_range).item() == pytest.approx(pooled, rel=1e-12)
    per_image = ssi(prediction, target, valid, half_range, pooling="image").item()
    assert per_image == pytest.approx(np.mean([one.mean() for one in errors]), rel=1e-12)


def test_pooling_by_hand():
    # Over the valid pixels prediction and target do not correlate: the fit is the target's mean, 0 and 1.
    prediction = torch.tensor([[1.0, 1, -1, -1], [1, -2, 1, 0]]).reshape(2, 1, 2, 2)
    target = torch.tensor([[1.0, -1, 1, -1], [3, 1, -1, 0]]).reshape(2, 1, 2, 2)
    valid = torch.tensor([[True] * 4, [True] * 3 + [False]]).reshape(2, 1, 2, 2)
    half_range = torch.tensor([2.0, 10.0])
    # Errors: four of 1, and 2, 0, 2.
    assert ssi(prediction, target, valid, half_range).item() == pytest.approx(8 / 7)
    assert ssi(prediction, target, valid, half_range, pooling="image").item() == pytest.approx((1 + 4 / 3) / 2)
    assert ssi(prediction, target, valid, half_range, weighting="metres").item() == pytest.approx(48 / 7)
    both = ssi(prediction, target, valid, half_range, weighting="metres", pooling="image").item()
    assert both == pytest.approx((2 + 40 / 3) / 2)
    # An image without valid pixels is not one of error 0.
    valid[0] = False
    assert ssi(prediction, target, valid, half_range, pooling="image").item() == pytest.approx(4 / 3)


@pytest.mark.parametrize("value", [0.0, 0.1])
@pytest.mark.parametrize("detach_fit", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_a_constant_prediction_has_no_fit_and_no_gradient(value, detach_fit, whole):
    # Large enough for its sum to be rounded, and beside an image that has a fit.
    prediction, target, valid, half_range = draw((2, 1, 97, 103), dtype=torch.float32)
    prediction[0] = value if whole else torch.where(valid[0], value, 0.9)
    term = partial(ssi, pooling="image", detach_fit=detach_fit)
    alone = term(prediction[:1], target[:1], valid[:1], half_range[:1])
    assert alone.item() == pytest.approx(target[0][valid[0]].abs().mean().item(), rel=1e-6)
    slope = gradient(term, prediction, target, valid, half_range)
    assert slope[0].eq(0).all()
    assert slope[1].isfinite().all()
    assert slope[1].ne(0).any()


def test_a_small_variance_far_from_zero_keeps_its_fit():
    # In float32 the normal equations as they stand, a difference of two numbers of 4e7, give 0.15 instead of 0.05.
    prediction, target, valid, half_range = draw((1, 1, 100, 100))
    far = (0.9 + 1e-3 * (target + 0.1 * prediction)).float()
    expected = ssi(far.double(), target, valid, half_range).item()
    assert ssi(far, target.float(), valid, half_range.float()).item() == pytest.approx(expected, rel=1e-4)


def test_detached_fit_is_a_constant_scale_and_shift():
    prediction, target, valid, half_range = draw((1, 1, 6, 7))
    scale, shift = np.polyfit(prediction[valid].numpy(), target[valid].numpy(), 1)
    expected = scale * (scale * prediction + shift - target).sign() * valid / valid.sum()
    detached = gradient(partial(ssi, detach_fit=True), prediction, target, valid, half_range)
    torch.testing.assert_close(detached, expected, rtol=1e-10, atol=0)
    assert not torch.allclose(gradient(ssi, prediction, target, valid, half_range), expected, rtol=1e-3)
    loss = ssi(prediction, target, valid, half_range)
    assert ssi(prediction, target, valid, half_range, detach_fit=True).item() == loss.item()


# ---- differences between neighbours

NONE = torch.zeros(3, 3)[None, None]
ALL = torch.ones(1, 1, 3, 3, dtype=torch.bool)
HALF_RANGE = torch.ones(1)


def test_gradient_l1_by_hand():
    """The pairs of the whole micro-batch: horizontal 1 and 4, vertical 3 and 6, and of the second image 4."""
    error = torch.tensor([[[[0.0, 1], [3, 7]]], [[[0, 4], [0, 0]]]])
    target = torch.full_like(error, 0.5)
    valid = torch.tensor([[[[True, True], [True, True]]], [[[True, True], [False, False]]]])
    assert gradient_l1(target + error, target, valid, torch.ones(2)).item() == pytest.approx((14 + 4) / 5)
    valid[0, 0, 1, 1] = False  # without the corner of 7 a pair of each direction is left
    assert gradient_l1(target + error, target, valid, torch.ones(2)).item() == pytest.approx((1 + 3 + 4) / 3)


def test_gradient_l1_adds_coarser_scales():
    error = image([0.0, 1.0, 4.0], [1.0, 1.0, 1.0], [2.0, 0.0, 8.0])
    fine, coarse = (1 + 3 + 0 + 0 + 2 + 8 + 1 + 0 + 3 + 1 + 1 + 7) / 12, (4 + 6 + 2 + 4) / 4
    assert gradient_l1(error, NONE, ALL, HALF_RANGE).item() == pytest.approx(fine)
    assert gradient_l1(error, NONE, ALL, HALF_RANGE, scales=2).item() == pytest.approx(fine + coarse)
    # A single pixel is left of the third scale: no pair, no loss.
    assert gradient_l1(error, NONE, ALL, HALF_RANGE, scales=3).item() == pytest.approx(fine + coarse)


def test_gradient_huber_by_hand():
    # One pixel is off by 1 at a corner: one pair in each of three directions; at an edge and in the middle more.
    for row, column, pairs in ((0, 0, 3), (0, 1, 5), (1, 1, 8)):
        error = NONE.clone()
        error[..., row, column] = 1
        value = (1 + 0.04) / 0.4
        assert gradient_huber(error, NONE, ALL, HALF_RANGE).item() == pytest.approx(pairs * value / 20)
        assert gradient_huber(error / 10, NONE, ALL, HALF_RANGE).item() == pytest.approx(pairs * 0.1 / 20)
    valid, corner = ALL.clone(), NONE.clone()
    valid[..., 1, 1] = False  # 8 of the 20 pairs
    corner[..., 0, 0] = 0.1
    assert gradient_huber(corner, NONE, valid, HALF_RANGE).item() == pytest.approx(2 * 0.1 / 12)


def test_gradient_huber_has_the_published_slope_times_delta():
    for size, slope in ((0.2 - 1e-9, 1), (0.2 + 1e-9, 1), (1.0, 1.0 / 0.2)):
        pair = image([0.0, size]).double()
        rest = torch.zeros_like(pair), torch.ones_like(pair, dtype=torch.bool), HALF_RANGE.double()
        assert gradient(gradient_huber, pair, *rest)[..., 1].item() == pytest.approx(slope)


# ---- options


@pytest.mark.parametrize(
    ("term", "options"),
    [
        (ssi, {"weighting": "feet"}),
        (ssi, {"pooling": "pixel"}),
        (gradient_l1, {"scales": 0}),
        (gradient_huber, {"delta": 0.0}),
    ],
)
def test_options_without_meaning_are_refused(term, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}={options[name]}"):
        term(*draw(), **options)
