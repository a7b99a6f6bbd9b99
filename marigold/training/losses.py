"""The loss terms of the recipes: functions of a prediction, its target and where the target is valid.

A term on latents is called as term(prediction, target, valid, **options), a term on pixels as term(prediction,
target, valid, half_range, **options). There prediction and target are normalised depth, the target in [-1, 1], and
half_range (B,) is half of the distance between the two quantiles of each image that became -1 and 1, in the units of
the depth mapping: metres for plain depth. Values at invalid pixels do not matter as long as they and their squares
are finite. Every term is computed in float32, or in float64 if so given, whatever autocast made of the prediction,
and is 0 with a gradient of 0 where nothing is valid.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def latent_mse(
    prediction: Float[Tensor, "B 4 h w"], target: Float[Tensor, "B 4 h w"], valid: Bool[Tensor, "B 1 h w"]
) -> Float[Tensor, ""]:
    """Mean squared error over the valid latent elements of the micro-batch.

    Source: Ke et al., CVPR 2024, eq. 2 (there for noise) and section 4.1 (v).
    """
    return _mean((_full(prediction) - _full(target)).square(), valid)


def mse(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    half_range: Float[Tensor, "B"],
) -> Float[Tensor, ""]:
    """Mean squared error over the valid pixels of the micro-batch; half_range is not used."""
    return _mean((_full(prediction) - _full(target)).square(), valid)


def l1(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    half_range: Float[Tensor, "B"],
) -> Float[Tensor, ""]:
    """Mean absolute error over the valid pixels of the micro-batch; half_range is not used."""
    return _mean((_full(prediction) - _full(target)).abs(), valid)


def ssi_l1(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    half_range: Float[Tensor, "B"],
    *,
    weighting: str,
    pooling: str,
    detach_fit: bool = False,
) -> Float[Tensor, ""]:
    """Mean absolute error of scale * prediction + shift, the least-squares fit of each image to its target.

    weighting: `metres` multiplies an image's errors by its half_range, into the units of the mapped depth;
    `unit` leaves them as normalised. pooling: the mean over all valid pixels of the micro-batch together (`batch`),
    or over each image and then over the images that have some (`image`). The gradient flows through scale and shift
    unless detach_fit. Both are 0, and so is the gradient, where the prediction of an image is constant. Raises
    ValueError for another weighting or pooling. Source: E2E-FT (Garcia et al., WACV 2025) is `metres`,
    `batch`.
    """
    if weighting not in ("metres", "unit"):
        raise ValueError(f"ssi_l1: weighting={weighting}: expected metres or unit")
    if pooling not in ("batch", "image"):
        raise ValueError(f"ssi_l1: pooling={pooling}: expected batch or image")
    predicted, wanted = _full(prediction), _full(target)
    fitted = predicted.detach() if detach_fit else predicted
    # The normal equations with a00 = sum p^2, a01 = sum p, a11 = n, b0 = sum p t, b1 = sum t give
    #   scale = (a11 b0 - a01 b1) / det,  shift = (a00 b1 - a01 b0) / det,  det = a00 a11 - a01^2.
    # About the means that is det = n^2 var(p), scale = cov(p, t) / var(p), shift = mean(t) - scale mean(p), where
    # float32 does not lose a small variance in the difference of two large sums. The mean itself is taken about a
    # valid pixel: of a constant it is then that constant, not rounded, and the variance is 0 and not almost 0.
    anchor = predicted.detach().flatten(1).gather(1, valid.flatten(1).byte().argmax(1, keepdim=True))[:, :, None, None]
    center = anchor + _image_means(fitted - anchor, valid)
    wanted_mean = _image_means(wanted, valid)
    variance = _image_means((fitted - center).square(), valid)
    covariance = _image_means((fitted - center) * (wanted - wanted_mean), valid)
    solvable = variance > 0
    # `where` also differentiates the branch not taken, so the divisor must be nonzero in both.
    scale = covariance / torch.where(solvable, variance, 1)
    aligned = torch.where(solvable, scale * (predicted - center) + wanted_mean, 0)
    errors = (aligned - wanted).abs()
    if weighting == "metres":
        errors = errors * half_range.to(errors.dtype)[:, None, None, None]
    if pooling == "batch":
        return _mean(errors, valid)
    return _mean(_image_means(errors, valid), valid.flatten(1).any(1)[:, None, None, None])


def gradient_l1(
    prediction: Float[Tensor, "B 1 H W"],
    target: Float[Tensor, "B 1 H W"],
    valid: Bool[Tensor, "B 1 H W"],
    half_range: Float[Tensor, "B"],
) -> Float[Tensor, ""]:
    """Mean absolute difference of the error, prediction - target, between neighbours that are both valid.

    The mean is over all pairs of the micro-batch, horizontal and vertical together; half_range is not used. Source:
    Li and Snavely, CVPR 2018, section 4 (MegaDepth), at one scale and without the logarithm.
    """
    error = _full(prediction) - _full(target)
    right = (error[..., 1:] - error[..., :-1], valid[..., 1:] & valid[..., :-1])
    down = (error[..., 1:, :] - error[..., :-1, :], valid[..., 1:, :] & valid[..., :-1, :])
    differences, both = (torch.cat([one.flatten(), two.flatten()]) for one, two in zip(right, down, strict=True))
    return _mean(differences.abs(), both)


def _full(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


# Means multiply by the mask and do not select by it: selecting would wait for the device to count.
def _mean(values: Float[Tensor, "*shape"], valid: Bool[Tensor, "*mask"]) -> Float[Tensor, ""]:
    weight = valid.to(values.dtype).expand_as(values)
    return (values * weight).sum() / weight.sum().clamp(min=1)


def _image_means(values: Float[Tensor, "B 1 H W"], valid: Bool[Tensor, "B 1 H W"]) -> Float[Tensor, "B 1 1 1"]:
    weight = valid.to(values.dtype)
    return (values * weight).sum((1, 2, 3), keepdim=True) / weight.sum((1, 2, 3), keepdim=True).clamp(min=1)
