"""The intervention route: sensitivities of maps that are known."""

from __future__ import annotations

import math

import pytest
import torch

from orthotrain.data import Sprites, sprite_moments
from orthotrain.disentangle import interventions
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError

VALUES = (-2.0, -1.0, 0.0, 1.0, 2.0)


def linear(matrix):
    """A generator whose image of one row is a linear map of the latent."""
    return lambda z: (z @ matrix.T.to(z)).view(len(z), 1, 1, -1)


def flat(images):
    return images.flatten(1)


def measured(matrix, **settings):
    settings = {"samples": 2000, "value_range": "any", "seed": 0, **settings}
    return interventions(linear(matrix), matrix.shape[1], measure=flat, **settings)


def test_independent_coordinates_have_both_scores_one():
    result = measured(torch.diag(torch.tensor([3.0, 0.5, 2.0])))
    assert result.disentanglement == pytest.approx(1)
    assert result.completeness == pytest.approx(1)
    # The deviation of the five values, over that of N(0, 1), whatever the factor's unit.
    expected = torch.eye(3, dtype=torch.float64) * math.sqrt(2.5)
    torch.testing.assert_close(result.sensitivity, expected, rtol=0.05, atol=1e-6)


def test_a_permutation_changes_the_place_and_not_the_scores():
    result = measured(torch.eye(3)[[2, 0, 1]])
    assert result.disentanglement == pytest.approx(1)
    assert result.sensitivity.argmax(dim=1).tolist() == [1, 2, 0]


def test_coordinates_that_change_everything_alike_have_scores_zero():
    result = measured(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    assert result.disentanglement == pytest.approx(0, abs=0.01)
    assert result.completeness == pytest.approx(0, abs=0.01)


def test_two_coordinates_for_one_factor_cost_completeness_alone():
    result = measured(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    assert result.disentanglement == pytest.approx(1)
    assert result.completeness < 0.75


def test_standard_errors_are_those_of_new_latents():
    """Against the deviation over seeds, of a generator whose coordinates act by another's value."""

    def generate(z):
        mixed = torch.stack([z[:, 0] + z[:, 0] * z[:, 1], z[:, 1] * z[:, 0].square()], dim=1)
        return mixed.view(len(z), 1, 1, 2)

    found = [
        interventions(generate, 2, measure=flat, seed=seed, samples=200, value_range="any")
        for seed in range(12)
    ]
    for part in ("disentanglement", "completeness"):
        over_seeds = torch.tensor([getattr(one, part) for one in found]).std()
        error = torch.tensor([getattr(one, f"{part}_error") for one in found]).mean()
        assert 1 / 2 < float(error / over_seeds) < 2
    assert measured(torch.eye(2)).disentanglement_error == pytest.approx(0, abs=1e-12)


def test_a_factor_that_never_changes_counts_for_nothing():
    matrix = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    result = measured(matrix)
    assert result.sensitivity[:, 2].tolist() == [0.0, 0.0]
    assert result.disentanglement == pytest.approx(1)


def test_the_sensitivity_is_that_of_a_slow_twin():
    matrix = torch.tensor([[1.0, 0.4], [-0.3, 2.0]])

    def generate(z):
        return torch.tanh(z @ matrix.T.to(z)).view(len(z), 1, 1, 2)

    settings = {"measure": flat, "seed": 3, "samples": 50, "batch_size": 7}
    found = interventions(generate, 2, **settings).sensitivity
    random = torch.Generator().manual_seed(3)
    z = torch.randn(64, 2, generator=random, dtype=torch.float64)[:50].float()
    spread = generate(z).flatten(1).double().std(dim=0)
    for i in range(2):
        variances = []
        for row in z:
            outputs = []
            for value in VALUES:
                changed = row.clone()
                changed[i] = value
                outputs.append(generate(changed[None]).flatten().double())
            variances.append(torch.stack(outputs).var(dim=0))
        expected = torch.stack(variances).mean(dim=0).sqrt() / spread
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-7)


def test_moments_of_sprites_read_position_and_scale():
    sprites = Sprites(32, held={"orientation": 0, "shape": 0})

    def generate(z):
        unit = torch.special.ndtr(z.double()).clamp(0.01, 0.99)
        values = torch.stack([0.5 + 0.5 * unit[:, 0], unit[:, 1], unit[:, 2]], dim=1)
        return (2 * sprites.render_values(values) - 1).float()

    def measure(images):
        moments = sprite_moments((images + 1) / 2)
        return torch.stack([moments.area, moments.x, moments.y], dim=1)

    result = interventions(generate, 3, measure=measure, seed=0, samples=60)
    assert result.disentanglement > 0.95
    assert result.sensitivity.argmax(dim=1).tolist() == [0, 1, 2]


def test_the_same_seed_gives_the_same_and_the_batch_does_not_matter():
    matrix = torch.tensor([[1.0, 0.4], [-0.3, 2.0]])
    one, other = measured(matrix, samples=40), measured(matrix, samples=40, batch_size=3)
    torch.testing.assert_close(one.sensitivity, other.sensitivity)
    assert not torch.equal(one.sensitivity, measured(matrix, samples=40, seed=1).sensitivity)


@pytest.mark.bad_input
def test_bad_input_is_named():
    eye = torch.eye(2)
    with pytest.raises(ConfigError, match="two values"):
        measured(eye, values=(1.0,))
    with pytest.raises(ConfigError, match="samples"):
        measured(eye, samples=1)
    with pytest.raises(ShapeError, match=r"measure to return \(n, f\)"):
        interventions(linear(eye), 2, measure=lambda x: x, seed=0, samples=4, value_range="any")
    with pytest.raises(NonFiniteError, match="measure returned NaN"):
        interventions(
            linear(eye), 2, measure=lambda x: flat(x) * math.nan, seed=0, samples=4,
            value_range="any",
        )  # fmt: skip


def test_the_spread_tells_a_generator_that_hardly_moves():
    def factors(scale):
        found = interventions(
            lambda z: (scale * z[:, :2]).view(len(z), 1, 1, 2),
            2,
            measure=lambda images: images.flatten(1),
            seed=0,
            samples=400,
            value_range="any",
        )
        return found.disentanglement, found.spread

    (much, wide), (little, narrow) = factors(1.0), factors(1e-3)
    # The score does not see it.
    assert much == pytest.approx(little) == pytest.approx(1.0)
    torch.testing.assert_close(narrow, 1e-3 * wide, rtol=1e-4, atol=0)
    torch.testing.assert_close(wide, torch.ones_like(wide), rtol=0.15, atol=0)
