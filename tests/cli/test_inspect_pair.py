"""``orthotrain inspect`` of a weight whose two factors are both trained."""

from __future__ import annotations

import math

import torch
from torch import nn

from orthotrain.cli.inspect import layers_of
from orthotrain.layers import LowRankConv2d, LowRankLinear


def read(layer: nn.Module, *, model: bool):
    network = nn.Sequential(layer)
    (found,) = layers_of(network.state_dict(), network if model else None)
    return found


def condition(layer) -> float:
    s = torch.linalg.svdvals(layer.weight.detach().flatten(1))[: layer.rank]
    return float(s[0] / s[-1])


def test_where_the_factors_part_is_known_from_the_model_or_the_bias():
    linear = LowRankLinear.from_linear(nn.Linear(9, 5).double(), rank=3, bases="trained")
    for found in (read(linear, model=True), read(linear, model=False)):
        assert (found.name, found.rank, found.stored) == ("0", 3, 3 * 14)
        assert str(found.layout) == "5x9"
        assert math.isclose(found.condition, condition(linear), rel_tol=1e-9)
    conv = LowRankConv2d.from_conv(nn.Conv2d(4, 6, 3, groups=2), rank=2, bases="trained")
    assert [str(read(conv, model=model).layout) for model in (True, False)] == ["2 of 3x18"] * 2


def test_without_either_there_is_no_condition():
    bare = LowRankLinear.from_linear(nn.Linear(9, 5, bias=False), rank=3, bases="trained")
    assert read(bare, model=True).condition > 1
    found = read(bare, model=False)
    assert math.isnan(found.condition)
    assert found.stored == 3 * 14
