"""Simple GAN: its channels, its formula written out, its latent layer; see also the contract."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.methods import select_parameters
from orthotrain.models import SimpleDiscriminator, SimpleGenerator
from orthotrain.models.simple_gan import LatentMap
from reference import generators as reference
from reference.matrices import generator, normal, shaken


@pytest.mark.parametrize(
    ("size", "widths"),
    [(16, [128, 64, 64]), (32, [256, 128, 64, 64]), (64, [512, 256, 128, 64, 64]),
     (128, [1024, 1024, 512, 256, 128, 64])],
)  # fmt: skip
def test_channels_of_the_generator(size, widths):
    with torch.device("meta"):
        model = SimpleGenerator(size, latent_dim=6, channels=1)
        image = model(torch.zeros(1, 6))
    assert model.latent.weight.shape == (6, 16 * widths[0])
    assert [up.in_channels for up in model.ups] == widths[:-1]
    assert [up.out_channels for up in model.ups] == widths[1:]
    assert model.to_image.weight.shape == (1, widths[-1], 3, 3)
    assert image.shape == (1, 1, size, size)


@pytest.mark.parametrize(
    ("size", "widths"),
    [(16, [64, 128]), (32, [64, 128, 256]), (64, [64, 128, 256, 512]),
     (128, [64, 128, 256, 512, 1024])],
)  # fmt: skip
def test_channels_of_the_discriminator(size, widths):
    with torch.device("meta"):
        model = SimpleDiscriminator(size)
    convolutions = [model.first, *model.downs]
    assert [c.out_channels for c in convolutions] == widths
    assert model.hidden.weight.shape == (widths[-1], 16 * widths[-1])


@pytest.mark.parametrize("size", [16, 32])
def test_generator_agrees_with_the_network_written_out(size):
    model = shaken(SimpleGenerator(size, latent_dim=4, generator=generator(0)), size=0.05)
    z = normal(2, 4)
    expected = reference.simple_generator(model.state_dict(), z)
    torch.testing.assert_close(model(z), expected, rtol=0, atol=1e-9)
    assert expected.std() > 0.1
    assert expected.abs().max() < 1


@pytest.mark.parametrize("channels", [1, 3])
def test_discriminator_agrees_with_the_network_written_out(channels):
    model = shaken(SimpleDiscriminator(16, channels=channels, generator=generator(0)), size=0.05)
    images = normal(2, channels, 16, 16)
    expected = reference.simple_discriminator(model.state_dict(), images)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-9)
    assert expected[0] != expected[1]


# --- the latent layer -----------------------------------------------------------------------------


def test_the_latent_layer_is_a_transposed_convolution_of_a_single_place():
    layer = LatentMap(3, out_shape=(5, 4, 2)).double()
    z = normal(6, 3)
    kernel = layer.weight.view(3, 5, 4, 2)
    expected = F.conv_transpose2d(z[:, :, None, None], kernel, layer.bias)
    torch.testing.assert_close(layer(z), expected, rtol=0, atol=1e-12)


def test_the_latent_layer_starts_as_a_transposed_convolution():
    layer = LatentMap(3, out_shape=(5, 4, 4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        conv = nn.ConvTranspose2d(3, 5, 4)
    layer.reset_parameters(generator=generator(3))
    torch.testing.assert_close(layer.weight.view(3, 5, 4, 4), conv.weight)
    torch.testing.assert_close(layer.bias, conv.bias)


@pytest.mark.parametrize("pattern", ["latent", "latent.weight", "*latent*weight"])
def test_methods_find_the_latent_weight_with_one_row_per_coordinate(pattern):
    ((name, weight),) = select_parameters(SimpleGenerator(16, latent_dim=4), pattern)
    assert (name, weight.shape) == ("latent.weight", (4, 128 * 16))


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.bad_input
def test_no_latent_is_refused():
    with pytest.raises(ConfigError, match="latent_dim=0 must be at least 1"):
        SimpleGenerator(16, latent_dim=0)


@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 4, 1), (0, 4)], ids=str)
def test_codes_of_another_shape_are_refused(shape):
    with pytest.raises(ShapeError, match=r"need \(n, 4\)"):
        SimpleGenerator(16, latent_dim=4)(torch.zeros(shape))
