"""Low-rank linear and convolution layers: how they are made, and what bad input gets."""

import inspect

import pytest
import torch
from torch import nn

from orthotrain import layers
from orthotrain.errors import ConfigError, RankError, ShapeError
from orthotrain.layers import (
    LowRankConv1d,
    LowRankConv2d,
    LowRankConv3d,
    LowRankLinear,
    LowRankMultiheadAttention,
)
from orthotrain.layers._factors import factorize_, low_rank_class_of
from reference.matrices import generator


def test_a_layer_of_its_own_starts_as_a_dense_one_cut():
    state = torch.get_rng_state()
    dense = nn.Linear(12, 8)
    torch.set_rng_state(state)
    layer = LowRankLinear(12, 8, rank=8)
    torch.testing.assert_close(layer.weight, dense.weight)
    torch.testing.assert_close(layer.bias, dense.bias, rtol=0, atol=0)
    assert LowRankLinear(12, 8, rank=3, bias=False).bias is None
    assert LowRankLinear(12, 8, rank=3).rank == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtype_is_that_of_every_tensor(dtype):
    for layer in (
        LowRankLinear(8, 6, rank=2, dtype=dtype),
        LowRankConv1d(4, 6, 3, rank=2, dtype=dtype),
    ):
        assert {t.dtype for t in layer.state_dict().values()} == {dtype}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_device_is_that_of_every_tensor(device):
    for layer in (
        LowRankLinear(8, 6, rank=2, device=device),
        LowRankConv2d(4, 6, 3, rank=2, device=device),
    ):
        assert {t.device.type for t in layer.state_dict().values()} == {device}


def test_from_linear_and_from_conv_leave_the_dense_layer_alone():
    linear, conv = nn.Linear(8, 6), nn.Conv2d(4, 6, 3, padding=1)
    before = [t.clone() for t in (*linear.parameters(), *conv.parameters())]
    state = torch.get_rng_state()
    pairs = (LowRankLinear.from_linear(linear), linear, torch.ones(2, 8)), (
        LowRankConv2d.from_conv(conv), conv, torch.ones(2, 4, 5, 5),
    )  # fmt: skip
    for layer, dense, x in pairs:
        torch.testing.assert_close(layer(x), dense(x))
        assert type(dense) in (nn.Linear, nn.Conv2d)
        layer(x).sum().backward()
        assert all(p.grad is None for p in dense.parameters())
    after = (*linear.parameters(), *conv.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert LowRankLinear.from_linear(linear, rank=2).rank == 2


@pytest.mark.parametrize(
    "layer",
    [
        LowRankLinear(8, 6, rank=6),
        LowRankConv1d(4, 6, 3, rank=5),
        LowRankConv2d(4, 6, 3, groups=2, rank=3, bias=False),
        LowRankConv3d(2, 4, 2, rank=4),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_resetting_draws_what_torch_draws_and_keeps_the_part_in_the_basis(layer):
    state = torch.get_rng_state()
    layer.reset_parameters()
    torch.set_rng_state(state)
    fresh = layer._fresh()
    u, _, vh = layer.factors()
    drawn = layer.layout(layer, "weight").matrix(fresh.weight.detach())
    inside = (u @ u.mT @ drawn @ vh.mT @ vh).reshape(fresh.weight.shape)
    torch.testing.assert_close(layer.weight.detach(), inside)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias, fresh.bias, rtol=0, atol=0)


def test_hooks_and_references_survive():
    model = nn.Sequential(nn.Linear(8, 6))
    layer, seen = model[0], []
    layer.register_forward_hook(lambda *_: seen.append("forward"))
    layer.weight.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.shape)))
    factorize_(layer, "weight", LowRankLinear, rank=2)
    model(torch.ones(3, 8)).sum().backward()
    assert model[0] is layer
    assert seen == ["forward", (2, 2)]


def test_a_living_loss_from_before_does_not_disturb_the_next():
    layer = nn.Linear(8, 6)
    x = torch.ones(3, 8, requires_grad=True)
    alive = layer(x).sum()
    factorize_(layer, "weight", LowRankLinear, rank=2)
    layer(x).sum().backward()
    assert layer.core.grad.shape == (2, 2)
    assert alive.isfinite()


def test_the_low_rank_form_goes_by_exact_type():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    assert low_rank_class_of(Own(3, 3)) is None
    assert low_rank_class_of(nn.Bilinear(3, 3, 1)) is None
    assert low_rank_class_of(nn.Linear(3, 3)) is LowRankLinear
    assert low_rank_class_of(nn.MultiheadAttention(4, 2)) is LowRankMultiheadAttention


def test_the_weight_cannot_be_assigned():
    layer = LowRankLinear(8, 6, rank=2)
    with pytest.raises(KeyError, match="already exists"):
        layer.weight = nn.Parameter(torch.zeros(6, 8))
    with pytest.raises(AttributeError, match="weight"):
        layer.weight = torch.zeros(6, 8)


def test_public_names():
    assert all(hasattr(layers, name) for name in layers.__all__)


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize("rank", [-1, 0, 7, 100])
def test_a_rank_outside_its_range(rank):
    advice = rf"rank from 1 to 6 for a weight of shape .*, got {rank}; choose a rank in that range"
    with pytest.raises(RankError, match=advice):
        LowRankLinear(8, 6, rank=rank)
    linear = nn.Linear(8, 6)
    with pytest.raises(RankError, match=advice):
        LowRankLinear.from_linear(linear, rank=rank)
    with pytest.raises(RankError, match=advice):
        LowRankConv2d(4, 12, 3, groups=2, rank=rank)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: LowRankMultiheadAttention(8, 3), "multiple of num_heads, got 8 and 3"),
        (lambda: LowRankMultiheadAttention(8.0, 2), "needs embed_dim to be a whole number"),
        (lambda: LowRankMultiheadAttention(8, 0), "needs num_heads to be a whole number, 1 or"),
        (lambda: LowRankMultiheadAttention(8, 2, kdim=-3), "needs kdim to be a whole number, 1"),
        (lambda: LowRankMultiheadAttention(8, 2, 1.5), "needs dropout to be a share"),
        (lambda: LowRankMultiheadAttention(8, 2, bias="yes"), "needs bias to be True or False"),
        (lambda: LowRankMultiheadAttention(8, 2, rank=1.5), "needs rank to be a whole number"),
        (lambda: LowRankMultiheadAttention(8, 2, dtype=torch.int64), "that one says: Only Tens"),
        (lambda: LowRankLinear(8, 6, rank=2, dtype=torch.int64), "LowRankLinear needs the argum"),
        (lambda: LowRankConv2d("4", 6, 3, rank=2), "LowRankConv2d needs the arguments of the lay"),
        (lambda: LowRankConv2d(4, 6, 3, groups=3, rank=2), "must be divisible by groups"),
        (lambda: LowRankConv3d(4, 6, rank=2), "missing 1 required positional argument: 'kernel"),
    ],
)
def test_arguments_that_torch_cannot_take(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


def test_attention_takes_the_arguments_of_torch_in_its_order():
    taken = list(inspect.signature(nn.MultiheadAttention).parameters)
    assert list(inspect.signature(LowRankMultiheadAttention).parameters) == [*taken, "rank"]
    settings = {"dropout": 0.5, "bias": False, "add_bias_kv": True, "add_zero_attn": True,
                "kdim": 6, "vdim": 4, "batch_first": True, "device": "cpu",
                "dtype": torch.float64}  # fmt: skip
    dense, layer = (
        nn.MultiheadAttention(8, 2, **settings),
        LowRankMultiheadAttention(8, 2, **settings),
    )
    assert layer.v_proj_weight.shape == dense.v_proj_weight.shape
    for name in ("dropout", "add_zero_attn", "kdim", "vdim", "batch_first", "num_heads"):
        assert getattr(layer, name) == getattr(dense, name)
    assert (layer.in_proj_bias is None, layer.bias_k is None) == (True, False)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}


@pytest.mark.bad_input
def test_a_layer_that_is_not_the_plain_one():
    advice = "needs the plain torch layer that it replaces.*orthotrain.to_dense"
    with pytest.raises(ConfigError, match=advice):
        LowRankLinear.from_linear(LowRankLinear(8, 6, rank=2))
    for wrong in (nn.Bilinear(2, 2, 2), nn.Conv2d(4, 6, 3)):
        with pytest.raises(ConfigError, match="needs linear to be a Linear"):
            LowRankLinear.from_linear(wrong)
    with pytest.raises(ConfigError, match=advice):
        LowRankConv2d.from_conv(nn.Conv1d(4, 6, 3))
    with pytest.raises(ConfigError, match=advice):
        LowRankConv2d.from_conv(LowRankConv2d(4, 6, 3, rank=2))


@pytest.mark.bad_input
@pytest.mark.parametrize("rank", [1, 6], ids=["factored", "materialized"])
@pytest.mark.parametrize("shape", [(4, 6), (6,), (8, 5), (3, 4, 4), ()], ids=str)
def test_a_linear_input_of_another_width(shape, rank):
    x = torch.zeros(shape)
    with pytest.raises(RuntimeError):
        nn.Linear(8, 6)(x)
    with pytest.raises(
        ShapeError, match=r"8 inputs and 6 outputs needs x of shape \(..., 8\), got"
    ):
        LowRankLinear(8, 6, rank=rank)(x)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("layer", "dense", "shape", "needed"),
    [
        (LowRankConv1d, nn.Conv1d, (2, 3, 9), r"\(batch, 4, w\) or \(4, w\)"),
        (LowRankConv2d, nn.Conv2d, (2, 3, 9, 9), r"\(batch, 4, h, w\) or \(4, h, w\)"),
        (LowRankConv2d, nn.Conv2d, (4, 9), r"got \(4, 9\); check the layer before it"),
        (LowRankConv2d, nn.Conv2d, (2, 4, 9, 9, 9), r"\(batch, 4, h, w\)"),
        (LowRankConv3d, nn.Conv3d, (3, 9, 9, 9), r"\(batch, 4, d, h, w\)"),
        (LowRankConv1d, nn.Conv1d, (), r"got \(\)"),
    ],
)
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_convolution_input_of_another_shape(layer, dense, shape, needed, padding_mode):
    settings = {"padding": 1, "padding_mode": padding_mode}
    x = torch.zeros(shape)
    with pytest.raises((RuntimeError, ValueError, AssertionError, IndexError)):
        dense(4, 6, 3, **settings)(x)
    with pytest.raises(ShapeError, match=needed):
        layer(4, 6, 3, rank=2, **settings)(x)


@pytest.mark.bad_input
def test_a_convolution_input_smaller_than_the_kernel_is_refused_by_torch():
    for conv in (
        nn.Conv2d(4, 6, 3),
        LowRankConv2d(4, 6, 3, rank=2),
        LowRankConv2d(4, 6, 3, rank=6),
    ):
        with pytest.raises(
            RuntimeError, match="Kernel size can't be greater than actual input size"
        ):
            conv(torch.zeros(2, 4, 2, 2))


@pytest.mark.bad_input
def test_mixed_dtypes_are_refused_as_torch_refuses_them():
    x = torch.randn(3, 8, generator=generator(0), dtype=torch.float64)
    for layer in (nn.Linear(8, 6), LowRankLinear(8, 6, rank=2), LowRankLinear(8, 6, rank=6)):
        with pytest.raises(RuntimeError, match="dtype"):
            layer(x)
