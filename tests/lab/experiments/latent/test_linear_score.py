"""Scores of a linear generator whose distance and directions are known."""

from __future__ import annotations

import pytest
import torch

from orthotrain.lab.experiments.latent.linear_score import alignment, linear_scores
from orthotrain.lab.experiments.latent.sources import NOISE, GaussianSource
from orthotrain.models.linear_gan import LinearGenerator

SIZE = 16


def source():
    return GaussianSource.of(SIZE, device=torch.device("cpu"))


def solved(rotation=None):
    """The generator that makes the data exactly; with a rotation its axes mean nothing."""
    data = source()
    model = LinearGenerator(SIZE, noise=NOISE, generator=torch.Generator().manual_seed(0))
    weight = data.scales[:, None] * data.directions
    with torch.no_grad():
        if rotation is None:
            model.subspace.scale.copy_(data.scales)
            model.subspace.u.copy_(data.directions)
        else:
            model.subspace.scale.fill_(1.0)
            model.subspace.u.copy_(rotation @ weight)
    return model


def rotation(seed=3):
    return torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(seed))).Q


def test_the_optimum_scores_best():
    scores = linear_scores(solved(), source(), seed=0)
    assert scores["frechet"] == pytest.approx(0, abs=1e-5)
    assert scores["alignment"] == pytest.approx(1, abs=1e-6)
    assert scores["alignment_sefa"] > 0.95
    assert scores["orthonormality_error"] == pytest.approx(0, abs=1e-5)


def test_rotated_latents_fit_as_well_and_only_sefa_finds_the_directions():
    scores = linear_scores(solved(rotation()), source(), seed=0)
    assert scores["frechet"] == pytest.approx(0, abs=1e-4)
    assert scores["alignment"] < 0.9
    # SeFa scales features to one length first, so what it finds is near the directions, not them.
    optimum = linear_scores(solved(), source(), seed=0)["alignment_sefa"]
    assert scores["alignment_sefa"] == pytest.approx(optimum, abs=1e-4)


def test_directions_are_scored_in_place_of_the_axes():
    turned = solved(rotation())
    back = rotation().double().mT
    scores = linear_scores(turned, source(), seed=0, directions=back)
    assert scores["alignment"] == pytest.approx(1, abs=1e-6)
    plain = linear_scores(turned, source(), seed=0)
    assert scores["alignment_rotated"] == plain["alignment_rotated"]


def test_the_floor_is_the_alignment_of_random_axes():
    optimum = linear_scores(solved(), source(), seed=0)["alignment_rotated"]
    assert optimum < 0.95
    assert linear_scores(solved(), source(), seed=1)["alignment_rotated"] != optimum


def test_frechet_of_a_shifted_mean_is_its_square():
    model = solved()
    with torch.no_grad():
        model.subspace.mean[0] = 3.0
    assert linear_scores(model, source(), seed=0)["frechet"] == pytest.approx(9, abs=1e-4)


def test_frechet_of_commuting_covariances_is_the_distance_of_deviations():
    model = solved()
    with torch.no_grad():
        model.subspace.scale.mul_(2.0)
    data = source()
    deviations = (data.scales.double().square() + NOISE**2).sqrt()
    ours = ((2 * data.scales.double()).square() + NOISE**2).sqrt()
    expected = float((ours - deviations).square().sum())
    assert linear_scores(model, data, seed=0)["frechet"] == pytest.approx(expected, rel=1e-6)


def test_alignment_pairs_each_direction_once_and_ignores_sign_and_length():
    principal = torch.eye(3, 5, dtype=torch.float64)
    assert alignment(principal[[2, 0, 1]] * -7.0, principal) == pytest.approx(1)
    twice = principal[[0, 0, 1]]
    assert alignment(twice, principal) == pytest.approx(2 / 3)


def test_samples_have_the_covariance_that_is_claimed():
    data = source()
    x = data.batch(200_000, generator=torch.Generator().manual_seed(0)).double()
    covariance = x.mT @ x / len(x)
    # The error of an entry is about largest variance / n^(1/2) = .33.
    torch.testing.assert_close(covariance, data.covariance(), rtol=0, atol=2.0)
    model = solved()
    made = model.sample(200_000, generator=torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(made.mT @ made / len(made), model.covariance(), rtol=0, atol=2.0)
