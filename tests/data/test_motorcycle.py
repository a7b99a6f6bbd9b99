"""The one real photo with measured depth."""

import pytest

from marigold.data.motorcycle import Motorcycle


def test_depth_follows_from_the_published_calibration():
    import numpy as np
    import skimage.data

    data = Motorcycle()
    sample = data[0]
    depth, valid = sample.depth[0].numpy(), sample.valid[0].numpy()
    assert (len(data), data.names, depth.shape) == (1, [sample.name], (500, 741))
    assert valid.mean() == pytest.approx(0.9265, abs=1e-4)
    assert depth[valid].min() == pytest.approx(2.110, abs=1e-3)
    assert depth[valid].max() == pytest.approx(5.017, abs=1e-3)
    assert (depth[~valid] == 0).all()
    disparity = skimage.data.stereo_motorcycle()[2].astype(np.float64)
    np.testing.assert_allclose(193.001 * 994.978 / (disparity[valid] + 31.086) / 1000, depth[valid], rtol=1e-5)
    with pytest.raises(IndexError, match="one sample"):
        data[1]
