"""Factors of a random matrix: orthonormal, uniformly distributed, with the right values."""

import pytest
import torch

from orthotrain.layers import LowRankConv2d, LowRankEmbedding, LowRankLinear
from orthotrain.linalg.random_factors import random_factors_like, random_singular_values
from reference.matrices import generator


@pytest.mark.parametrize("shape", [(160, 160), (96, 384), (300, 60)], ids=str)
@pytest.mark.parametrize("law", ["normal", "uniform"])
def test_singular_values_are_those_of_a_random_matrix(shape, law):
    draws = 8
    a = torch.randn(draws, *shape, generator=generator(0), dtype=torch.float64)
    if law == "uniform":  # as torch initializes layers
        a = torch.rand(a.shape, generator=generator(0), dtype=torch.float64) * 12**0.5 - 3**0.5
    s = torch.linalg.svdvals(a).mean(0)
    ours = random_singular_values(*shape)
    # Measured: the mean over draws is off by .012 of the largest value at most, at the edges.
    assert (ours - s).abs().max() < 0.02 * s[0]
    for power in (2, 4):
        torch.testing.assert_close((ours**power).mean(), (s**power).mean(), rtol=0.02, atol=0)


def test_bases_are_orthonormal_and_uniformly_distributed():
    torch.manual_seed(0)
    a = 0.3 * torch.randn(4000, 6, 5)
    u, s, vh = random_factors_like(a, 3)
    eye = torch.eye(3)
    assert (u.mT @ u - eye).abs().max() < 1e-6
    assert (vh @ vh.mT - eye).abs().max() < 1e-6
    assert bool((s[:, 1:] <= s[:, :-1]).all())
    for q, side in ((u, 6), (vh.mT, 5)):
        # Each entry: mean 0, mean square 1 / side; deviation of the mean .0065 at 4000 draws.
        assert q.mean(0).abs().max() < 0.03
        assert (q.square().mean(0) - 1 / side).abs().max() < 0.015
    full = random_factors_like(a, 5)[1]
    torch.testing.assert_close(full.norm(dim=-1), a.norm(dim=(-2, -1)))
    torch.testing.assert_close(full[:, :3], s)


def test_layers_of_their_own_are_built_of_them(monkeypatch):
    def never(*_, **__):
        raise AssertionError("a random weight was decomposed")

    monkeypatch.setattr("orthotrain.layers._factors.thin_svd", never)
    for layer in (LowRankLinear(96, 64, rank=16), LowRankConv2d(16, 64, 3, groups=2, rank=8)):
        u, core, vh = layer.factors()
        eye = torch.eye(layer.rank).expand_as(core)
        assert (u.mT @ u - eye).abs().max() < 1e-6
        assert (vh @ vh.mT - eye).abs().max() < 1e-6
        assert 0 < layer.weight.std() < 1
    monkeypatch.undo()
    assert not LowRankEmbedding(20, 8, padding_idx=3, rank=4).weight[3].any()
