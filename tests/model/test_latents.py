"""The VAE's latents against its own parts, and batches that fit into memory."""

import pytest
import torch

from marigold.model.backbone import Backbone
from marigold.model.latents import (
    OutOfMemoryError,
    choose_batch_size,
    decode_depth,
    encode_depth,
    encode_image,
    in_batches,
)


@torch.no_grad()
def test_encoding_is_the_scaled_mean_of_the_posterior_and_depth_a_grey_image(base: Backbone):
    image = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = base.vae.quant_conv(base.vae.encoder(image))[:, :4]
    torch.testing.assert_close(encode_image(base.vae, image), mean * 0.18215)
    depth_norm = torch.linspace(-1, 1, 16 * 16).reshape(1, 1, 16, 16)
    grey = depth_norm.repeat(1, 3, 1, 1)
    assert torch.equal(encode_depth(base.vae, depth_norm), encode_image(base.vae, grey))
    for height, width in ((15, 16), (16, 17)):
        with pytest.raises(ValueError, match=f"{height} x {width}"):
            encode_image(base.vae, torch.zeros(1, 3, height, width))


@torch.no_grad()
def test_decoding_is_the_clipped_mean_of_the_decoded_channels_in_float32(base: Backbone):
    latent = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    decoded = base.vae.decode(latent / 0.18215, return_dict=False)[0]
    torch.testing.assert_close(decode_depth(base.vae, latent)[:, 0], decoded.sum(1).div(3).clip(-1, 1))
    assert decode_depth(base.vae, torch.full((1, 4, 2, 2), torch.nan)).isnan().any()
    base.vae.decoder.conv_out.bias += 100
    assert (decode_depth(base.vae, torch.zeros(1, 4, 2, 2)) == 1).all()
    base.vae.to(torch.bfloat16)
    latent = encode_image(base.vae, torch.zeros(1, 3, 16, 16))
    assert (latent.dtype, decode_depth(base.vae, latent).dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("batch_size", "limit", "expected"),
    [(1, 10, [1] * 10), (3, 10, [3, 3, 3, 1]), (99, 10, [10]), (8, 3, [8, 4, 2, 2, 2, 2, 2]), (8, 0, None)],
)
def test_every_item_once_and_in_order_and_running_out_of_memory_halves_the_batch(batch_size, limit, expected, caplog):
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
    assert bool(caplog.records) == (limit < batch_size == 8)


def test_small_images_come_in_larger_batches():
    device = torch.device("cpu")
    sizes = [choose_batch_size(side * side, 128, torch.float32, device) for side in (64, 256, 1024, 8192)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 1
