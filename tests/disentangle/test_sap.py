"""Separated attribute predictability: known values and the twins."""

import pytest
import torch

from disentangle.grids import drawn, grid, noise
from orthotrain.disentangle import sap
from orthotrain.disentangle._codes import checked_samples
from orthotrain.errors import ConfigError
from reference import disentangle_scores as twins
from reference.matrices import generator

EPS = torch.finfo(torch.float64).eps
BUDGET = 64 * EPS


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
        ([[1.0, 0.0], [0.0, 1.0]], 1.0),
        ([[1.0, 1.0], [1.0, -1.0]], 0.0),  # a turn by 45 degrees: both tell half of both
        ([[1.0, 0.0], [1.0, 1.0]], 0.5),  # (1/2 - 0 + 1 - 1/2) / 2
        ([[2.0, 0.0], [1.0, 1.0]], 0.8),  # 4/5 of the first, (1 - 1/5) of the second
        ([[1.0], [0.0]], 0.5),
        ([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]], 0.0),
    ],
    ids=["identity", "turned", "leaning", "leaning less", "one alone", "copied"],
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
def test_independent_noise_scores_near_zero(kind):
    factors = drawn(3000, 3, 6, seed=2)
    # Largest of differences between R^2 of 1 / n, or accuracies right to 2 % of a sample of 1000.
    assert 0 <= sap(noise(3000, 4, seed=3), factors, kind=kind) < 0.05


@pytest.mark.bad_input
def test_an_unknown_kind_is_named():
    with pytest.raises(ConfigError, match="kind to be one of continuous, discrete, got 'svm'"):
        sap(noise(50, 2), drawn(50, 2), kind="svm")
