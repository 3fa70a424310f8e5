"""beta-VAE score: known values, the twin, and the weakness that its paper's critics found."""

import sys

import numpy as np
import pytest
import torch

from disentangle.grids import Grid, identity, mixed
from orthotrain.disentangle import beta_vae_score, factor_vae_score
from orthotrain.errors import ConfigError, NonFiniteError, OrthotrainWarning, ShapeError
from reference import disentangle_scores as twins

SMALL = {"train_votes": 300, "evaluation_votes": 200, "batch": 16}
# Three pairs a vote and mixed factors of many values: differences that do not tell for sure.
FEW_PAIRS = {**SMALL, "batch": 3}
FINE = (40, 40, 40)
MIXED = [[1.0, 0.8, 0.1], [0.7, 1.0, 0.4], [0.6, 0.5, 0.6]]


def test_agrees_with_the_twin():
    data, encode = Grid(*FINE), mixed(MIXED)
    found = beta_vae_score(encode, data, seed=3, **FEW_PAIRS)
    first, second = (part.view(500, 3, 3) for part in data.asked)

    def codes(factors: torch.Tensor):
        return encode(factors.float()[:, :, None, None]).double().numpy()

    features = np.array(
        [twins.mean_difference(codes(a), codes(b)) for a, b in zip(first, second, strict=True)]
    )
    shared = np.array(
        [twins.shared_column(a.numpy(), b.numpy()) for a, b in zip(first, second, strict=True)]
    )
    expected = twins.logistic_accuracy(features[:300], shared[:300], features[300:], shared[300:])
    assert 1 / 3 + 0.1 < expected < 0.95
    # Two solvers may differ on a vote within their tolerance of a boundary.
    assert found.score == pytest.approx(expected, abs=1.5 / 200)
    train = twins.logistic_accuracy(features[:300], shared[:300], features[:300], shared[:300])
    assert found.train_score == pytest.approx(train, abs=1.5 / 300)
    error = (found.score * (1 - found.score) / 200) ** 0.5
    assert found.standard_error == pytest.approx(error)


def test_pairs_share_one_factor_and_are_uniform_otherwise():
    data = Grid(3, 4)
    beta_vae_score(identity, data, seed=0, train_votes=2000, evaluation_votes=1000, batch=20)
    first, second = (part.view(3000, 20, 2) for part in data.asked)
    for factors in (first, second):
        for j, size in enumerate((3, 4)):
            share = factors[..., j].flatten().bincount(minlength=size) / 60_000
            assert (share - 1 / size).abs().max() < 5 * (0.25 / 60_000) ** 0.5
    same = first == second
    shared = same.all(dim=1)
    assert (shared.sum(dim=1) == 1).all()
    assert shared[:, 0].float().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / 3000**0.5)
    # The other factor is drawn anew in the second image.
    for j, size in enumerate((3, 4)):
        share = same[~shared[:, j]][..., j].float().mean().item()
        assert share == pytest.approx(1 / size, abs=5 * (0.25 / 25_000) ** 0.5)
    # Within a batch of pairs the shared value changes.
    assert not (first == first[:, :1]).all(dim=1).any()


@pytest.mark.parametrize(
    "matrix",
    [
        torch.eye(3),
        torch.tensor([[0.0, -3.0, 0.0], [1e-3, 0.0, 0.0], [0.0, 0.0, 1e3]]),
        torch.eye(3).repeat(1, 2),
        torch.cat([torch.zeros(3, 2), torch.eye(3)], dim=1),
    ],
    ids=["identity", "permuted and scaled", "copied", "dead beside"],
)
def test_perfect_codes_score_one(matrix: torch.Tensor):
    found = beta_vae_score(mixed(matrix), Grid(3, 4, 5), seed=0, **SMALL)
    assert (found.score, found.train_score, found.standard_error) == (1.0, 1.0, 0.0)
    assert found.chance == pytest.approx(1 / 3)


def test_a_turn_by_45_degrees_scores_chance():
    encode = mixed([[1.0, 1.0], [1.0, -1.0]])
    found = beta_vae_score(encode, Grid(5, 5), seed=1, train_votes=2000, evaluation_votes=2000)
    assert found.chance == 0.5
    # Five standard errors of the score.
    assert found.score == pytest.approx(0.5, abs=5 * 0.5 / 2000**0.5)


def test_one_untold_factor_does_not_lower_it_but_lowers_the_other_score():
    # Kim and Mnih (2018): the classifier names the untold factor where all others differ.
    data, encode = Grid(4, 4, 4), mixed([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert beta_vae_score(encode, data, seed=0, **SMALL).score == 1.0
    few = {**SMALL, "variance_samples": 1000}
    assert factor_vae_score(encode, data, seed=0, **few).score < 0.85


@pytest.mark.parametrize("dimensions", [1, 3])
def test_codes_that_are_all_constant_score_chance(dimensions: int):
    found = beta_vae_score(
        lambda images: torch.full((len(images), dimensions), 0.1), Grid(3, 3, 3), seed=0, **SMALL
    )
    assert found.score == pytest.approx(found.chance, abs=5 * (2 / 9 / 200) ** 0.5)


def test_scale_does_not_matter_however_small():
    plain = mixed(MIXED)
    powers = torch.tensor([2.0**800, 2.0**-800, 2.0**-10], dtype=torch.float64)

    def extreme(images: torch.Tensor) -> torch.Tensor:
        return plain(images).double() * powers

    first, second = (
        beta_vae_score(encode, Grid(*FINE), seed=0, **FEW_PAIRS) for encode in (plain, extreme)
    )
    assert first == second
    assert first.score < 0.95


def test_a_dimension_that_varies_by_rounding_is_constant():
    def beside(level: float):
        def encode(images: torch.Tensor) -> torch.Tensor:
            trembling = 0.7 + level * images.flatten(1)[:, :1].sin()
            assert len(trembling.unique()) == 1 or level > 0
            return torch.cat([mixed(MIXED)(images), trembling], dim=1)

        return encode

    still, trembling = (
        beta_vae_score(beside(level), Grid(*FINE), seed=0, **FEW_PAIRS) for level in (0, 3e-7)
    )
    assert still == trembling


def test_factors_named_are_shared_and_the_others_vary():
    data = Grid(3, 4, 5)
    found = beta_vae_score(identity, data, seed=0, factors=[2, 0], **SMALL)
    assert (found.chance, found.score) == (0.5, 1.0)
    same = (data.asked[0] == data.asked[1]).view(500, 16, 3).all(dim=1)
    assert not same[:, 1].any()


def test_follows_its_seed_and_leaves_the_global_ones():
    def states() -> tuple:
        numpys = np.random.get_state()  # noqa: NPY002 - the state that must not move
        return torch.get_rng_state().tolist(), str(numpys)

    before = states()
    first, again, other = (
        beta_vae_score(mixed(MIXED), Grid(*FINE), seed=seed, **FEW_PAIRS) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert states() == before


def test_a_factor_with_one_value_is_never_shared_and_warns():
    with pytest.warns(OrthotrainWarning, match="beta_vae_score: factor 1 takes one value"):
        assert beta_vae_score(identity, Grid(3, 1, 4), seed=0, **SMALL).score == 1.0


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 0}, "batch to be a whole number of at least 1"),
        ({"train_votes": 0}, "train_votes"),
        ({"evaluation_votes": 0}, "evaluation_votes"),
        ({"train_votes": 2}, "2 votes left out one of 3; raise train_votes"),
        ({"seed": 2**32}, "seed"),
        ({"factors": [0, 3]}, r"columns from 0 to 2, got \[0, 3\]"),
        ({"factors": [1]}, "at least two factors"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_named(settings, message: str):
    with pytest.raises(ConfigError, match=f"beta_vae_score needs .*{message}"):
        beta_vae_score(identity, Grid(3, 4, 5), **{"seed": 0, **SMALL, **settings})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("encode", "error"),
    [
        (lambda x: x, ShapeError),
        (lambda x: x.flatten(1).long(), ConfigError),
        (lambda x: x.flatten(1) / 0, NonFiniteError),
    ],
    ids=["images", "integers", "infinite"],
)
def test_codes_that_are_none_are_named(encode, error):
    with pytest.raises(error, match=r"beta_vae_score needs .*encode\(images\)"):
        beta_vae_score(encode, Grid(3, 4), seed=0, **SMALL)


@pytest.mark.bad_input
def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ConfigError, match=r"pip install 'orthotrain\[disentangle\]'"):
        beta_vae_score(identity, Grid(3, 4), seed=0, **SMALL)
    assert factor_vae_score(identity, Grid(3, 4), seed=0, train_votes=9).live == 2
