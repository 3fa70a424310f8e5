"""FactorVAE and beta-VAE score: known values, and the twins."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from disentangle.grids import Grid, grid, identity, mixed
from orthotrain.disentangle import FactorDataset, beta_vae_score, factor_vae_score
from orthotrain.errors import (
    ConfigError,
    MissingPackageError,
    NonFiniteError,
    OrthotrainWarning,
    ShapeError,
)
from reference import disentangle_scores as twins
from reference.matrices import generator

TURN = [[1.0, 1.0], [1.0, -1.0]]
PAIRS = {"train_votes": 300, "evaluation_votes": 200, "batch": 16}
SMALL = {**PAIRS, "variance_samples": 1000}


def noisy(matrix, level: float):
    """An encoder whose noise hangs on the image, so the same image has the same code."""
    directions = torch.randn(len(matrix[0]), 2, generator=generator(5))

    def encode(images: torch.Tensor) -> torch.Tensor:
        factors = images.flatten(1)
        seed = (factors * torch.tensor([12.9898, 78.233, 37.719])[: factors.shape[1]]).sum(1)
        blur = torch.stack([(43758.5453 * seed.sin()).frac(), (9631.7 * seed.cos()).frac()], dim=1)
        return mixed(matrix)(images) + level * blur @ directions.T

    return encode


# Three pairs a vote and mixed factors of many values: differences that do not tell for sure.
FEW_PAIRS = {**PAIRS, "batch": 3}
FINE = (40, 40, 40)
MIXED = [[1.0, 0.8, 0.1], [0.7, 1.0, 0.4], [0.6, 0.5, 0.6]]

# --- both -----------------------------------------------------------------------------------------

both = pytest.mark.parametrize("score", [factor_vae_score, beta_vae_score])
# Where a score is neither chance nor one, so that a change of the draws shows in it.
telling = pytest.mark.parametrize(
    ("score", "encode", "sizes", "settings"),
    [
        (factor_vae_score, noisy([[1.0, 0.3, 0.0], [0.2, 1.0, 0.1]], 0.8), (4, 4), SMALL),
        (beta_vae_score, mixed(MIXED), FINE, FEW_PAIRS),
    ],
    ids=["factor", "beta"],
)


@both
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
def test_perfect_codes_score_one(score, matrix: torch.Tensor):
    found = score(mixed(matrix), Grid(3, 4, 5), seed=0, **PAIRS)
    assert (found.score, found.train_score, found.standard_error) == (1.0, 1.0, 0.0)
    assert found.chance == pytest.approx(1 / 3)


@both
def test_many_images_come_in_several_calls(score):
    sizes = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return images.flatten(1)

    assert score(encode, Grid(50, 60), seed=0, **PAIRS).score == 1.0
    assert len(sizes) > 1
    assert max(sizes) <= 1024


@both
def test_a_turn_by_45_degrees_scores_chance(score):
    found = score(mixed(TURN), Grid(5, 5), seed=1, train_votes=2000, evaluation_votes=2000)
    assert found.chance == 0.5
    assert found.standard_error == pytest.approx((found.score * (1 - found.score) / 2000) ** 0.5)
    # Five standard errors of both parts.
    assert found.score == pytest.approx(0.5, abs=5 * (2 * 0.25 / 2000) ** 0.5)


@telling
def test_follows_its_seed_and_leaves_the_global_ones(score, encode, sizes, settings):
    def states() -> tuple:
        numpys = np.random.get_state()  # noqa: NPY002 - the state that must not move
        return torch.get_rng_state().tolist(), str(numpys)

    before = states()
    first, again, other = (
        (found.score, found.train_score)
        for found in (score(encode, Grid(*sizes), seed=seed, **settings) for seed in (0, 0, 1))
    )
    assert first == again
    assert first != other
    assert states() == before


@telling
def test_extreme_scales_change_no_vote(score, encode, sizes, settings):
    powers = torch.tensor([2.0**800, 2.0**-800, 2.0**-10], dtype=torch.float64)

    def extreme(images: torch.Tensor) -> torch.Tensor:
        return encode(images).double() * powers

    first, second = (score(each, Grid(*sizes), seed=0, **settings) for each in (encode, extreme))
    assert (first.score, first.train_score) == (second.score, second.train_score)
    assert first.chance < first.score < 0.98


@both
def test_a_factor_with_one_value_is_never_named_and_warns(score):
    data = Grid(3, 1, 4)
    with pytest.warns(OrthotrainWarning, match=f"{score.__name__}: factor 1 takes one value"):
        found = score(identity, data, seed=0, **PAIRS)
    assert (found.chance, found.score) == (0.5, 1.0)
    # Named, the choice is clear.
    assert score(identity, data, seed=0, factors=[0, 2], **PAIRS).score == 1.0


COMMON = [
    ({"train_votes": 0}, "train_votes"),
    ({"evaluation_votes": 0}, "evaluation_votes"),
    ({"batch": 0}, "batch to be a whole number"),
    ({"batch": 8.0}, "batch"),
    ({"seed": -1}, "seed"),
    ({"factors": [0, 3]}, r"columns from 0 to 2, got \[0, 3\]"),
    ({"factors": [0, 0]}, "different columns"),
    ({"factors": [-1, 0]}, "different columns"),
    ({"factors": [1]}, "at least two factors"),
    ({"factors": []}, "at least two factors"),
]
WRONG = [
    *((score, *row) for score in (factor_vae_score, beta_vae_score) for row in COMMON),
    (factor_vae_score, {"batch": 1}, "batch to be a whole number, 2 or more"),
    (factor_vae_score, {"variance_samples": 1}, "variance_samples"),
    (factor_vae_score, {"min_std": -0.1}, "min_std"),
    (factor_vae_score, {"min_std": float("nan")}, "min_std"),
    (beta_vae_score, {"train_votes": 2}, "2 votes left out one of 3; raise train_votes"),
    (beta_vae_score, {"seed": 2**32}, "seed"),
]


@pytest.mark.bad_input
@pytest.mark.parametrize(("score", "settings", "message"), WRONG)
def test_settings_that_cannot_work_are_named(score, settings, message: str):
    with pytest.raises(ConfigError, match=f"{score.__name__} needs .*{message}"):
        score(identity, Grid(3, 4, 5), **{"seed": 0, **PAIRS, **settings})


@pytest.mark.bad_input
@both
@pytest.mark.parametrize(
    ("encode", "error", "message"),
    [
        (lambda x: x, ShapeError, r"encode\(images\) of shape \(n, d\)"),
        (lambda x: x.flatten(1)[1:], ShapeError, "one code per image"),
        (lambda x: x.flatten(1)[:, :0], ShapeError, r"shape \(n, d\)"),
        (lambda x: x.flatten(1).long(), ConfigError, "real floating-point"),
        (lambda x: x.flatten(1) / 0, NonFiniteError, r"encode\(images\)"),
        (lambda x: (x.flatten(1), x), ConfigError, "one tensor of codes, got tuple"),
    ],
    ids=["images", "too few", "empty", "integers", "infinite", "two"],
)
def test_codes_that_are_none_are_named(score, encode, error, message: str):
    with pytest.raises(error, match=f"{score.__name__} needs .*{message}"):
        score(encode, Grid(3, 4), seed=0, **PAIRS)


# --- FactorVAE ------------------------------------------------------------------------------------


@pytest.mark.parametrize("min_std", [0.0, 0.9])
def test_agrees_with_the_twin(min_std: float):
    data = Grid(4, 5, 6)
    # The last dimension deviates by .8.
    encode = noisy([[1.0, 0.3, 0.0, 0.0], [0.4, 1.0, 0.0, 0.2], [0.0, 0.3, 0.2, 0.4]], 0.8)
    found = factor_vae_score(encode, data, seed=3, min_std=min_std, **SMALL)
    everywhere, shown = data.asked

    def codes(factors: torch.Tensor):
        return encode(factors.float()[:, :, None, None]).double().numpy()

    votes = [(part.numpy(), codes(part)) for part in shown.split(16)]
    cast = twins.factor_vae_votes(votes, codes(everywhere), min_std)
    assert len(cast) == 500
    expected = twins.majority_accuracy(cast[:300], cast[300:])
    assert 1 / 3 + 0.1 < expected < 0.98
    assert found.score == pytest.approx(expected, abs=1e-12)
    train = twins.majority_accuracy(cast[:300], cast[:300])
    assert found.train_score == pytest.approx(train, abs=1e-12)
    table = torch.zeros(4, 3, dtype=torch.int64)
    for dimension, factor in cast[:300]:
        table[dimension, factor] += 1
    assert torch.equal(found.votes, table)
    assert found.live == (
        4 if min_std == 0 else int((codes(everywhere).std(0, ddof=1) > 0.9).sum())
    )


def test_draws_are_uniform_but_for_the_fixed_factor():
    data = Grid(3, 4)
    factor_vae_score(identity, data, seed=0, train_votes=2000, evaluation_votes=1000, batch=20)
    everywhere, shown = data.asked
    assert everywhere.shape == (10_000, 2)
    shown = shown.view(3000, 20, 2)
    for factors, votes in ((everywhere, 10_000), (shown.flatten(0, 1), 3000)):
        for j, size in enumerate((3, 4)):
            share = factors[:, j].bincount(minlength=size) / len(factors)
            # Five standard errors; a fixed value counts a vote once.
            assert (share - 1 / size).abs().max() < 5 * (0.25 / votes) ** 0.5
    still = (shown == shown[:, :1]).all(dim=1)
    # By chance both stand still in one of 3^19 votes.
    assert (still.sum(dim=1) == 1).all()
    assert still[:, 0].float().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / 3000**0.5)


def test_a_factor_that_no_dimension_tells_is_never_named():
    found = factor_vae_score(
        mixed([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), Grid(4, 4, 4), seed=2, **SMALL
    )
    # Right for the other two thirds.
    assert found.score == pytest.approx(2 / 3, abs=5 * (2 / 9 / 200) ** 0.5)
    assert found.votes[:, 2].sum() == 300 - found.votes[:, :2].sum() > 0
    assert found.votes[0, 1] == found.votes[1, 0] == 0


def test_dead_dimensions_are_not_live_and_votes_keep_the_codes_places():
    # Pruned, the live dimensions would be 0 and 1.
    matrix = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    found = factor_vae_score(mixed(matrix), Grid(4, 4), seed=0, **SMALL)
    assert found.live == 2
    assert found.votes.shape == (4, 2)
    assert found.votes[[0, 2]].sum() == 0
    assert found.votes[3].tolist() == [int(found.votes[3, 0]), 0]
    assert found.votes[1].tolist() == [0, int(found.votes[1, 1])]
    assert int(found.votes.sum()) == 300


def test_a_dimension_below_min_std_has_no_vote():
    # Both scales of the first factor are equally still, and the first of equals is named.
    encode = mixed([[0.01, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert factor_vae_score(encode, Grid(4, 4), seed=0, **SMALL).votes[1].sum() == 0
    found = factor_vae_score(encode, Grid(4, 4), seed=0, min_std=0.05, **SMALL)
    assert found.votes[0].sum() == 0
    assert found.live == 2
    assert found.score == 1.0


@pytest.mark.parametrize("dimensions", [1, 3])
def test_codes_that_are_all_constant_cast_no_vote(dimensions: int):
    found = factor_vae_score(
        lambda images: torch.full((len(images), dimensions), 0.1), Grid(3, 3), seed=0, **SMALL
    )
    assert (found.score, found.train_score, found.live) == (0.0, 0.0, 0)
    assert found.votes.tolist() == [[0, 0]] * dimensions


def test_a_dimension_without_a_training_vote_is_wrong():
    # One training vote: dimension and factor of all evaluation votes are right for one of two.
    settings = {**SMALL, "train_votes": 1, "evaluation_votes": 2000}
    found = factor_vae_score(identity, Grid(4, 4), seed=0, **settings)
    assert found.score == pytest.approx(0.5, abs=5 * 0.5 / 2000**0.5)


def test_one_dimension_names_the_factor_it_votes_for_most():
    found = factor_vae_score(lambda images: images.flatten(1)[:, :1], Grid(4, 4), seed=0, **SMALL)
    assert found.votes.shape == (1, 2)
    assert found.score == pytest.approx(0.5, abs=5 * 0.5 / 200**0.5)


def test_factors_named_are_fixed_and_the_others_vary():
    data = Grid(3, 4, 5)
    found = factor_vae_score(identity, data, seed=0, factors=[2, 0], **SMALL)
    assert found.chance == 0.5
    assert found.score == 1.0
    assert found.votes.shape == (3, 2)
    # In the order they were named.
    assert found.votes[0, 0] == found.votes[2, 1] == found.votes[1].sum() == 0
    shown = data.asked[1].view(500, 16, 3)
    assert not (shown[..., 1] == shown[:, :1, 1]).all(dim=1).any()


def test_every_image_is_encoded_once_without_gradient_whatever_is_drawn():
    data, seen = Grid(3, 4, 5), []

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            seen.append(images.flatten(1))
            return images.flatten(1) * self.scale

    assert factor_vae_score(Encoder(), data, seed=0, **SMALL).score == 1.0
    shown = torch.cat(seen)
    assert len(shown) == len(shown.unique(dim=0)) == 60


def test_the_grid_of_the_tests_is_a_factor_dataset():
    data = Grid(3, 4)
    assert isinstance(data, FactorDataset)
    assert torch.equal(data.index_of(grid(3, 4)), torch.arange(12))
    images, factors = data[torch.tensor([5])]
    assert images.shape == (1, 2, 1, 1)
    assert factors.tolist() == [[1, 1]]


@pytest.mark.bad_input
def test_data_without_factors_are_named():
    with pytest.raises(ConfigError, match=r"factor_sizes, index_of.* got list"):
        factor_vae_score(identity, [1, 2], seed=0)
    with pytest.raises(ConfigError, match=r"got 1 of columns \[0, 1\] with sizes \(4, 1\)"):
        factor_vae_score(identity, Grid(4, 1), seed=0)


@pytest.mark.bad_input
def test_codes_that_change_their_length_are_named():
    lengths = iter([2, 1, 2, 1])
    with pytest.raises(ShapeError, match="all of one length"):
        factor_vae_score(
            lambda images: images.flatten(1)[:, : next(lengths)], Grid(50, 60), seed=0, **SMALL
        )


# --- beta-VAE -------------------------------------------------------------------------------------


def test_beta_vae_agrees_with_the_twin():
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


def test_one_untold_factor_does_not_lower_it_but_lowers_the_other_score():
    # Kim and Mnih (2018): the classifier names the untold factor where all others differ.
    data, encode = Grid(4, 4, 4), mixed([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert beta_vae_score(encode, data, seed=0, **PAIRS).score == 1.0
    few = {**PAIRS, "variance_samples": 1000}
    assert factor_vae_score(encode, data, seed=0, **few).score < 0.85


@pytest.mark.parametrize("dimensions", [1, 3])
def test_codes_that_are_all_constant_score_chance(dimensions: int):
    found = beta_vae_score(
        lambda images: torch.full((len(images), dimensions), 0.1),
        Grid(3, 3, 3),
        seed=0,
        **PAIRS,
    )
    assert found.score == pytest.approx(found.chance, abs=5 * (2 / 9 / 200) ** 0.5)


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
    found = beta_vae_score(identity, data, seed=0, factors=[2, 0], **PAIRS)
    assert (found.chance, found.score) == (0.5, 1.0)
    same = (data.asked[0] == data.asked[1]).view(500, 16, 3).all(dim=1)
    assert not same[:, 1].any()


@pytest.mark.bad_input
def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingPackageError, match=r'pip install "orthotrain\[lab\]"'):
        beta_vae_score(identity, Grid(3, 4), seed=0, **PAIRS)
    assert factor_vae_score(identity, Grid(3, 4), seed=0, train_votes=9).live == 2
