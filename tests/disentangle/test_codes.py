"""Mutual information, MIG, modularity, SAP and DCI: known values, and the twins."""

import importlib
import math

import numpy as np
import pytest
import torch
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier

from disentangle.grids import drawn, grid, noise
from orthotrain.disentangle import chance_level, dci, mig, modularity, mutual_information, sap
from orthotrain.disentangle.samples import checked_samples
from orthotrain.errors import ConfigError, ShapeError
from reference import disentangle_scores as twins
from reference.matrices import generator

EPS = torch.finfo(torch.float64).eps
# Sums of some hundred terms of entropies up to five nats; measured 12 eps.
BUDGET = 64 * EPS


def test_codes_equal_to_factors_tell_their_entropy_and_no_more():
    factors = grid(3, 4, 5, copies=2)
    table = mutual_information(factors.double(), factors)
    expected = torch.diag(torch.tensor([3.0, 4.0, 5.0], dtype=torch.float64).log())
    assert (table - expected).abs().max() <= BUDGET
    assert (table >= 0).all()


@pytest.mark.parametrize(
    ("code", "nats"),
    [
        (lambda v: v // 2, math.log(2)),  # two values of four
        (lambda v: v % 2, math.log(2)),  # the same, and no monotone map
        (lambda v: (v - 1.5).abs(), math.log(2)),
        (lambda v: (v == 0).double(), math.log(4) - 0.75 * math.log(3)),
        (lambda v: v**3, math.log(4) - math.log(2) / 2),  # 0 and 1 share one of 20 bins of 27
        (lambda v: 0 * v, 0.0),
    ],
    ids=["halved", "parity", "folded", "first", "cubed", "nothing"],
)
def test_a_function_of_a_factor_tells_the_entropy_of_its_value(code, nats: float):
    factor = torch.arange(4).repeat(5)[:, None]
    assert mutual_information(code(factor.double()), factor).item() == pytest.approx(
        nats, abs=1e-14
    )


@pytest.mark.parametrize("bins", [2, 3, 20])
def test_agrees_with_the_twin(bins: int):
    factors = drawn(300, 2, 5, seed=1)
    codes = torch.cat([factors.double() + noise(300, 2, seed=2), noise(300, 1)], dim=1)
    expected = twins.information_table(codes.numpy(), factors.numpy(), bins)
    found = mutual_information(codes, factors, bins=bins)
    assert found.dtype == torch.float64
    assert (found - torch.from_numpy(expected)).abs().max() <= BUDGET


def test_an_interval_holds_its_lower_end_and_the_last_one_both():
    # Ends at 0, 1, 2, 3, 4: the value 1 begins the second interval, 4 closes the fourth.
    codes = torch.tensor([0.0, 0.9, 1.0, 1.9, 3.0, 4.0], dtype=torch.float64)[:, None].repeat(2, 1)
    factor = torch.tensor([0, 0, 1, 1, 2, 2])[:, None].repeat(2, 1)
    assert mutual_information(codes, factor, bins=4).item() == pytest.approx(math.log(3))
    # One interval less mixes .9 and 1 ... or not: ends at 0, 4/3, 8/3, 4.
    mixed = mutual_information(codes, factor, bins=3).item()
    assert mixed == pytest.approx(twins.information(codes[:, 0].numpy(), factor[:, 0].numpy(), 3))
    assert mixed < math.log(3) - 0.1


def test_independent_noise_measures_the_bias_the_docstring_names():
    factor = drawn(20_000, 8, seed=4)
    # Uniform codes fill every bin alike.
    codes = torch.rand(20_000, 30, generator=torch.Generator().manual_seed(5))
    mean = mutual_information(codes, factor).mean().item()
    bias = 19 * 7 / (2 * 20_000)
    # 30 values of a chi-square of 133 degrees: a standard error of 2.2 %.
    assert mean == pytest.approx(bias, rel=0.1)


def test_constant_factors_and_dimensions_tell_nothing_and_keep_their_place():
    factors = torch.cat([grid(3, 2, copies=3), torch.ones(18, 1, dtype=torch.int64)], dim=1)
    codes = torch.cat([torch.zeros(18, 1), factors.float()], dim=1)
    table = mutual_information(codes, factors)
    assert table.shape == (4, 3)
    assert table[0].tolist() == table[3].tolist() == [0.0] * 3
    assert table[:, 2].tolist() == [0.0] * 4
    assert table[1, 0].item() == pytest.approx(math.log(3))


@pytest.mark.bad_input
@pytest.mark.parametrize("bins", [1, 0, -3, 2.0, True], ids=str)
def test_bins_that_tell_nothing_are_an_error(bins):
    with pytest.raises(ConfigError, match="mutual_information needs bins"):
        mutual_information(noise(50, 2), drawn(50, 2), bins=bins)


@pytest.mark.bad_input
def test_fewer_samples_than_cells_are_an_error_that_says_how_many():
    factor = torch.arange(7).repeat(10)[:, None]
    codes = torch.linspace(0, 1, 70)[:, None]
    mutual_information(codes, factor, bins=10)
    with pytest.raises(ShapeError, match=r"11 bins times 7 values, got 70; draw at least 77"):
        mutual_information(codes, factor, bins=11)
    # Bins that nothing falls into do not count.
    mutual_information((codes > 0.5).float(), factor, bins=11)


@pytest.mark.parametrize(
    ("matrix", "of_mig", "of_modularity", "of_sap"),
    [
        ([[1, 0], [0, 1]], 1.0, 1.0, 1.0),
        ([[1, 1], [1, -1]], 0.0, 0.0, 0.0),  # a turn by 45 degrees: both tell half of both
        ([[1, 1, 0, 0], [0, 0, 1, 1]], 0.0, 1.0, 0.0),
        ([[1, 0, 0], [0, 1, 1]], 0.5, 1.0, 0.5),  # the second factor has no leader
        ([[1], [0]], 0.5, 1.0, 0.5),  # the second factor is told by none
    ],
    ids=["identity", "turned", "copied", "one copied", "one alone"],
)
def test_known_values(matrix, of_mig: float, of_modularity: float, of_sap: float):
    factors = grid(4, 4, copies=3)
    codes = factors.double() @ torch.tensor(matrix, dtype=torch.float64)
    for score, value in ((mig, of_mig), (modularity, of_modularity), (sap, of_sap)):
        assert score(codes, factors) == pytest.approx(value, abs=BUDGET), score.__name__


@pytest.mark.parametrize("bins", [4, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_mig_agrees_with_the_twin(bins: int, seed: int):
    factors = drawn(400, 2, 5, 3, seed=seed)
    codes = torch.cat([factors.double() + 0.4 * noise(400, 3, seed=seed + 9), noise(400, 1)], dim=1)
    expected = twins.mig(codes.numpy(), factors.numpy(), bins)
    assert 0.05 < expected < 0.95
    assert mig(codes, factors, bins=bins) == pytest.approx(expected, abs=BUDGET)


def test_a_dimension_that_tells_two_factors_is_not_punished():
    factors = grid(3, 3, copies=5)
    both = (3 * factors[:, :1] + factors[:, 1:]).double()
    assert mig(both, factors) == pytest.approx(1, abs=BUDGET)


def test_a_rougher_second_dimension_takes_its_share():
    # All four values against two of them: log 4 - log 2 over log 4.
    factor = torch.arange(4).repeat(5)[:, None]
    codes = torch.cat([factor, factor // 2], dim=1).double()
    assert mig(codes, factor) == pytest.approx(0.5, abs=BUDGET)


@pytest.mark.parametrize(
    ("values", "bins", "score"), [(3, 20, 1), (20, 20, 1), (32, 20, 0.85), (32, 32, 1)], ids=str
)
def test_a_dimension_cannot_tell_more_values_than_bins(values: int, bins: int, score: float):
    factors = grid(values, 2, copies=20)
    codes = factors[:, :1].double()
    # The other factor is told by none, so it adds 0 to the mean of two.
    assert 2 * mig(codes, factors, bins=bins) == pytest.approx(score, abs=5e-4)
    if (values, bins) == (32, 20):
        # Ends 1.55 apart: 12 intervals hold two values and 8 hold one.
        told = math.log(32) - 12 * 2 / 32 * math.log(2)
        assert 2 * mig(codes, factors) == pytest.approx(told / math.log(32), abs=BUDGET)


def test_independent_noise_scores_near_zero():
    factors = drawn(10_000, 3, 6, 32, seed=2)
    # The gap of two biased estimates; the bias itself, 19 * 31 / 20,000 over log 32, is .0085.
    assert 0 < mig(noise(10_000, 6, seed=3), factors) < 0.0085


def test_a_monotone_map_that_crowds_values_into_one_bin_shows():
    factors = grid(8, 8, copies=20)
    crowded = (3.0 * factors).exp().double()
    assert mig(factors.double(), factors) == pytest.approx(1, abs=BUDGET)
    assert mig(crowded, factors) < 0.5


@pytest.mark.parametrize("bins", [4, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_modularity_agrees_with_the_twin(bins: int, seed: int):
    factors = drawn(400, 2, 5, 3, seed=seed)
    mixing = torch.tensor([[1.0, 0.0, 0.5], [0.3, 1.0, 0.0], [0.0, 0.6, 1.0]]).double()
    codes = factors.double() @ mixing + 0.2 * noise(400, 3, seed=seed + 9)
    codes = torch.cat([codes, noise(400, 1), torch.ones(400, 1)], dim=1)
    expected = twins.modularity(codes.numpy(), factors.numpy(), bins)
    assert 0.3 < expected < 0.97
    assert modularity(codes, factors, bins=bins) == pytest.approx(expected, abs=BUDGET)


def test_one_of_three_dimensions_that_tells_two_of_three_factors():
    factors = grid(3, 3, 3, copies=3)
    codes = factors.double()
    codes[:, 0] = 3 * codes[:, 0] + codes[:, 1]
    # Both at the same information: 1 - 1 / (3 - 1).
    assert modularity(codes, factors) == pytest.approx((0.5 + 1 + 1) / 3, abs=BUDGET)


def test_a_dimension_that_tells_exactly_nothing_does_not_count():
    factors = grid(3, 5, copies=5)
    # Varies, yet is independent of both factors to the last sample. Rounding leaves 9e-16 nats
    # about the second one, which must not pass for a preference.
    nuisance = torch.arange(5).repeat_interleave(15).double()[:, None]
    codes = torch.cat([nuisance, factors.double()], dim=1)
    assert modularity(codes, factors) == pytest.approx(1, abs=BUDGET)
    assert modularity(nuisance, factors) == 0.0


def test_chance_with_unequal_factors_is_what_the_docstring_says():
    factors = drawn(10_000, 3, 6, 32, 32, seed=2)
    chance = chance_level(modularity, noise(10_000, 6, seed=3), factors, seed=0, repeats=5)
    assert chance.level == pytest.approx(0.7, abs=0.05)


def example(n: int, *sizes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    factors = drawn(n, *sizes, seed=seed)
    codes = factors.double() + 0.5 * noise(n, len(sizes), seed=seed + 9)
    codes[:, 0] += 0.7 * codes[:, 1]
    return torch.cat([codes, noise(n, 1, seed=seed + 10), torch.ones(n, 1)], dim=1), factors


# --- continuous -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_continuous_agrees_with_the_twin(seed: int):
    codes, factors = example(300, 2, 5, 3, seed=seed)
    expected = twins.sap_continuous(codes.numpy(), factors.numpy())
    assert 0.05 < expected < 0.95
    assert sap(codes, factors) == pytest.approx(expected, abs=BUDGET)
    alone = twins.sap_continuous(codes[:, :1].numpy(), factors.numpy())
    assert sap(codes[:, :1], factors) == pytest.approx(alone, abs=BUDGET)


@pytest.mark.parametrize(
    ("matrix", "score"),
    [
        ([[1.0, 0.0], [1.0, 1.0]], 0.5),  # (1/2 - 0 + 1 - 1/2) / 2
        ([[2.0, 0.0], [1.0, 1.0]], 0.8),  # 4/5 of the first, (1 - 1/5) of the second
    ],
    ids=["leaning", "leaning less"],
)
def test_continuous_of_linear_codes_follows_the_variances(matrix, score: float):
    factors = grid(5, 5)
    codes = factors.double() @ torch.tensor(matrix, dtype=torch.float64)
    assert sap(codes, factors) == pytest.approx(score, abs=BUDGET)


def test_continuous_reads_the_integers_as_numbers():
    factors = torch.tensor([[0], [1], [5]]).repeat(4, 1)
    assert sap(factors.double(), factors) == pytest.approx(1, abs=BUDGET)
    # 0, 1, 2 against 0, 1, 5: 25 / 28.
    steps = torch.tensor([[0.0], [1.0], [2.0]]).repeat(4, 1)
    assert sap(steps, factors) == pytest.approx(25 / 28, abs=1e-7)


# --- discrete ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 2), (3, 4)], ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_discrete_agrees_with_the_twin(sizes: tuple[int, ...], seed: int):
    codes, factors = example(300, *sizes, seed=seed)
    # Unequal frequencies, so that balancing shows.
    factors[(factors[:, 0] == 1) & (torch.rand(300, generator=generator(seed)) < 0.6), 0] = 0
    train, test = checked_samples("sap", codes, factors).split("sap", seed=seed)
    expected = twins.sap_discrete(codes.numpy(), factors.numpy(), train.numpy(), test.numpy())
    found = sap(codes, factors, kind="discrete", seed=seed)
    assert 0.05 < expected < 0.6
    # Two solvers may differ on a sample within their tolerance of a threshold: none did.
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("values", "right"), [(2, 1.0), (3, 1.0), (6, 0.67), (32, 0.06)], ids=str)
def test_discrete_of_perfect_codes_is_what_the_docstring_says(values: int, right: float):
    factor = drawn(10_000, values, seed=1)
    # A single dimension leads by what it is better than a guess.
    found = sap(factor.double(), factor, kind="discrete")
    assert found == pytest.approx(right - 1 / values, abs=0.006)


def test_discrete_counts_every_value_alike():
    # Right for the rare value, wrong for half of the frequent one: (1/2 + 1) / 2 less 1/2.
    factor = (torch.arange(4000) % 10 == 0).long()[:, None]
    code = torch.where(factor[:, 0] == 1, 1, torch.arange(4000) % 2).double()[:, None]
    half = float(code[factor == 0].mean())
    found = sap(code, factor, kind="discrete")
    # The share of ones among the others, 5/9, as it falls into the test part.
    assert found == pytest.approx((1 - half + 1) / 2 - 0.5, abs=0.05)


def test_discrete_splits_by_its_seed():
    codes, factors = example(300, 3, 4, seed=0)
    first = sap(codes, factors, kind="discrete", seed=0)
    assert first == sap(codes, factors, kind="discrete", seed=0)
    assert first != sap(codes, factors, kind="discrete", seed=1)


def test_discrete_copies_score_zero():
    factors = grid(2, 3, copies=20)
    assert sap(factors[:, [0, 0, 1, 1]].double(), factors, kind="discrete") == 0.0


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_sap_independent_noise_scores_near_zero(kind):
    factors = drawn(3000, 3, 6, seed=2)
    # Largest of differences between R^2 of 1 / n, or accuracies right to 2 % of a sample of 1000.
    assert 0 <= sap(noise(3000, 4, seed=3), factors, kind=kind) < 0.05


@pytest.mark.bad_input
def test_an_unknown_kind_is_named():
    with pytest.raises(ConfigError, match="kind to be one of continuous, discrete, got 'svm'"):
        sap(noise(50, 2), drawn(50, 2), kind="svm")


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
def test_dci_agrees_with_the_twin(model: str):
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

    module = importlib.import_module("orthotrain.disentangle.codes")
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
