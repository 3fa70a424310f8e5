"""Disentanglement, completeness, informativeness: known values and the twin."""

import importlib
import math

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

from disentangle.grids import drawn, grid, noise
from orthotrain.disentangle import dci
from orthotrain.disentangle._codes import checked_samples
from orthotrain.errors import ConfigError
from reference import disentangle_scores as twins

EPS = torch.finfo(torch.float64).eps
BUDGET = 64 * EPS
MODELS = ("gradient_boosting", "random_forest")
every_model = pytest.mark.parametrize("model", MODELS)


def turned(
    n: int, *sizes: int, seed: int, degrees: float = 20
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two factors, turned in their plane and blurred."""
    factors = drawn(n, *sizes, seed=seed)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    return factors.double() @ turn + 0.2 * noise(n, 2, seed=seed + 1), factors


@every_model
def test_agrees_with_the_twin(model: str):
    codes, factors = turned(150, 2, 3, seed=0)
    codes = torch.cat([codes, torch.ones(150, 1)], dim=1)
    found = dci(codes, factors, model=model, seed=7)
    train, test = checked_samples("dci", codes, factors).split("dci", seed=7)
    if model == "gradient_boosting":
        classifiers = [GradientBoostingClassifier(random_state=7) for _ in range(2)]
    else:
        classifiers = [RandomForestClassifier(random_state=7, max_features=None) for _ in range(2)]
    right, guess = [], []
    # Trees split between standardized values in float32, so theirs are standardized, too.
    std, mean = torch.std_mean(codes, dim=0, correction=0)
    inputs = ((codes - mean) / std)[:, :2].numpy()
    for j, classifier in enumerate(classifiers):
        known, truth = factors[train, j].tolist(), factors[test, j].tolist()
        classifier.fit(inputs[train], known)
        named = classifier.predict(inputs[test])
        right.append(sum(a == b for a, b in zip(named, truth, strict=True)) / len(truth))
        frequent = max(set(known), key=known.count)
        guess.append(truth.count(frequent) / len(truth))
    importance = torch.tensor([c.feature_importances_.tolist() for c in classifiers]).T
    assert (found.importance[:2] - importance).abs().max() <= 1e-6
    assert found.importance[2].tolist() == [0.0] * 2
    expected = found.importance.numpy()
    assert 0.05 < found.disentanglement < 0.95
    assert found.disentanglement == pytest.approx(twins.disentanglement(expected), abs=BUDGET)
    assert found.completeness == pytest.approx(twins.completeness(expected), abs=BUDGET)
    assert found.informativeness == pytest.approx(sum(right) / 2, abs=1e-12)
    assert found.informativeness_chance == pytest.approx(sum(guess) / 2, abs=1e-12)


@every_model
def test_perfect_codes(model: str):
    factors = grid(2, 3, copies=10)
    found = dci(factors.flip(1) * torch.tensor([-3.0, 1e4]) + 5, factors, model=model)
    # Boosting finds residuals of rounding to fit; their gain is an importance of 1e-17.
    assert (found.importance - torch.eye(2).flip(1)).abs().max() <= BUDGET
    assert found.disentanglement == pytest.approx(1, abs=1e-12)
    assert found.completeness == pytest.approx(1, abs=1e-12)
    assert found.informativeness == 1.0
    assert found.informativeness_chance == pytest.approx((1 / 2 + 1 / 3) / 2, abs=0.15)


@every_model
def test_copied_dimensions_cost_completeness_alone(model: str):
    factors = grid(2, 3, copies=20)
    found = dci(factors[:, [0, 0, 1, 1]].double(), factors, model=model)
    assert found.disentanglement == pytest.approx(1, abs=1e-12)
    assert found.informativeness == 1.0
    # At worst both copies of a factor share alike: 1 - log 2 / log 4.
    assert 0.5 - BUDGET <= found.completeness < 0.95


def test_one_dimension_for_two_factors_costs_disentanglement_alone():
    factors = grid(2, 2, copies=30)
    both = (2 * factors[:, :1] + factors[:, 1:]).double()
    found = dci(torch.cat([both, torch.zeros_like(both)], dim=1), factors)
    assert found.importance.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert found.disentanglement == pytest.approx(0, abs=1e-12)
    assert found.completeness == 1.0
    assert found.informativeness == 1.0


def test_a_single_dimension_is_complete_in_the_emptiest_sense():
    factors = grid(2, 2, copies=30)
    found = dci(factors[:, :1].double(), factors)
    assert found.completeness == 1.0
    # Both factors give their whole weight to it, the one it tells and the one it does not.
    assert found.importance.tolist() in ([[1.0, 1.0]], [[1.0, 0.0]])
    # The other factor is guessed.
    assert 0.5 < found.informativeness < 0.95


@every_model
def test_codes_that_are_all_constant(model: str):
    factors = grid(3, 4, copies=8)
    found = dci(torch.ones(96, 3), factors, model=model)
    assert found.importance.abs().sum() == 0
    assert (found.disentanglement, found.completeness) == (0.0, 0.0)
    assert found.informativeness == found.informativeness_chance


def test_dead_dimensions_count_in_the_base_of_completeness():
    codes, factors = turned(150, 2, 2, seed=1)
    live = dci(codes, factors)
    beside = dci(torch.cat([codes, torch.ones(150, 2)], dim=1), factors)
    assert beside.importance[2:].abs().sum() == 0
    # Entropy to base 4 in place of 2.
    assert 1 - beside.completeness == pytest.approx((1 - live.completeness) / 2, rel=1e-6)
    assert beside.disentanglement == pytest.approx(live.disentanglement, rel=1e-6)


def test_importance_below_zero_by_rounding_is_none(monkeypatch):
    class Fake:
        feature_importances_ = np.array([-2e-17, 1.0])

        def fit(self, inputs, known):
            self.first = known[0]

        def predict(self, inputs):
            return np.full(len(inputs), self.first)

    module = importlib.import_module("orthotrain.disentangle.dci")
    monkeypatch.setattr(module, "_classifier", lambda model, seed: Fake())
    factors = grid(2, 2, copies=10)
    found = dci(factors.double(), factors)
    assert found.importance.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert (found.disentanglement, found.completeness) == (0.0, 1.0)


def test_importance_of_noise_is_spread():
    factors = drawn(400, 2, 3, seed=2)
    found = dci(noise(400, 4, seed=3), factors, model="random_forest")
    assert found.disentanglement < 0.05
    assert found.completeness < 0.05
    assert found.informativeness == pytest.approx(found.informativeness_chance, abs=0.12)


def test_a_turn_lowers_disentanglement_and_completeness():
    straight, diagonal = (dci(*turned(150, 2, 2, seed=0, degrees=degrees)) for degrees in (0, 45))
    assert min(straight.disentanglement, straight.completeness) > 0.9
    assert max(diagonal.disentanglement, diagonal.completeness) < 0.1


def test_the_same_seed_gives_the_same_score_and_another_another():
    codes, factors = turned(100, 2, 2, seed=4)
    first, again, other = (dci(codes, factors, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.importance, again.importance)
    assert first.informativeness == again.informativeness
    assert not torch.equal(first.importance, other.importance)


def test_increasing_maps_change_no_importance():
    codes, factors = turned(100, 2, 2, seed=5)
    bent = torch.stack([codes[:, 0].exp(), codes[:, 1] ** 3], dim=1)
    first, second = (dci(c, factors) for c in (codes, bent))
    assert (first.importance - second.importance).abs().max() <= 1e-9
    assert math.isclose(first.disentanglement, second.disentanglement, abs_tol=1e-9)


def test_a_large_offset_does_not_drown_in_the_trees_single_precision():
    factors = grid(2, 3, copies=10)
    assert dci(factors.double() + 1e9, factors).informativeness == 1.0


@pytest.mark.bad_input
def test_an_unknown_model_is_named():
    with pytest.raises(ConfigError, match="one of gradient_boosting, random_forest, got 'lasso'"):
        dci(noise(50, 2), drawn(50, 2, 2), model="lasso")
