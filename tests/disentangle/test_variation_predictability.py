"""VP: what is predictable, what is not, and that nothing of the score was trained on."""

import importlib

import pytest
import torch

from disentangle.generators import constant, disjoint, linear
from orthotrain.disentangle import (
    ClassifierBudget,
    VariationClassifier,
    VariationPredictability,
    random_rotation,
    rotated,
    variation_predictability,
)
from orthotrain.errors import ConfigError
from reference.matrices import generator

# The package holds the function under this name.
MODULE = importlib.import_module("orthotrain.disentangle.variation_predictability")

SMALL = ClassifierBudget(
    pairs=240, epochs=8, batch_size=16, width=8, train_fraction=0.4, validation_fraction=0.1
)
# Enough for accuracies between chance and all, so that a change of the pairs shows in them.
TELLING = ClassifierBudget(
    pairs=90, epochs=4, batch_size=8, width=4, train_fraction=0.4, validation_fraction=0.2
)


def test_disjoint_pixels_are_told_apart():
    found = variation_predictability(disjoint, 4, seed=0, budget=SMALL)
    # 72 scored pairs of each coordinate; what is missed is two values that nearly agree.
    assert found.accuracy > 0.97
    assert found.chance == 0.25
    assert len(found.accuracies) == 3
    assert found.accuracy == pytest.approx(sum(found.accuracies) / 3)


@pytest.mark.slow
def test_disjoint_pixels_are_told_apart_without_a_miss():
    budget = ClassifierBudget(
        pairs=400, epochs=12, batch_size=16, width=16, train_fraction=0.4, validation_fraction=0.1
    )
    found = variation_predictability(lambda z: disjoint(z, 16), 4, seed=0, budget=budget)
    assert found.accuracies == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_a_constant_generator_leaves_chance(latent_dim):
    """Every coordinate is scored equally often, so one answer to all is right once in each."""
    budget = ClassifierBudget(pairs=20 * latent_dim, epochs=1, width=2, train_fraction=0.5)
    found = variation_predictability(constant, latent_dim, seed=0, budget=budget)
    assert found.accuracies == (1 / latent_dim,) * 3
    assert found.chance == 1 / latent_dim
    assert found.spread == 0


def test_turned_latents_are_harder():
    """In a turned basis every coordinate moves all pixels; what is left is by how much."""
    turned = rotated(disjoint, random_rotation(4, seed=1))
    found = variation_predictability(turned, 4, seed=0, budget=SMALL)
    assert found.accuracy < 0.6


def test_pairs_differ_in_one_coordinate_drawn_from_the_prior():
    seen = []

    def watched(z):
        seen.append(z.clone())
        return disjoint(z[:, :4])

    budget = ClassifierBudget(pairs=200, epochs=1, width=2)
    variation_predictability(watched, 6, seed=0, budget=budget, factors=4, batch_size=200)
    first, second = seen
    changed = first != second
    assert (changed.sum(dim=1) == 1).all()
    assert changed.sum(dim=0).tolist() == [50, 50, 50, 50, 0, 0]
    moved = torch.stack([first[changed], second[changed]])
    # Normal and independent: means, variances and correlation within four standard errors.
    assert moved.mean(dim=1).abs().max() < 4 / 200**0.5
    assert (moved.var(dim=1) - 1).abs().max() < 4 * (2 / 200) ** 0.5
    assert abs(float(torch.corrcoef(moved)[0, 1])) < 4 / 200**0.5


def coarse(z, shared=0.0):
    """Multiples of 1/64, so that neither a batch nor what is added changes a difference."""
    model = linear(3, (1, 12, 12), dtype=torch.float32).requires_grad_(False)
    return (model(z) * 64).round() / 64 + shared


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size_changes_nothing(batch_size):
    settings = {"seed": 0, "budget": TELLING, "value_range": "any"}
    found = variation_predictability(coarse, 3, batch_size=batch_size, **settings)
    assert found == variation_predictability(coarse, 3, **settings)
    assert found.chance < found.accuracy < 1


def test_the_network_sees_the_difference_alone():
    """What both images share cannot matter."""
    shared = torch.randint(-9, 10, (1, 1, 12, 12), generator=generator(3)).float()
    settings = {"seed": 0, "budget": TELLING, "value_range": "any"}
    found = variation_predictability(lambda z: coarse(z, shared), 3, **settings)
    assert found == variation_predictability(coarse, 3, **settings)


def test_scored_pairs_were_not_seen(monkeypatch):
    """Labels that are shuffled against the images can be learned by heart, and only there."""
    pairs = MODULE._pairs

    def shuffled(source, count, random):
        differences, labels = pairs(source, count, random)
        return differences, labels[torch.randperm(len(labels), generator=generator(9))]

    monkeypatch.setattr(MODULE, "_pairs", shuffled)
    budget = ClassifierBudget(
        pairs=200, epochs=15, batch_size=10, width=4, train_fraction=0.2, validation_fraction=0.1
    )
    found = variation_predictability(disjoint, 2, seed=0, budget=budget)
    # Chance is a half; four standard errors of 140 scored pairs.
    assert all(abs(x - 0.5) < 4 * (0.25 / 140) ** 0.5 for x in found.accuracies)


def test_epoch_is_chosen_on_the_validation_part_and_scored_on_the_rest(monkeypatch):
    """Epochs that leave a mark in the weights, and scores that are told by it."""
    seen = []

    def marked(network, *_):
        with torch.no_grad():
            network.head.bias.fill_(round(float(network.head.bias[0])) + 1)

    def told(network, x, labels, part, batch_size):
        epoch = int(network.head.bias[0])
        seen.append((len(part), epoch))
        # The second has the best accuracy, the third as good a one at a higher loss.
        return {1: (0.2, -0.1), 2: (0.9, -0.3), 3: (0.9, -0.4), 4: (0.5, -0.2)}[epoch]

    monkeypatch.setattr(MODULE, "train_epoch", marked)
    monkeypatch.setattr(MODULE, "accuracy_and_gain", told)
    budget = ClassifierBudget(
        pairs=100, epochs=4, width=2, train_fraction=0.3, validation_fraction=0.1
    )
    variation_predictability(disjoint, 2, seed=0, budget=budget)
    assert seen == [(10, 1), (10, 2), (10, 3), (10, 4), (60, 2)] * 3


def test_parts_hold_every_coordinate_to_its_share():
    labels = torch.arange(103) % 5
    parts = MODULE._parts(labels, 5, (0.1, 0.2), generator(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(103))
    for part, least in zip(parts, (2, 4, 14), strict=True):
        counts = labels[part].bincount(minlength=5)
        assert counts.min() >= least
        assert counts.max() - counts.min() <= 1


def test_it_prints_with_chance():
    found = VariationPredictability(0.812, 0.013, 1 / 6, (0.8, 0.82), 10_000)
    assert str(found) == "VP[10,000 pairs] = 81.2 % +- 1.3 (chance level 16.7 %)"


# --- the network ----------------------------------------------------------------------------------


def test_network_is_the_published_one():
    network = VariationClassifier(6, channels=3, generator=generator(0))
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(m.weight.shape) for m in convolutions] == [
        (64, 3, 7, 7),
        (64, 64, 3, 3),
        (128, 64, 3, 3),
        (256, 128, 3, 3),
    ]
    assert [m.stride for m in convolutions] == [(2, 2), (1, 1), (1, 1), (1, 1)]
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 6)


@pytest.mark.parametrize("side", [1, 2, 5, 17])
def test_network_takes_any_size(side):
    network = VariationClassifier(3, channels=1, width=2, generator=generator(0)).eval()
    assert network(torch.zeros(2, 1, side, side)).shape == (2, 3)


def test_network_draws_from_its_generator_alone():
    before = torch.get_rng_state()
    a, b, c = (VariationClassifier(3, width=2, generator=generator(s)) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a.state_dict()[k], v) for k, v in b.state_dict().items())
    assert not torch.equal(a.head.weight, c.head.weight)
    random = generator(0)
    first, second = (VariationClassifier(3, width=2, generator=random) for _ in range(2))
    assert not torch.equal(first.head.weight, second.head.weight)


# --- what bad input gets --------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classifiers": 2}, "classifiers to be a whole number, 3 or more"),
        ({"epochs": 0}, "epochs"),
        ({"width": 0}, "width"),
        ({"batch_size": 1}, "batch_size"),
        ({"lr": 0.0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"train_fraction": 0.0}, "train_fraction"),
        ({"train_fraction": 0.6, "validation_fraction": 0.4}, "leave a rest"),
        ({"pairs": 30}, "two training pairs"),
        ({"pairs": 40, "validation_fraction": 0.01}, "one for validation"),
    ],
    ids=str,
)
def test_wrong_budget(settings, message):
    needs = rf"(variation_predictability|ClassifierBudget) needs .*{message}"

    def run() -> None:
        budget = ClassifierBudget(**({"epochs": 1, "width": 2} | settings))
        variation_predictability(disjoint, 3, seed=0, budget=budget)

    with pytest.raises(ConfigError, match=needs):
        run()


@pytest.mark.bad_input
def test_one_coordinate_is_no_question():
    for settings in ({"latent_dim": 1}, {"latent_dim": 4, "factors": 1}):
        with pytest.raises(ConfigError, match="at least two coordinates"):
            variation_predictability(disjoint, seed=0, **settings)
    with pytest.raises(ConfigError, match="VariationClassifier needs width"):
        VariationClassifier(3, width=0)
