"""Passes without gradients: products kept between calls, never of factors that have changed."""

from __future__ import annotations

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from orthotrain import to_dense
from orthotrain.errors import OrthotrainError, ShapeError
from orthotrain.layers import (
    LowRankConv2d,
    LowRankConv3d,
    LowRankLinear,
    LowRankMultiheadAttention,
    low_rank_attention,
)
from orthotrain.layers import _inference as inference
from orthotrain.layers._factors import factorize_, weight_parameter
from orthotrain.layers._parameters import MADE_OF

BASES = ("frozen", "trained")


def linear(bases, *, m=24, n=16, k=3, dtype=torch.float64):
    torch.manual_seed(0)
    return LowRankLinear.from_linear(nn.Linear(n, m, dtype=dtype), rank=k, bases=bases)


def conv(bases, **settings):
    torch.manual_seed(0)
    dense = nn.Conv2d(6, 8, 3, dtype=torch.float64, **settings)
    return LowRankConv2d.from_conv(dense, rank=2, bases=bases)


def held(layer):
    return layer.pair if hasattr(layer, "pair") else layer.core


def both(layer, x):
    """The pass without gradients and the one with them."""
    with torch.no_grad():
        quick = layer(x)
    return quick, layer(x).detach()


def assert_follows(layer, x):
    torch.testing.assert_close(*both(layer, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("call_cost", [0, 1 << 60], ids=["two products", "one product"])
@pytest.mark.parametrize("bases", BASES)
@pytest.mark.parametrize("shape", [(16,), (1, 16), (5, 16), (2, 3, 16), (0, 16)], ids=str)
def test_it_is_the_pass_with_gradients(shape, bases, call_cost, monkeypatch):
    monkeypatch.setattr(inference, "_CALL", call_cost)
    layer, x = linear(bases), torch.randn(shape, dtype=torch.float64)
    assert_follows(layer, x)
    assert id(held(layer)) in MADE_OF


@pytest.mark.parametrize("bases", BASES)
@pytest.mark.parametrize("call_cost", [0, 1 << 60], ids=["two products", "one product"])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"stride": 2, "padding": 1}, {"padding": "same"}, {"groups": 2},
        {"padding": 1, "padding_mode": "reflect"},
    ],
    ids=str,
)  # fmt: skip
def test_a_convolution_is_the_pass_with_gradients(settings, bases, call_cost, monkeypatch):
    monkeypatch.setattr(inference, "_CALL", call_cost)
    layer, x = conv(bases, **settings), torch.randn(2, 6, 7, 7, dtype=torch.float64)
    assert_follows(layer, x)
    assert_follows(layer, x[0])
    last = x.to(memory_format=torch.channels_last)
    assert_follows(layer, last)
    quick, slow = both(layer, last)
    assert quick.stride() == slow.stride()
    assert id(held(layer)) in MADE_OF


def test_the_memory_format_stays_in_three_dimensions():
    torch.manual_seed(0)
    dense = nn.Conv3d(6, 8, 3, dtype=torch.float64)
    layer = LowRankConv3d.from_conv(dense, rank=2, bases="trained")
    x = torch.randn(2, 6, 4, 4, 4, dtype=torch.float64)
    for given in (x, x.to(memory_format=torch.channels_last_3d)):
        quick, slow = both(layer, given)
        assert quick.stride() == slow.stride()


def step(layer):
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def fused_step(layer):
    for parameter in layer.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True).step()


def written_through_data(layer):
    held(layer).data.mul_(1.5)


def written_beside_the_diagonal(layer):
    with torch.no_grad():
        held(layer)[:, 1] += torch.arange(len(held(layer)), dtype=torch.float64) != 1


def copied_through_data(layer):
    held(layer).data.copy_(held(layer).data * 2)


def other_memory(layer):
    held(layer).data = held(layer).data * 2


def other_memory_twice(layer):
    """The second may lie where the first was."""
    held(layer).data = held(layer).data * 2
    held(layer).data = held(layer).data * 2


def loaded(layer):
    layer.load_state_dict({k: v * 2 for k, v in layer.state_dict().items()})


def loaded_at_another_rank(layer):
    bases = "trained" if hasattr(layer, "pair") else "frozen"
    other = linear(bases, k=5) if isinstance(layer, LowRankLinear) else None
    if other is None:
        dense = nn.Conv2d(6, 8, 3, dtype=torch.float64)
        other = LowRankConv2d.from_conv(dense, rank=3, bases=bases)
    layer.load_state_dict(other.state_dict())


def loaded_in_the_other_form(layer):
    bases = "frozen" if hasattr(layer, "pair") else "trained"
    other = linear(bases) if layer.weight.ndim == 2 else conv(bases)
    step(other)
    layer.load_state_dict(other.state_dict())


def in_inference_mode(layer):
    with torch.inference_mode():
        held(layer).mul_(2)


@pytest.mark.parametrize("bases", BASES)
@pytest.mark.parametrize("make", [linear, conv])
@pytest.mark.parametrize(
    "change",
    [
        step, fused_step, written_beside_the_diagonal, written_through_data,
        copied_through_data, other_memory, other_memory_twice, loaded, loaded_at_another_rank,
        loaded_in_the_other_form,
        in_inference_mode,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_it_follows_every_change_of_the_factors(make, bases, change, monkeypatch):
    shape = (2, 16) if make is linear else (2, 6, 5, 5)
    x = torch.randn(shape, dtype=torch.float64)
    for call_cost in (0, 1 << 60):
        monkeypatch.setattr(inference, "_CALL", call_cost)
        layer = make(bases)
        before, _ = both(layer, x)
        change(layer)
        assert not torch.allclose(before, both(layer, x)[1])  # else the check below means nothing
        assert_follows(layer, x)


@pytest.mark.parametrize("bases", BASES)
def test_writing_through_data_is_seen_at_any_rank(bases):
    layer, x = linear(bases, m=90, n=80, k=70), torch.randn(2, 80, dtype=torch.float64)
    for rows in (slice(None), slice(0, 3), slice(67, 70)):
        assert_follows(layer, x)
        held(layer).data[rows] *= 1.5
        assert_follows(layer, x)


def test_it_follows_another_basis():
    layer, x = linear("frozen"), torch.randn(2, 16, dtype=torch.float64)
    assert_follows(layer, x)
    layer.u = layer.u * 2
    assert_follows(layer, x)
    layer.vh.mul_(3)
    assert_follows(layer, x)


@pytest.mark.parametrize("bases", BASES)
def test_copies_conversions_and_dense_forms_have_their_own(bases):
    layer, x = linear(bases), torch.randn(2, 16, dtype=torch.float64)
    assert_follows(layer, x)
    other = copy.deepcopy(layer)
    step(other)
    assert_follows(other, x)
    assert_follows(layer, x)
    stored = io.BytesIO()
    torch.save(layer, stored)
    assert len(stored.getvalue()) < 8_000
    single = copy.deepcopy(layer).float()
    with torch.no_grad():
        assert single(x.float()).dtype == torch.float32
    whole = to_dense(nn.Sequential(copy.deepcopy(layer)))
    with torch.no_grad():
        torch.testing.assert_close(whole(x), layer(x))


@pytest.mark.parametrize("bases", BASES)
def test_transforms_and_stand_ins_are_never_kept(bases):
    layer, x = linear(bases), torch.randn(2, 16, dtype=torch.float64)
    name = "pair" if bases == "trained" else "core"
    stack = torch.stack([held(layer).detach() * i for i in (1, 2, 3)])

    def call(parameter):
        return functional_call(layer, {name: parameter}, (x,))

    with torch.no_grad():
        layer(x)
        each = torch.stack([call(parameter) for parameter in stack])
        torch.testing.assert_close(vmap(call)(stack), each)
        torch.testing.assert_close(vmap(layer)(x), layer(x))
    assert_follows(layer, x)


@pytest.mark.parametrize("bases", BASES)
def test_another_layer_with_the_same_parameter_is_not_taken_for_it(bases):
    layer, other = linear(bases, m=24, n=16), linear(bases, m=16, n=24)
    setattr(other, "pair" if bases == "trained" else "core", held(layer))
    for _ in range(2):
        assert_follows(layer, torch.randn(2, 16, dtype=torch.float64))
        assert_follows(other, torch.randn(2, 24, dtype=torch.float64))


@pytest.mark.parametrize("end", ["gone", "dense"])
@pytest.mark.parametrize("bases", BASES)
def test_what_is_kept_goes_with_the_layer_and_with_its_form(bases, end):
    layer, x = nn.Sequential(linear(bases)), torch.randn(2, 16, dtype=torch.float64)
    assert_follows(layer, x)
    key = id(held(layer[0]))
    kept = weakref.ref(MADE_OF[key].dense()[0])
    if end == "gone":
        del layer
    else:
        to_dense(layer)
    gc.collect()
    assert kept() is None
    assert key not in MADE_OF


def test_one_product_is_taken_where_rows_are_few_or_the_rank_saves_nothing():
    few, many = torch.randn(1, 16, dtype=torch.float64), torch.randn(9, 16, dtype=torch.float64)
    layer = linear("trained", k=3)
    kept = inference.Kept(layer, "weight", (layer.pair,))
    assert kept.few == inference._CALL * 16 / (16 * 24 - 3 * (16 + 24))
    assert inference.Kept(linear("trained", k=10), "weight", (layer.pair,)).few == float("inf")
    kept.few, MADE_OF[id(layer.pair)] = 100, kept
    with torch.no_grad():
        layer(many)
        assert kept._dense is None
        layer(few)
    assert kept._dense is not None


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("bases", BASES)
def test_a_traced_graph_has_the_parameters_and_nothing_kept(bases):
    layer, x = linear(bases), torch.randn(2, 16, dtype=torch.float64)
    with torch.no_grad():
        layer(x)
        traced = torch.jit.trace(layer, x)
        step(layer)
        torch.testing.assert_close(traced(x), layer(x))


@pytest.mark.parametrize("bases", BASES)
def test_autocast_decides_the_dtype(bases):
    layer, x = linear(bases, dtype=torch.float32), torch.randn(2, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    quick, slow = both(layer, x)
    torch.testing.assert_close(quick, slow)


@pytest.mark.parametrize("bases", BASES)
@pytest.mark.parametrize("x", [torch.zeros(2, 15), torch.tensor(1.0), [1.0]], ids=str)
def test_a_wrong_input_is_refused_as_in_training(bases, x):
    layer = linear(bases, dtype=torch.float32)
    errors = []
    for gradients in (False, True):
        with (
            torch.set_grad_enabled(gradients),
            pytest.raises((OrthotrainError, TypeError)) as caught,
        ):
            layer(x)
        errors.append((caught.type, str(caught.value)))
    assert errors[0] == errors[1]


def test_a_width_that_does_not_fit_is_a_shape_error():
    with torch.no_grad(), pytest.raises(ShapeError, match="16 inputs and 24 outputs"):
        linear("trained", dtype=torch.float32)(torch.zeros(2, 15))


@pytest.mark.parametrize("call_cost", [0, 1 << 60], ids=["two products", "one product"])
@pytest.mark.parametrize("bases", BASES)
@pytest.mark.parametrize(
    ("kdim", "blocks"), [(None, 1), (None, 3), (10, 1)], ids=["shared", "packed", "separate"]
)
def test_attention_keeps_its_projections_too(kdim, blocks, bases, call_cost, monkeypatch):
    monkeypatch.setattr(inference, "_CALL", call_cost)
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, kdim=kdim, vdim=kdim, dtype=torch.float64).eval()
    names = ["in_proj_weight"] if kdim is None else [f"{p}_proj_weight" for p in "qkv"]
    for name in names:
        layouts = LowRankMultiheadAttention.layouts(layer, name)
        layout = next(each for each in layouts if each.blocks == blocks)
        factorize_(layer, name, LowRankMultiheadAttention, rank=3, layout=layout, bases=bases)
    query = torch.randn(5, 2, 16, dtype=torch.float64)
    key = torch.randn(7, 2, kdim or 16, dtype=torch.float64)

    def attend(*inputs):
        return layer(*inputs)[0]

    for change in (lambda layer: None, step):
        change(layer)
        for inputs in [(query, key, key + 1)] + [(query, query, query)] * (kdim is None):
            with torch.no_grad():
                quick = attend(*inputs)
            torch.testing.assert_close(quick, attend(*inputs).detach(), rtol=0, atol=1e-12)
    assert all(id(weight_parameter(layer, name)) in MADE_OF for name in names)
    with torch.no_grad(), pytest.raises(ShapeError, match="inputs"):
        layer(query, key[..., :9], key)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("most", [0, 1 << 60], ids=["three products", "one product"])
def test_attention_of_a_sequence_to_itself_is_that_with_gradients(most, batch_first, monkeypatch):
    monkeypatch.setattr(low_rank_attention, "_ONE_PRODUCT", most)
    monkeypatch.setattr(inference, "_CALL", 1 << 60)
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, batch_first=batch_first, dtype=torch.float64).eval()
    factorize_(layer, "in_proj_weight", LowRankMultiheadAttention, rank=3)
    x = torch.randn(3, 5, 16, dtype=torch.float64)
    for given in (x, x[0]):
        expected, weights = layer(given, given, given)
        with torch.no_grad():
            y, seen = layer(given, given, given)
        torch.testing.assert_close(y, expected.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(seen, weights.detach(), rtol=0, atol=1e-12)
    # Torch's own layer in training draws the dropout after it in the order of memory.
    dense = nn.MultiheadAttention(16, 4, batch_first=batch_first, dtype=torch.float64)
    with torch.no_grad():
        assert layer.train()(x, x, x)[0].stride() == dense(x, x, x)[0].stride()


@pytest.mark.parametrize("bases", ["frozen", "trained"])
def test_fused_steps_in_half_precision_are_never_missed(bases):
    """They count no version, and the numbers that are looked at may all stay as they were."""
    generator = torch.Generator().manual_seed(0)
    dense = nn.Linear(64, 64)
    with torch.no_grad():
        dense.weight.copy_(5 * torch.randn(64, 64, generator=generator) / 8)
    layer = LowRankLinear.from_linear(dense, rank=16, bases=bases).bfloat16()
    x = torch.randn(32, 64, generator=generator).bfloat16()
    weights = [held(layer)]
    optimizer = torch.optim.AdamW(weights, lr=1e-2, weight_decay=0, fused=True)
    for _ in range(30):
        with torch.no_grad():
            layer(x)
        # Nothing moves where it is looked for.
        held(layer).grad = torch.randn(held(layer).shape, generator=generator).bfloat16()
        held(layer).grad.diagonal().zero_()
        optimizer.step()
    with torch.no_grad():
        expected = x @ layer.weight.T + layer.bias
        torch.testing.assert_close(layer(x), expected, rtol=0.05, atol=0.1)
