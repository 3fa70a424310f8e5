"""A state dict is told from that of another model, whatever form the weights have."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import orthotrain
from lowrank.nets import Attention, filled, mlp
from orthotrain.lowrank.misfit import is_renamed, misfit


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.LSTM(8, 8), nn.BatchNorm1d(8))
    model[1].weight = model[0].weight
    return filled(model)


MODELS = {
    "layers": lambda: mlp(10),
    "attention": lambda: filled(nn.Sequential(Attention(8), nn.Linear(8, 8))),
    "tied, recurrent": tied,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("bases", ["trained", "frozen"])
def test_every_form_fits_every_form_of_the_same_model(make, bases):
    dense = make()
    low = orthotrain.compress(make(), energy=0.5, also=["lstm"], only_if_cheaper=False, bases=bases)
    for model in (dense, low, torch.compile(copy.deepcopy(dense), backend="eager")):
        for state in (shapes(dense), shapes(low)):
            assert not any(misfit(model, state))
            assert not any(misfit(model, {f"module.{n}": shape for n, shape in state.items()}))


def test_tied_weights_are_there_once_or_twice():
    state = shapes(tied())
    del state["1.weight"]
    assert not any(misfit(tied(), state))
    del state["0.weight"]
    assert misfit(tied(), state).missing == ("0.weight", "1.weight")


@pytest.mark.parametrize("low_rank", [False, True])
def test_what_differs_is_named(low_rank):
    state = mlp(10)
    if low_rank:
        orthotrain.compress(state, energy=0.5, only_if_cheaper=False)
    given = shapes(state)
    first = next(iter(given))
    rows, *rest = given[first]
    found = misfit(mlp(10), given | {first: (rows, *rest[:-1], rest[-1] + 1), "9.bias": (3,)})
    assert found.unexpected == ("9.bias",)
    assert found.missing == ()
    assert found.of_other_shape[0].startswith("0.weight (")
    del given[first]
    assert str(misfit(mlp(10), given)) == "it lacks 0.weight"


def test_a_rank_beyond_the_full_one_and_two_forms_of_one_weight_fit_no_layer():
    model = nn.Sequential(nn.Linear(6, 5))
    for state in (
        {"0.pair": (6, 11), "0.bias": (5,)},
        {"0.pair": (2, 11), "0.weight": (5, 6), "0.bias": (5,)},
        {"0.core": (2, 2), "0.u": (5, 2), "0.bias": (5,)},
    ):
        assert misfit(model, state).of_other_shape
    assert not any(misfit(model, {"0.pair": (2, 11), "0.bias": (5,)}))


def test_other_names_for_the_same_tensors_are_known_by_their_shapes():
    given = {f"other{i}": shape for i, shape in enumerate(shapes(mlp(10)).values())}
    assert is_renamed(mlp(10), given)
    assert not is_renamed(mlp(10), given | {"more": (2,)})
