"""A state dict is told from that of another model, whatever form the weights have."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import orthotrain
from lowrank.nets import Attention, filled, mlp
from orthotrain.lowrank.misfit import is_renamed, misfit, shapes_of


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


class Queue(nn.Module):
    """A buffer that takes the shape of what is loaded, in a module around a layer."""

    def __init__(self, rows: int, *, own_way: bool = True) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(rows))
        self.scale = nn.Parameter(torch.ones(2, 3) if own_way else torch.ones(6))
        self.layer = nn.Linear(4, 4)

    def _load_from_state_dict(self, state_dict, prefix, *args):  # renames and reshapes
        state_dict[f"{prefix}layer.weight"] = state_dict.pop(f"{prefix}layer.old_weight")
        self.seen = state_dict[f"{prefix}seen"].clone()
        self.scale.data = state_dict[f"{prefix}scale"].clone()
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_a_module_that_loads_in_its_own_way_takes_other_names_and_shapes():
    saved = nn.Sequential(Queue(5), nn.Linear(4, 2)).state_dict()
    saved["0.layer.old_weight"] = saved.pop("0.layer.weight")
    model = nn.Sequential(Queue(1, own_way=False), nn.Linear(4, 2))
    given = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    assert not any(misfit(model, given))
    model.load_state_dict(saved)  # it is not another model
    found = misfit(model, given | {"1.weight": (2, 5), "1.more": (1,), "0.layer.bias": (5,)})
    assert found.unexpected == ("1.more",)
    assert [each.split()[0] for each in found.of_other_shape] == ["1.weight", "0.layer.bias"]


def test_buffers_may_change_their_shape_and_parameters_may_not():
    model = nn.Sequential(
        torch.ao.quantization.FakeQuantize(
            observer=torch.ao.quantization.MovingAveragePerChannelMinMaxObserver,
            qscheme=torch.per_channel_symmetric, ch_axis=1,
        ),
        nn.LayerNorm(4),
    )  # fmt: skip
    before = shapes(model)
    model(torch.ones(2, 4))
    assert shapes(model) != before
    assert not any(misfit(model, before))
    assert misfit(model, before | {"1.weight": (5,)}).of_other_shape
    model[1].register_buffer("seen", torch.zeros(3))
    assert not any(misfit(model, shapes(model) | {"1.seen": (7,)}))


def test_a_parameter_without_a_shape_takes_any():
    def lazy() -> nn.Module:
        return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))

    called = lazy()
    called(torch.ones(2, 3))
    assert not any(misfit(lazy(), shapes(called)))
    assert not any(misfit(lazy(), shapes_of(lazy().state_dict())))
    assert misfit(called, shapes_of(lazy().state_dict())).of_other_shape
    assert misfit(lazy(), shapes(called) | {"2.weight": (2, 5)}).of_other_shape
    assert is_renamed(lazy(), shapes_of(lazy().state_dict()))


def test_factors_of_other_sizes_fit_no_layer():
    model = nn.Sequential(nn.Linear(6, 5, bias=False))
    frozen = {"0.u": (5, 2), "0.core": (2, 2), "0.vh": (2, 6)}
    assert not any(misfit(model, frozen))
    for name, shape in (("0.u", (6, 2)), ("0.vh", (2, 5)), ("0.core", (3, 2))):
        assert misfit(model, frozen | {name: shape}).of_other_shape


def test_how_many_tensors_of_a_shape_there_are_tells_two_models_apart():
    given = {f"other{i}": shape for i, shape in enumerate(shapes(mlp(10)).values())}
    assert not is_renamed(mlp(10), given | {"more": given["other0"]})
