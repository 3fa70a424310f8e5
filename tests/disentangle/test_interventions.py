"""Activeness, traversals and interventions: known values of linear generators."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from disentangle.generators import Normed, linear
from orthotrain.data import Sprites, sprite_moments
from orthotrain.disentangle import activeness, interventions, traversals
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
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


def test_every_image_is_the_generator_at_that_latent():
    model = Normed().eval()
    values = [-1.0, 0.5]
    rows = traversals(model, 3, seed=4, samples=2, values=values)
    assert rows.shape == (2, 3, 2, 3, 4, 4)
    latents = []
    traversals(
        lambda z: latents.append(z) or torch.zeros(len(z), 1, 1, 1),
        3, seed=4, samples=2, values=values,
    )  # fmt: skip
    z = latents[0].reshape(2, 3, 2, 3)
    for sample in range(2):
        for dim in range(3):
            kept = [d for d in range(3) if d != dim]
            assert z[sample, dim, :, dim].tolist() == values
            # What is kept is the same in every row and column that keeps it.
            other = z[sample, (dim + 1) % 3, 0, kept]
            fixed = [k for k in range(len(kept)) if kept[k] != (dim + 1) % 3]
            for column in range(2):
                assert torch.equal(z[sample, dim, column, kept][fixed], other[fixed])
            with torch.no_grad():
                expected = model(z[sample, dim])
            torch.testing.assert_close(rows[sample, dim], expected, rtol=0, atol=1e-6)


def test_more_samples_keep_the_first():
    one, three = (traversals(Normed(), 3, seed=1, samples=n) for n in (1, 3))
    torch.testing.assert_close(three[:1], one, rtol=0, atol=1e-6)
    assert not torch.allclose(three[1], three[0])


def test_rows_are_chosen_and_ordered():
    model = linear(4)
    with torch.no_grad():
        model.weight *= torch.tensor([1.0, 4.0, 2.0, 3.0])[:, None] / model.weight.norm(
            dim=1, keepdim=True
        )
    rows = partial(traversals, model, 4, seed=0, value_range="any")
    every = rows()
    for settings, expected in (
        ({"dims": [3, 1]}, [3, 1]),
        ({"order": "activeness"}, [1, 3, 2, 0]),
        ({"order": "activeness", "dims": [0, 2]}, [2, 0]),
    ):
        torch.testing.assert_close(rows(**settings), every[:, expected], rtol=0, atol=1e-12)
    order = activeness(model, 4, seed=0, value_range="any").argsort(descending=True)
    assert order.tolist() == [1, 3, 2, 0]


def test_factors_limit_the_rows():
    rows = traversals(linear(5), 5, seed=0, factors=2, value_range="any")
    assert rows.shape[1] == 2


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "samples"),
        ({"values": ()}, "at least one value"),
        ({"dims": []}, "dims"),
        ({"dims": [3]}, "between 0 and 2"),
        ({"dims": [2], "factors": 2}, "between 0 and 1"),
        ({"order": "size"}, "order"),
    ],
    ids=str,
)
def test_traversal_wrong_settings(settings, message):
    with pytest.raises(ConfigError, match=f"traversals needs .*{message}"):
        traversals(linear(), 3, seed=0, **settings)


VALUES = (-2.0, -1.0, 0.0, 1.0, 2.0)


def linear_row(matrix):
    """A generator whose image of one row is a linear map of the latent."""
    return lambda z: (z @ matrix.T.to(z)).view(len(z), 1, 1, -1)


def flat(images):
    return images.flatten(1)


def measured(matrix, **settings):
    settings = {"samples": 2000, "value_range": "any", "seed": 0, **settings}
    return interventions(linear_row(matrix), matrix.shape[1], measure=flat, **settings)


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
        interventions(linear_row(eye), 2, measure=lambda x: x, seed=0, samples=4, value_range="any")
    with pytest.raises(NonFiniteError, match="measure returned NaN"):
        interventions(
            linear_row(eye), 2, measure=lambda x: flat(x) * math.nan, seed=0, samples=4,
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
