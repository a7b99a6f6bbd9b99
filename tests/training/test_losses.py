"""Loss terms against numpy, finite differences and values worked out by hand."""

from functools import partial

import numpy as np
import pytest
import torch

from marigold.training.losses import gradient_l1, l1, latent_mse, mse, ssi_l1

ssi = partial(ssi_l1, weighting="unit", pooling="batch")
PIXEL_TERMS = {
    "l1": l1,
    "mse": mse,
    "ssi": ssi,
    "ssi per image in metres": partial(ssi_l1, weighting="metres", pooling="image"),
    "gradient_l1": gradient_l1,
}


def draw(shape=(3, 1, 6, 7), seed=0, dtype=torch.float64, share=0.7):
    """A prediction, a target, validity and half ranges."""
    generator = torch.Generator().manual_seed(seed)
    prediction, target = (2 * torch.rand(2, *shape, generator=generator, dtype=dtype) - 1).unbind()
    valid = torch.rand(shape[0], 1, *shape[2:], generator=generator) < share
    return prediction, target, valid, 1 + 9 * torch.rand(shape[0], generator=generator, dtype=dtype)


def gradient(term, prediction, *rest):
    prediction = prediction.clone().requires_grad_()
    (slope,) = torch.autograd.grad(term(prediction, *rest), prediction)
    return slope


# ---- every term


@pytest.mark.parametrize("term", PIXEL_TERMS.values(), ids=PIXEL_TERMS)
def test_every_term_has_its_gradient_and_ignores_invalid_pixels(term):
    prediction, target, valid, half_range = draw()
    slope = gradient(term, prediction, target, valid, half_range)
    assert torch.autograd.gradcheck(lambda p: term(p, target, valid, half_range), prediction.clone().requires_grad_())
    other = [torch.where(valid, values, fill) for values, fill in ((prediction, 900.0), (target, -1.0))]
    assert term(*other, valid, half_range).item() == term(prediction, target, valid, half_range).item()
    torch.testing.assert_close(gradient(term, *other, valid, half_range), slope * valid)
    assert term(target, target, valid, half_range).item() == pytest.approx(0, abs=1e-14)
    nothing = torch.zeros_like(valid)
    assert term(prediction, target, nothing, half_range).item() == 0
    assert gradient(term, prediction, target, nothing, half_range).eq(0).all()
    valid[1] = False  # an image without valid pixels beside images with some
    assert gradient(term, prediction, target, valid, half_range).isfinite().all()
    prediction, target, half_range = prediction.to(torch.bfloat16), target.float(), half_range.float()
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


def test_ssi_is_numpys_least_squares_under_every_pooling_and_weighting():
    prediction, target, valid, half_range = draw(share=0.3)
    valid[1] = False  # an image without valid pixels is not one of error 0
    errors = []
    for index in (0, 2):
        mask = valid[index].numpy()
        p, t = (values[index].numpy()[mask] for values in (prediction, target))
        columns = np.stack([p, np.ones(mask.sum())], axis=1)
        errors.append(np.abs(columns @ np.linalg.lstsq(columns, t, rcond=None)[0] - t))
    metres = [one * unit for one, unit in zip(errors, half_range[[0, 2]].numpy(), strict=True)]
    for weighting, parts in (("unit", errors), ("metres", metres)):
        pooled = {"batch": np.concatenate(parts).mean(), "image": np.mean([one.mean() for one in parts])}
        for pooling, expected in pooled.items():
            loss = ssi_l1(prediction, target, valid, half_range, weighting=weighting, pooling=pooling)
            assert loss.item() == pytest.approx(expected, rel=1e-12), (weighting, pooling)


@pytest.mark.parametrize("detach_fit", [False, True])
def test_a_constant_prediction_has_no_fit_and_no_gradient(detach_fit):
    # Large enough for its sum to be rounded, and beside an image that has a fit.
    prediction, target, valid, half_range = draw((2, 1, 97, 103), dtype=torch.float32)
    prediction[0] = torch.where(valid[0], 0.1, 0.9)
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


def test_gradient_l1_by_hand():
    """The pairs of the whole micro-batch: horizontal 1 and 4, vertical 3 and 6, and of the second image 4."""
    error = torch.tensor([[[[0.0, 1], [3, 7]]], [[[0, 4], [0, 0]]]])
    target = torch.full_like(error, 0.5)
    valid = torch.tensor([[[[True, True], [True, True]]], [[[True, True], [False, False]]]])
    assert gradient_l1(target + error, target, valid, torch.ones(2)).item() == pytest.approx((14 + 4) / 5)
    valid[0, 0, 1, 1] = False  # without the corner of 7 a pair of each direction is left
    assert gradient_l1(target + error, target, valid, torch.ones(2)).item() == pytest.approx((1 + 3 + 4) / 3)


@pytest.mark.parametrize("option", ["weighting", "pooling"])
def test_options_without_meaning_are_refused(option):
    with pytest.raises(ValueError, match=f"{option}=feet"):
        ssi(*draw(), **{option: "feet"})
