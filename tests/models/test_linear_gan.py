"""The linear EigenGAN: what it makes, its covariance, and the critic's form."""

from __future__ import annotations

import pytest
import torch

from orthotrain.errors import ConfigError, ShapeError
from orthotrain.models import LinearGenerator, QuadraticCritic


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def test_vectors_are_directions_times_scaled_coordinates_and_noise():
    model = LinearGenerator(8, latent_dim=3, noise=0.25, generator=random())
    z, e = model.latents(5, generator=random(1))
    expected = sum(
        model.subspace.scale[i] * z[:, i : i + 1] * model.subspace.u[i] for i in range(3)
    )
    torch.testing.assert_close(model(z), expected + model.subspace.mean)
    torch.testing.assert_close(model(z, e), model(z) + 0.25 * e)


def test_the_covariance_is_that_of_many_samples():
    model = LinearGenerator(6, latent_dim=2, noise=2.0, generator=random())
    sampled = torch.cov(model.sample(200_000, generator=random(1)).double().T)
    scale = model.covariance().abs().max()
    assert (sampled - model.covariance()).abs().max() < 0.02 * scale


def test_a_sample_follows_its_generator():
    model = LinearGenerator(6, latent_dim=2, generator=random())
    first, again, other = (model.sample(3, generator=random(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_critic_is_a_quadratic_form():
    critic = QuadraticCritic(4)
    assert torch.equal(critic(torch.ones(3, 4)), torch.zeros(3))
    with torch.no_grad():
        for parameter in critic.parameters():
            parameter.normal_(generator=random())
    x = torch.randn(5, 4, generator=random(1))
    for row, logit in zip(x, critic(x), strict=True):
        quadratic = sum(
            row[i] * critic.quadratic[i, j] * row[j] for i in range(4) for j in range(4)
        )
        expected = quadratic / 4 + row @ critic.linear / 2 + critic.constant
        torch.testing.assert_close(logit, expected)


@pytest.mark.bad_input
def test_what_does_not_fit():
    with pytest.raises(ConfigError, match=r"noise=-0\.5 must not be negative"):
        LinearGenerator(8, noise=-0.5)
    for shape in ((4,), (2, 5)):
        with pytest.raises(ShapeError, match=r"need \(n, 4\)"):
            QuadraticCritic(4)(torch.zeros(shape))
