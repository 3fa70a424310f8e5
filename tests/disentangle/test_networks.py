"""The encoder reads what is in an image and nothing else; an epoch of the small classifiers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orthotrain.disentangle import VariationClassifier, latent_encoder
from orthotrain.disentangle.networks import train_epoch
from orthotrain.errors import ConfigError
from reference.matrices import generator

SETTINGS = {"steps": 150, "width": 8, "lr": 3e-3, "held_out": 256, "seed": 0}


class Blobs(nn.Module):
    """Brightness of the left and of the right half; a third coordinate changes nothing."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, z):
        half = torch.tanh(self.gain * z[:, :2])
        return half[:, None, None, :].repeat_interleave(4, dim=3).expand(-1, 1, 8, -1)


@pytest.fixture(scope="module")
def encoder():
    return latent_encoder(Blobs(), 3, **SETTINGS)


def test_what_changes_the_image_is_read_and_what_does_not_is_not(encoder):
    assert min(encoder.r_squared[:2]) > 0.8
    assert abs(encoder.r_squared[2]) < 0.1


def test_r_squared_is_that_of_the_codes(encoder):
    z = torch.randn(4000, 3, generator=torch.Generator().manual_seed(9))
    codes = encoder(Blobs()(z).detach())
    residual = (codes - z).square().mean(dim=0)
    expected = 1 - residual / z.var(dim=0)
    torch.testing.assert_close(torch.tensor(encoder.r_squared), expected, rtol=0, atol=0.1)


def test_the_seed_decides_and_nothing_else_is_touched():
    generator = Blobs().train()
    before, state = generator.gain.detach().clone(), torch.random.get_rng_state()
    few = {**SETTINGS, "steps": 3, "held_out": 32}
    one, other = latent_encoder(generator, 3, **few), latent_encoder(generator, 3, **few)
    assert one.r_squared == other.r_squared
    assert one.r_squared != latent_encoder(generator, 3, **{**few, "seed": 1}).r_squared
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(generator.gain, before)
    assert generator.training
    assert generator.gain.grad is None
    assert not any(p.requires_grad for p in one.network.parameters())


def test_coordinates_beyond_the_factors_are_noise(encoder):
    few = latent_encoder(Blobs(), 3, factors=2, **{**SETTINGS, "steps": 3, "held_out": 32})
    assert len(few.r_squared) == 2
    assert few(torch.zeros(5, 1, 8, 8)).shape == (5, 2)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"held_out": 1}, "held_out"),
        ({"lr": 0.0}, "needs lr"),
        ({"batch_size": 1}, "batch_size"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        latent_encoder(Blobs(), 3, **{**SETTINGS, **settings})


def test_a_remainder_of_one_image_is_left_out_of_an_epoch():
    """Batch norm has no variance of a single image, so the fifth of five changes nothing."""
    x = torch.randn(5, 1, 12, 12, generator=generator(2))
    labels = torch.tensor([0, 1, 2, 0, 1])
    states = []
    for order in (torch.arange(5), torch.arange(4)):
        network = VariationClassifier(3, channels=1, width=2, generator=generator(1))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        train_epoch(network, optimizer, x, labels, order, 4)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])
