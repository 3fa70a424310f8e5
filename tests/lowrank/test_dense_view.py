"""``dense_parameters``: a penalty by name sees low-rank weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import orthotrain
from lowrank.nets import Everything, filled, mlp
from orthotrain import compress, dense_parameters, to_dense


@pytest.mark.parametrize("bases", [None, "frozen", "trained"])
def test_names_and_values_are_those_of_the_dense_model(bases):
    model = filled(Everything())
    names = [name for name, _ in model.named_parameters()]
    if bases is not None:
        compress(model, rank_rtol=0.4, only_if_cheaper=False, bases=bases)
    seen = {name: value.detach().clone() for name, value in dense_parameters(model)}
    assert list(seen) == names
    wrapped = torch.compile(nn.DataParallel(model), backend="eager")
    assert [name for name, _ in dense_parameters(wrapped)] == names
    for name, value in to_dense(model).named_parameters():
        torch.testing.assert_close(seen[name], value.detach())


@pytest.mark.parametrize("bases", ["frozen", "trained"])
def test_a_penalty_by_name_reaches_what_is_trained(bases):
    model = compress(mlp(8), rank_rtol=0.4, only_if_cheaper=False, bases=bases)
    assert not [name for name, _ in model.named_parameters() if "weight" in name]
    penalty = sum(v.square().sum() for name, v in dense_parameters(model) if "weight" in name)
    penalty.backward()
    expected = sum(m.weight.detach().square().sum() for m in model if hasattr(m, "weight"))
    torch.testing.assert_close(penalty.detach(), expected)
    trained = [p for name, p in model.named_parameters() if "bias" not in name]
    assert all(bool(p.grad.any()) for p in trained)


def test_a_parameter_that_is_dense_is_given_itself():
    model = mlp(8)
    assert all(
        a is b for (_, a), b in zip(dense_parameters(model), model.parameters(), strict=True)
    )
    assert orthotrain.dense_parameters is dense_parameters
