"""``orthotrain inspect`` of a weight whose two factors are both trained."""

from __future__ import annotations

import math

import torch
from torch import nn

from orthotrain.layers import LowRankConv2d, LowRankLinear
from orthotrain.lowrank.state_dicts import StoredModel
from orthotrain.lowrank.state_dicts.survey import surveyed


def read(layer: nn.Module, *, model: bool):
    network = nn.Sequential(layer)
    owners = dict(network.named_modules()) if model else None
    return surveyed(StoredModel(network.state_dict()), owners=owners)


def condition(layer) -> float:
    s = torch.linalg.svdvals(layer.weight.detach().flatten(1))[: layer.rank]
    return float(s[0] / s[-1])


def test_where_the_factors_part_is_known_from_the_model_or_the_bias():
    linear = LowRankLinear.from_linear(nn.Linear(9, 5).double(), rank=3, bases="trained")
    for found in (read(linear, model=True), read(linear, model=False)):
        (weight,) = found.weights
        assert (weight.name, weight.rank, weight.stored) == ("0", 3, 3 * 14)
        assert weight.shape == "5x9"
        assert math.isclose(weight.condition, condition(linear), rel_tol=1e-9)
    conv = LowRankConv2d.from_conv(nn.Conv2d(4, 6, 3, groups=2), rank=2, bases="trained")
    assert [read(conv, model=model).weights[0].shape for model in (True, False)] == [
        "2 of 3x18"
    ] * 2


def test_without_either_it_is_named_and_counted():
    bare = LowRankLinear.from_linear(nn.Linear(9, 5, bias=False), rank=3, bases="trained")
    assert read(bare, model=True).weights[0].condition > 1
    found = read(bare, model=False)
    assert not found.weights
    assert [(each.name, each.numbers) for each in found.left] == [("0.pair", 3 * 14)]
    assert "where its two factors part" in found.left[0].reason
