"""The VAE's latents against its own parts, sizes and padding, and batches that fit into memory."""

import numpy as np
import pytest
import torch

from marigold.model.backbone import Backbone
from marigold.model.latents import (
    OutOfMemoryError,
    decode_depth,
    encode_depth,
    encode_image,
    in_batches,
    pad_to_latent,
    processing_size,
    resize,
)


@torch.no_grad()
def test_depth_is_a_grey_image_and_decoded_within_its_range_in_float32(base: Backbone):
    depth = torch.rand(2, 1, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(encode_depth(base.vae, depth), encode_image(base.vae, depth.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="16 x 17"):
        encode_image(base.vae, torch.zeros(1, 3, 16, 17))
    base.vae.decoder.conv_out.bias += 100
    decoded = decode_depth(base.vae.to(torch.bfloat16), torch.zeros(1, 4, 2, 2))
    assert (decoded.dtype, decoded.unique().tolist()) == (torch.float32, [1])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((480, 640, 0), (480, 640)),
        ((375, 1242, 768), (231, 768)),
        ((640, 480, 100), (100, 75)),
        ((1, 5000, 768), (1, 768)),
    ],
)
def test_processing_size(given: tuple[int, int, int], expected: tuple[int, int]):
    assert processing_size(*given) == expected


def test_padding_repeats_the_last_row_and_column_and_shrinking_is_antialiased():
    image = torch.arange(3.0 * 9 * 10).reshape(1, 3, 9, 10)
    padded = np.pad(image.numpy(), ((0, 0), (0, 0), (0, 7), (0, 6)), "edge")
    np.testing.assert_array_equal(pad_to_latent(image).numpy(), padded)
    stripes = (torch.arange(64) % 2).float().expand(1, 1, 64, 64)
    assert (resize(stripes, (8, 8)) - 0.5).abs().max() < 0.1


@pytest.mark.parametrize(
    ("batch_size", "limit", "expected"), [(3, 10, [3, 3, 3, 1]), (8, 3, [8, 4, 2, 2, 2, 2, 2]), (8, 0, None)]
)
def test_every_item_once_and_in_order_and_running_out_of_memory_halves_the_batch(batch_size, limit, expected):
    items, seen = torch.arange(10.0), []

    def doubled(part: slice) -> torch.Tensor:
        """Runs out of memory above `limit` items."""
        seen.append(part.stop - part.start)
        if part.stop - part.start > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return items[part] * 2

    if expected is None:  # not even one fits
        with pytest.raises(OutOfMemoryError, match="processing_resolution"):
            in_batches(doubled, 10, batch_size)
        return
    assert in_batches(doubled, 10, batch_size).tolist() == [2 * i for i in range(10)]
    assert seen == expected
