"""The Householder projector after training: where it starts, what stays, what it trains."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from lab.experiments.latent.tiny import EIGEN, SIMPLE, variant_of
from orthotrain.lab.experiments.latent import images
from orthotrain.lab.experiments.latent import projected as module
from orthotrain.lab.experiments.latent.build import latent_layers
from orthotrain.lab.experiments.latent.projected import (
    fold_scale_,
    projected,
    projected_directions,
)
from orthotrain.lab.experiments.latent.step import adversarial_step
from orthotrain.layers import EigenSubspace

both = pytest.mark.parametrize("config", [EIGEN, SIMPLE], ids=["eigen", "simple"])


def trained(config):
    state = images.build(config, variant_of("baseline"), 0).state
    for _ in range(2):
        adversarial_step(state, config)
    state.handle.detach()
    return state


def test_a_folded_subspace_computes_the_same():
    layer = EigenSubspace(3, out_shape=(2, 4), generator=torch.Generator().manual_seed(0)).double()
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = layer(z)
    fold_scale_(layer)
    torch.testing.assert_close(layer(z), before, rtol=1e-14, atol=1e-14)
    assert layer.scale.tolist() == [1, 1, 1]
    assert not layer.scale.requires_grad


@both
def test_both_players_go_on_and_the_weight_keeps_its_form(config):
    state = trained(config)
    sizes = []
    for layer, name in latent_layers(state.generator):
        weight = getattr(layer, name).detach().double()
        if isinstance(layer, EigenSubspace):
            weight = layer.scale.detach().double()[:, None] * weight
        sizes.append(float(torch.linalg.svdvals(weight).mean()))
    other = copy.deepcopy(state.discriminator.state_dict())
    longer = replace(config, latent=replace(config.latent, householder_fraction=0.5))
    model = projected(state, longer)
    assert not model.training
    for (layer, name), size in zip(latent_layers(model), sizes, strict=True):
        s = torch.linalg.svdvals(getattr(layer, name).detach().double())
        assert s.tolist() == pytest.approx([size] * len(s), rel=1e-5)
    assert any(
        not torch.equal(value, other[key])
        for key, value in state.discriminator.state_dict().items()
    )


@both
def test_its_steps_are_a_share_of_the_training(config, monkeypatch):
    taken = []
    monkeypatch.setattr(module, "adversarial_step", lambda *a: taken.append(1))
    for share, steps in ((0.5, 4), (0.01, 1)):
        taken.clear()
        projected(
            trained(config),
            replace(config, latent=replace(config.latent, householder_fraction=share)),
        )
        assert len(taken) == steps


@both
def test_its_directions_move_orthogonal_features(config):
    model = projected(trained(config), config)
    directions = projected_directions(model)
    torch.testing.assert_close(
        directions @ directions.mT,
        torch.eye(model.latent_dim, dtype=torch.float64),
        rtol=0,
        atol=1e-5,
    )
    begin = 0
    for layer, name in latent_layers(model):
        weight = getattr(layer, name).detach().double()
        rows = directions[begin : begin + len(weight), begin : begin + len(weight)]
        begin += len(weight)
        gram = (rows @ weight) @ (rows @ weight).mT
        torch.testing.assert_close(
            gram, torch.diag(gram.diagonal()), rtol=0, atol=1e-6 * float(gram.max())
        )
