"""Every public layer is built without memory, takes values from a state dict, and draws its own."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from orthotrain import layers
from orthotrain.errors import RankError
from orthotrain.layers import (
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
    EigenSubspace,
    GlobalCovariancePool,
    LowRankConv1d,
    LowRankConv2d,
    LowRankConv3d,
    LowRankLinear,
    LowRankMultiheadAttention,
    LowRankTransposedLinear,
    OrthogonalConv2d,
    insert_whitening,
    orthogonal_weight,
)
from orthotrain.layers._factors import LowRankModule, is_factored
from orthotrain.layers.low_rank import TransposedLinear
from orthotrain.lowrank import to_dense, to_factored

LAYERS = {
    "linear": lambda: LowRankLinear(8, 6, rank=3),
    "linear as a pair": lambda: LowRankLinear.from_linear(nn.Linear(8, 6), rank=3, bases="trained"),
    "transposed linear": lambda: LowRankTransposedLinear(8, 6, rank=3),
    "transposed linear, full": lambda: LowRankTransposedLinear(8, 6),
    "conv 1d": lambda: LowRankConv1d(4, 6, 3, rank=3),
    "conv 2d": lambda: LowRankConv2d(4, 6, 3, groups=2, rank=3, bias=False),
    "conv 3d": lambda: LowRankConv3d(4, 6, 2, rank=3),
    "conv 1d, transposed": lambda: layers.LowRankConvTranspose1d(4, 6, 3, rank=3),
    "conv 2d, transposed": lambda: layers.LowRankConvTranspose2d(4, 6, 3, groups=2, rank=2),
    "conv 3d, transposed": lambda: layers.LowRankConvTranspose3d(4, 6, 2, rank=3),
    "embedding": lambda: layers.LowRankEmbedding(9, 6, rank=3),
    "lstm": lambda: layers.LowRankLSTM(5, 4, 2, rank=3, bidirectional=True),
    "gru": lambda: layers.LowRankGRU(5, 4, rank=3),
    "rnn": lambda: layers.LowRankRNN(5, 4),
    "lstm cell": lambda: layers.LowRankLSTMCell(5, 4, rank=3),
    "gru cell": lambda: layers.LowRankGRUCell(5, 4, rank=3),
    "rnn cell": lambda: layers.LowRankRNNCell(5, 4, rank=3),
    "attention": lambda: LowRankMultiheadAttention(8, 2),
    "attention, rank": lambda: LowRankMultiheadAttention(8, 2, batch_first=True, rank=3),
    "attention, separate": lambda: LowRankMultiheadAttention(
        8, 2, kdim=5, vdim=4, add_bias_kv=True, rank=3
    ),
    "whitening 1d": lambda: DecorrelatedBatchNorm1d(6, group_size=2),
    "whitening 2d": lambda: DecorrelatedBatchNorm2d(6, affine=False),
    "whitening 3d": lambda: DecorrelatedBatchNorm3d(6),
    "whitening inserted": lambda: insert_whitening(
        nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)), after="0"
    ),
    "covariance pool": lambda: GlobalCovariancePool(6, reduced_channels=3),
    "orthogonal conv": lambda: OrthogonalConv2d(4, 6, 3),
    "eigen subspace": lambda: EigenSubspace(3, out_shape=(2, 4)),
    "orthogonal linear": lambda: orthogonal_weight(nn.Linear(7, 4)),
    "orthogonal conv weight": lambda: orthogonal_weight(nn.Conv2d(4, 6, 3, groups=2)),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def tensors(layer):
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


def made_on_meta(make):
    with torch.device("meta"):
        layer = make()
    assert all(t.is_meta for t in tensors(layer).values())
    return layer


def test_every_public_layer_has_a_row():
    public = {name for name in layers.__all__ if inspect.isclass(getattr(layers, name))}
    public = {name for name in public if issubclass(getattr(layers, name), nn.Module)}
    rows = {type(module).__name__ for make in LAYERS.values() for module in make().modules()}
    assert public <= rows


@every_layer
def test_a_state_dict_is_assigned(make):
    layer, into = make(), made_on_meta(make)
    into.load_state_dict(layer.state_dict(), assign=True)
    assert not any(t.is_meta for t in tensors(into).values())
    assert all(torch.equal(tensors(into)[name], t) for name, t in tensors(layer).items())


@every_layer
def test_parameters_are_drawn_in_memory_that_holds_anything(make):
    layer = made_on_meta(make).to_empty(device="cpu")
    with torch.no_grad():
        for t in tensors(layer).values():
            t.fill_(torch.nan if t.is_floating_point() else 77)
    for module in layer.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(bool(t.isfinite().all()) and not (t == 77).any() for t in tensors(layer).values())
    for module in layer.modules():
        for u, vh in factors_of(module):
            orthonormal(u.mT)
            orthonormal(vh)
    if isinstance(layer, EigenSubspace):
        orthonormal(layer.u)
    if "orthogonal" in str(type(layer)).lower() or "Parametrized" in type(layer).__name__:
        weight = layer.weight.detach().flatten(1)
        if not isinstance(layer, OrthogonalConv2d):
            for block in weight.chunk(getattr(layer, "groups", 1)):
                orthonormal(block)


def factors_of(module):
    if isinstance(module, LowRankModule):
        for weight in module.weights_of(module):
            if is_factored(module, weight):
                u, _, vh = module.factors(weight)
                yield u.detach(), vh.detach()


def orthonormal(rows):
    unit = torch.eye(rows.shape[-2]).expand(*rows.shape[:-1], -1)
    torch.testing.assert_close(rows @ rows.mT, unit, rtol=0, atol=1e-5)


def test_an_orthogonal_weight_is_drawn_as_its_layer_draws():
    layer, plain = orthogonal_weight(nn.Linear(7, 4)), nn.Linear(7, 4)
    before = layer.weight.detach().clone()
    state = torch.get_rng_state()
    layer.reset_parameters()
    torch.set_rng_state(state)
    plain.reset_parameters()
    assert not torch.allclose(layer.weight, before)
    torch.testing.assert_close(layer.weight, orthogonal_weight(plain).weight)
    assert torch.equal(layer.bias, plain.bias)
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight")
    assert layer.reset_parameters.__func__ is nn.Linear.reset_parameters


# --- built directly -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"kdim": 5, "vdim": 4}, {"bias": False}], ids=str)
def test_attention_built_directly_is_torchs_at_full_rank(settings):
    g = torch.Generator().manual_seed(0)
    state = torch.get_rng_state()
    layer = LowRankMultiheadAttention(8, 2, batch_first=True, **settings)
    torch.set_rng_state(state)
    dense = nn.MultiheadAttention(8, 2, batch_first=True, **settings)
    q, k, v = (
        torch.randn(3, 4, settings.get(name, 8), generator=g) for name in ("", "kdim", "vdim")
    )
    torch.testing.assert_close(layer(q, k, v)[0], dense(q, k, v)[0])
    assert "rank=" in repr(layer)
    assert type(to_dense(nn.Sequential(layer))[0]) is nn.MultiheadAttention


def test_attention_built_directly_has_the_rank_it_is_given():
    layer = LowRankMultiheadAttention(8, 2, rank=3)
    assert layer.in_proj_core.shape == (3, 3, 3)
    with pytest.raises(RankError, match="from 1 to 8"):
        LowRankMultiheadAttention(8, 2, rank=9)


@pytest.mark.parametrize("rank", [None, 3])
def test_a_transposed_linear_layer_built_directly(rank):
    layer = LowRankTransposedLinear(6, 8, rank=rank, dtype=torch.float64)  # as nf, nx
    assert (layer.rank, layer.weight.shape) == (rank or 6, (8, 6))
    x = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(y, x @ layer.weight + layer.bias)
    assert "nf=6, nx=8" in repr(layer)
    two = to_factored(nn.Sequential(LowRankTransposedLinear(6, 8, rank=2)))
    assert [type(each) for each in two[0]] == [nn.Linear, nn.Linear]
    dense = to_dense(layer)
    assert type(dense) is TransposedLinear
    torch.testing.assert_close(dense(x), y)
