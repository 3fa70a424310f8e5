"""Activeness: by closed form, and against a twin that loops over pixels."""

import pytest
import torch

from disentangle.generators import Normed, linear
from orthotrain.disentangle import activeness
from orthotrain.errors import ConfigError
from reference import generator_metrics as twins


def test_of_a_linear_generator_is_four_mean_squares_of_its_rows():
    """The unbiased variance of -2 w, 0 and 2 w is 4 w^2, whatever the latent."""
    model = linear(4, shape=(3, 5, 4))
    expected = 4 * model.weight.detach().square().mean(dim=1)
    found = activeness(model, 4, seed=0, samples=5, value_range="any")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_agrees_with_the_twin_on_the_latents_it_draws():
    model = Normed().double().eval()
    latents = []

    def watched(z):
        latents.append(z.clone())
        return model(z.double())

    values = (-1.0, 0.5, 2.0, 3.0)
    found = activeness(watched, 3, seed=3, samples=6, values=values, batch_size=6)
    # The second coordinate's first call holds the drawn first coordinate, and so on.
    z = latents[len(values)].clone()
    z[:, 1] = latents[0][:, 1]
    with torch.no_grad():
        expected = twins.activeness(lambda x: model(x.double()), z, values)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_only_the_factors_are_moved_and_the_rest_is_drawn():
    seen = []

    def watched(z):
        seen.append(z.clone())
        return torch.tanh(z)[:, :, None, None]

    found = activeness(watched, 5, seed=0, samples=8, factors=2)
    assert found.shape == (2,)
    assert len(seen) == 6
    tails = torch.stack([z[:, 2:] for z in seen])
    assert torch.equal(tails, tails[:1].expand_as(tails))
    assert tails.std() > 0.5


def test_first_latents_do_not_depend_on_how_many_there_are():
    seen = []

    def watched(z):
        seen.append(z.clone())
        return torch.zeros(len(z), 1, 2, 2)

    activeness(watched, 3, seed=0, samples=40, batch_size=100)
    every = seen[0]
    for samples in (1, 3, 17, 32):
        seen.clear()
        activeness(watched, 3, seed=0, samples=samples, batch_size=100)
        assert torch.equal(seen[0], every[:samples])


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples"),
        ({"values": (1.0,)}, "two values"),
        ({"factors": 0}, "factors"),
        ({"factors": 4}, "between 1 and latent_dim = 3"),
        ({"factors": True}, "factors"),
    ],
    ids=str,
)
def test_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=f"activeness needs .*{message}"):
        activeness(linear(), 3, seed=0, **settings)
