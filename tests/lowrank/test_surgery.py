"""Every way to hold a model's weights gives the same function."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from lowrank.nets import Attention, Everything, batch, filled, mlp, through_file
from orthotrain.errors import CheckpointError, ConfigError, NonFiniteError
from orthotrain.layers import (
    LowRankConv1d,
    LowRankConv2d,
    LowRankLinear,
    LowRankMultiheadAttention,
)
from orthotrain.layers._factors import LowRankModule
from orthotrain.linalg import numerical_rank
from orthotrain.lowrank import compress, load, restore_structure, save, to_dense, to_factored
from reference.matrices import from_spectrum


def low_rank_everything(*, rank_rtol: float = 0.4, dtype=torch.float64):
    model = compress(
        filled(Everything()), rank_rtol=rank_rtol, only_if_cheaper=False, bases="frozen"
    )
    return model.to(dtype)


def kinds(model):
    return {name: type(m) for name, m in model.named_modules() if list(m.parameters(recurse=False))}


def assert_same_outputs(model, expected, *, dtype=torch.float64):
    x = Everything.batch(0, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for mode in (True, False):  # in evaluation the transformer layer takes its fast path
        model.train(mode)
        torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)
    model.train()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_merged_factored_and_stored_models_give_the_same_outputs(dtype, tmp_path):
    model = low_rank_everything(dtype=dtype)
    expected = model(Everything.batch(0, dtype=dtype)).detach()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert_same_outputs(model, expected, dtype=dtype)
    assert_same_outputs(to_dense(copy.deepcopy(model)), expected, dtype=dtype)
    assert_same_outputs(to_factored(copy.deepcopy(model)), expected, dtype=dtype)
    assert_same_outputs(to_dense(to_factored(copy.deepcopy(model))), expected, dtype=dtype)

    fresh = filled(Everything(), seed=9, dtype=dtype)
    assert restore_structure(fresh, state) is fresh
    fresh.load_state_dict(state)
    assert_same_outputs(fresh, expected, dtype=dtype)

    save(model, tmp_path / "model.safetensors")
    loaded = load(filled(Everything(), seed=9, dtype=dtype), tmp_path / "model.safetensors")
    assert_same_outputs(loaded, expected, dtype=dtype)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_every_layer_of_the_network_takes_part():
    model = low_rank_everything()
    types = kinds(model)
    assert types["stem"] is types["grouped"] is LowRankConv2d
    assert types["line"] is LowRankConv1d
    assert types["depthwise"] is nn.Conv2d
    assert types["encoder.self_attn"] is LowRankMultiheadAttention
    assert types["encoder.linear1"] is types["shared"] is types["tied.1"] is LowRankLinear
    assert model.tied[0].core is model.tied[1].core
    assert model.grouped.core.ndim == 3


def test_dense_again_means_torchs_own_classes_and_the_same_objects():
    model = filled(Everything())
    classes = kinds(model)
    names = [name for name, _ in model.named_parameters()]
    modules, parameters = list(model.modules()), list(model.parameters())
    compress(model, rank_rtol=0.4, only_if_cheaper=False, bases="frozen")
    assert list(model.modules()) == modules
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert to_dense(model) is model
    assert kinds(model) == classes
    assert [name for name, _ in model.named_parameters()] == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert model.tied[0].weight is model.tied[1].weight
    assert not [m for m in model.modules() if isinstance(m, LowRankModule)]


def test_factored_for_deployment_is_two_plain_layers_where_that_is_smaller():
    model = low_rank_everything(rank_rtol=0.6)
    model.again = model.shared  # the same module under a second name of one parent
    ranks = {name: m.rank for name, m in model.named_modules() if isinstance(m, LowRankModule)}
    layouts = {"stem": (16, 36), "line": (16, 48), "shared": (16, 16), "head": (5, 16)}
    smaller = {name: ranks[name] * (m + n) < m * n for name, (m, n) in layouts.items()}
    assert set(smaller.values()) == {True, False}
    to_factored(model)
    for name, pays in smaller.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Sequential) == pays, name
        if pays:
            first, second = layer
            m, n = layouts[name]
            assert first.bias is None
            assert second.bias is not None
            assert first.weight.numel() + second.weight.numel() == ranks[name] * (m + n)
            assert type(first) in (nn.Linear, nn.Conv1d, nn.Conv2d)
    assert model.again is model.shared
    assert type(model.encoder.linear1) is nn.Linear  # read by name in the layer's fast path
    assert type(model.encoder.self_attn) is nn.MultiheadAttention


def test_tied_layers_stay_tied_when_factored():
    model = mlp(12)
    model[4].weight = model[0].weight
    compress(model, rank_rtol=0.6, only_if_cheaper=False, bases="frozen")
    x = batch(0, 3, 12)
    expected = model(x).detach()
    to_factored(model)
    assert isinstance(model[0], nn.Sequential)
    assert model[0][0].weight is model[4][0].weight
    assert model[0][1].weight is model[4][1].weight
    assert model[0][1].bias is not model[4][1].bias
    torch.testing.assert_close(model(x), expected)


def test_attention_inside_a_plain_module_becomes_dense_for_deployment():
    model = filled(nn.Sequential(Attention(16), nn.Linear(16, 16)))
    compress(model, rank_rtol=0.7, only_if_cheaper=False)
    x = batch(0, 3, 5, 16)
    expected = model(x).detach()
    assert isinstance(model[0].attention, LowRankMultiheadAttention)
    to_factored(model)
    assert type(model[0].attention) is nn.MultiheadAttention
    torch.testing.assert_close(model(x), expected)


def test_a_low_rank_layer_that_is_the_whole_model():
    layer = filled(nn.Linear(12, 12))
    x = batch(0, 3, 12)
    compress(layer, rank_rtol=0.5, only_if_cheaper=False, bases="frozen")
    expected = layer(x).detach()
    assert type(layer) is LowRankLinear
    to_factored(layer)
    assert type(layer) is nn.Linear
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bases", ["frozen", "trained"])
def test_half_precision_weights_are_rounded_once(dtype, bases):
    model = filled(nn.Sequential(nn.Linear(32, 32)), dtype=dtype)
    dense = model[0].weight.detach().clone()
    compress(model, rank_rtol=0.0, only_if_cheaper=False, bases=bases)
    held = model[0].pair_of() if bases == "trained" else model[0].factors()
    assert {t.dtype for t in held} == {dtype}
    product = torch.linalg.multi_dot([t.double() for t in held])
    to_dense(model)
    assert model[0].weight.dtype == dtype
    assert torch.equal(model[0].weight, product.to(dtype))  # multiplied, then rounded once
    error = (model[0].weight - dense).double().norm() / dense.double().norm()
    # Roundings of u, core, vh and the product, each of eps / 2 relative to its entries.
    assert error < 2 * torch.finfo(dtype).eps


# --- compress -------------------------------------------------------------------------------------


def two_layers():
    model = filled(nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10)))
    with torch.no_grad():
        model[0].weight.copy_(from_spectrum([4, 3, 0.1, 0.1] + [0.01] * 6, 10, 10))
        model[1].weight.copy_(from_spectrum([4] * 10, 10, 10, seed=3))
    return model


def test_compress_truncates_by_each_rule():
    assert compress(two_layers(), rank_rtol=0.5)[0].rank == 2
    assert compress(two_layers(), rank_rtol=0.02)[0].rank == 4
    assert compress(two_layers(), energy=0.9)[0].rank == 2
    by_budget = compress(two_layers(), stored_budget=0.75)
    assert by_budget[0].rank == 2
    assert type(by_budget[1]) is nn.Linear
    stored = sum(t.numel() for t in by_budget.state_dict().values())
    assert stored <= 0.75 * 220


def test_compress_rounds_convolution_ranks_up():
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(40, 40, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
    needed = int(numerical_rank(torch.linalg.svdvals(conv.weight.detach().flatten(1)), energy=0.6))
    compress(conv, energy=0.6)
    assert needed % 16 != 0
    assert conv.rank == math.ceil(needed / 16) * 16


def test_compress_leaves_a_layer_that_would_not_shrink():
    model = compress(two_layers(), rank_rtol=0.1)
    assert type(model[1]) is nn.Linear
    model = compress(two_layers(), rank_rtol=0.1, only_if_cheaper=False)
    assert model[1].rank == 10
    before = model[1].core.clone()
    compress(model, rank_rtol=0.1)  # a low-rank layer whose rank stays is left as it is
    assert torch.equal(model[1].core, before)


def test_compress_error_is_the_tail_and_it_can_be_repeated():
    model = two_layers()
    dense = model[0].weight.detach().clone()
    compress(model, rank_rtol=0.02, only_if_cheaper=False)
    torch.testing.assert_close((model[0].weight - dense).norm().item(), (6 * 0.01**2) ** 0.5)
    compress(model, rank_rtol=0.5, only_if_cheaper=False)
    tail = (6 * 0.01**2 + 2 * 0.1**2) ** 0.5
    torch.testing.assert_close((model[0].weight - dense).norm().item(), tail)


def test_compress_skips_by_pattern():
    model = compress(two_layers(), rank_rtol=0.5, skip=["0"], only_if_cheaper=False)
    assert type(model[0]) is nn.Linear
    assert type(model[1]) is LowRankLinear


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "one rank rule, got"),
        ({"rank_rtol": 0.1, "energy": 0.9}, "one rank rule, got"),
        ({"rank_rtol": 1.0}, "rank_rtol"),
        ({"energy": 0.0}, "energy"),
        ({"stored_budget": 0.01}, "stored_budget=0.01"),
        ({"rank_rtol": 0.1, "skip": "head"}, "skip to be a collection"),
        ({"rank_rtol": 0.1, "skip": ["hed"]}, "'hed'"),
        ({"rank_rtol": 0.1, "skip": ["*"]}, "eligible layer"),
    ],
)
def test_compress_refuses_settings_that_cannot_work(settings, message):
    with pytest.raises(ConfigError, match=message):
        compress(two_layers(), **settings)


@pytest.mark.bad_input
def test_compress_names_the_layer_that_is_not_finite_and_changes_nothing():
    model = two_layers()
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in 1, shape \(10, 10\)"):
        compress(model, rank_rtol=0.5)
    assert type(model[0]) is nn.Linear


# --- restore_structure ----------------------------------------------------------------------------


def test_structure_follows_a_checkpoint_both_ways_and_through_wrapper_names():
    model = low_rank_everything()
    state = through_file(model.state_dict())
    wrapped = {f"module._orig_mod.{key}": value for key, value in state.items()}
    fresh = restore_structure(filled(Everything(), seed=1), wrapped)
    assert kinds(fresh) == kinds(model)
    assert fresh.tied[0].core is fresh.tied[1].core
    assert fresh.tied[0].u is fresh.tied[1].u
    fresh.load_state_dict(state)
    x = Everything.batch(3)
    assert torch.equal(fresh(x), model(x))
    dense = filled(Everything())
    restore_structure(fresh, dense.state_dict())
    assert kinds(fresh) == kinds(dense)
    assert fresh.tied[0].weight is fresh.tied[1].weight
    fresh.load_state_dict(dense.state_dict())
    assert torch.equal(fresh(x), dense(x))


def test_a_low_rank_model_takes_over_another_rank_when_loaded():
    model = low_rank_everything(rank_rtol=0.3)
    other = low_rank_everything(rank_rtol=0.6)
    assert model.shared.rank != other.shared.rank
    model.load_state_dict(other.state_dict())
    x = Everything.batch(1)
    assert torch.equal(model(x), other(x))


@pytest.mark.bad_input
def test_factors_without_a_layer_or_of_another_size_are_refused():
    state = compress(mlp(12), rank_rtol=0.6, only_if_cheaper=False, bases="frozen").state_dict()
    with pytest.raises(CheckpointError, match=r"4\.core has no layer"):
        restore_structure(mlp(12, depth=2), state)
    with pytest.raises(CheckpointError, match=r"0\.weight"):
        restore_structure(mlp(10), state)
    cut = {key: value for key, value in state.items() if key != "0.vh"}
    with pytest.raises(CheckpointError, match="None"):
        restore_structure(mlp(12), cut)
