"""Alignment and metrics in plain float64 numpy, from the formulas alone; nothing comes from marigold."""

import numpy as np


def line(pred, target, valid, thin=lambda values: values):
    """Least squares of target on (pred, 1) over the valid pixels that `thin` leaves, by numpy's own solver."""
    x, y = (thin(values)[thin(valid)].astype(np.float64) for values in (pred, target))
    (scale, shift), *_ = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)
    return scale * pred.astype(np.float64) + shift


def metrics(pred, target, valid):
    p, g = pred[valid].astype(np.float64), target[valid].astype(np.float64)
    e = np.log(p) - np.log(g)
    ratio = np.maximum(p / g, g / p)
    return {
        "abs_rel": np.mean(np.abs(p - g) / g),
        "sq_rel": np.mean((p - g) ** 2 / g),
        "rmse": np.sqrt(np.mean((p - g) ** 2)),
        "rmse_log": np.sqrt(np.mean(e**2)),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(g))),
        "delta1": np.mean(ratio < 1.25),
        "delta2": np.mean(ratio < 1.25**2),
        "delta3": np.mean(ratio < 1.25**3),
        "i_rmse": np.sqrt(np.mean((1 / p - 1 / g) ** 2)),
        "silog": 100 * np.sqrt(np.mean(e**2) - np.mean(e) ** 2),
        "mae": np.mean(np.abs(p - g)),
    }


def thin_width(values, longest):
    """Every (1 / s)-th column, s = min(longest / H, longest / W); the rows all stay."""
    height, width = values.shape
    s = min(longest / height, longest / width)
    columns = np.floor(np.arange(int(np.floor(width * s))) / s).astype(int)
    return values[:, columns]
