import pytest
import torch

from marigold.model.backbone import Backbone
from marigold.model.latents import decode_depth, encode_depth, encode_image


@torch.no_grad()
def test_encoding_is_the_scaled_mean_of_the_posterior_and_depth_a_grey_image(base: Backbone):
    image = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = base.vae.quant_conv(base.vae.encoder(image))[:, :4]
    torch.testing.assert_close(encode_image(base.vae, image), mean * 0.18215)
    depth_norm = torch.linspace(-1, 1, 16 * 16).reshape(1, 1, 16, 16)
    grey = depth_norm.repeat(1, 3, 1, 1)
    assert torch.equal(encode_depth(base.vae, depth_norm), encode_image(base.vae, grey))


@torch.no_grad()
def test_decoding_is_the_clipped_mean_of_the_decoded_channels(base: Backbone):
    latent = torch.randn(1, 4, 2, 3, generator=torch.Generator().manual_seed(0))
    decoded = base.vae.decode(latent / 0.18215, return_dict=False)[0]
    torch.testing.assert_close(decode_depth(base.vae, latent)[:, 0], decoded.sum(1).div(3).clip(-1, 1))
    assert decode_depth(base.vae, torch.full((1, 4, 2, 2), torch.nan)).isnan().any()
    base.vae.decoder.conv_out.bias += 100
    assert (decode_depth(base.vae, torch.zeros(1, 4, 2, 2)) == 1).all()


@pytest.mark.parametrize("shape", [(1, 3, 15, 16), (1, 3, 16, 17)])
def test_sizes_that_need_padding_are_refused(base: Backbone, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match="multiples of 8"):
        encode_image(base.vae, torch.zeros(shape))


def test_half_precision_decodes_to_float32(base: Backbone):
    base.vae.to(torch.bfloat16)
    latent = encode_image(base.vae, torch.zeros(1, 3, 16, 16))
    assert latent.dtype == torch.bfloat16
    assert decode_depth(base.vae, latent).dtype == torch.float32
