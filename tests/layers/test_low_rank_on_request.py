"""Recurrent layers, embeddings and transposed convolutions in factors, beside the dense layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from orthotrain import follow, load, save, to_dense, to_factored
from orthotrain.errors import RankError
from orthotrain.layers import LowRankEmbedding, LowRankGRUCell, LowRankLSTM
from orthotrain.layers._factors import factorize_, low_rank_class_of, weight_parameter
from reference.matrices import generator

RECURRENT = {
    "lstm": (lambda: nn.LSTM(5, 4, 2, bidirectional=True, batch_first=True), (2, 3, 5)),
    "lstm-narrowed": (lambda: nn.LSTM(5, 4, 11, proj_size=3), (3, 2, 5)),
    "gru": (lambda: nn.GRU(5, 4, bias=False), (3, 2, 5)),
    "rnn": (lambda: nn.RNN(5, 4, nonlinearity="relu"), (3, 5)),
    "lstm-cell": (lambda: nn.LSTMCell(5, 4), (2, 5)),
    "gru-cell": (lambda: nn.GRUCell(5, 4), (2, 5)),
    "rnn-cell": (lambda: nn.RNNCell(5, 4, bias=False), (2, 5)),
}
every_recurrent = pytest.mark.parametrize("name", RECURRENT)
both_bases = pytest.mark.parametrize("bases", ["frozen", "trained"])


def filled(module, dtype=torch.float64):
    module, random = module.to(dtype), generator(3)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=dtype) / 2)
    return module


def drawn(shape, seed=1):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def in_factors(dense, rank=None, bases="trained"):
    layer = copy.deepcopy(dense)
    low_rank_class = low_rank_class_of(layer)
    for weight in low_rank_class.weights_of(layer):
        factorize_(layer, weight, low_rank_class, rank=rank, bases=bases)
    return layer


def tensors(output):
    return (
        [output]
        if isinstance(output, torch.Tensor)
        else [t for each in output for t in tensors(each)]
    )


def same(first, second, budget=1e-12):
    for a, b in zip(tensors(first), tensors(second), strict=True):
        torch.testing.assert_close(
            a, b, rtol=0, atol=budget * max(1.0, float(b.detach().abs().max()))
        )


@every_recurrent
@both_bases
def test_a_recurrent_layer_keeps_its_values_and_gradients(name, bases):
    make, shape = RECURRENT[name]
    dense = filled(make())
    layer = in_factors(dense, 2, bases)
    with torch.no_grad():
        for weight in layer.weights_of(layer):
            getattr(dense, weight).copy_(getattr(layer, weight))
    x, x_dense = drawn(shape).requires_grad_(), drawn(shape).requires_grad_()
    y, y_dense = layer(x), dense(x_dense)
    same(y, y_dense)
    tensors(y)[0].square().sum().backward()
    tensors(y_dense)[0].square().sum().backward()
    same(x.grad, x_dense.grad)
    for weight in layer.weights_of(layer):
        gradient = getattr(dense, weight).grad
        if bases == "frozen":
            u, _, vh = layer.factors(weight)
            wanted = u.mT @ gradient @ vh.mT
        else:
            left, right = layer.pair_of(weight)
            wanted = torch.cat((right @ gradient.mT, left.mT @ gradient), -1)
        same(weight_parameter(layer, weight).grad, wanted)
    assert "rank=(" in repr(layer)


@every_recurrent
@both_bases
def test_a_recurrent_layer_returns_to_its_own_class(name, bases):
    make, shape = RECURRENT[name]
    dense = filled(make())
    layer = in_factors(dense, None, bases)
    for moved in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), layer.float().double()):
        same(moved(drawn(shape)), dense(drawn(shape)), 1e-6)
    back = to_dense(layer)
    assert type(back) is type(dense)
    assert [*back.state_dict()] == [*dense.state_dict()]
    same(back(drawn(shape)), dense(drawn(shape)), 1e-6)
    with torch.no_grad():  # torch keeps a list of the weights, which must be these
        for p in back.parameters():
            p.zero_()
    assert all(not t.any() for t in tensors(back(drawn(shape))))


def test_weights_are_multiplied_out_for_all_steps_at_once(monkeypatch):
    layer, made = in_factors(filled(nn.LSTM(5, 4)), 2), []
    multiplied = LowRankLSTM.materialized
    monkeypatch.setattr(LowRankLSTM, "materialized", lambda *a: made.append(a[1]) or multiplied(*a))
    layer(drawn((30, 2, 5)))
    assert made.count("weight_ih_l0") <= 2  # torch looks at the dtype of its list, too


def test_a_layer_that_got_memory_late_returns_to_its_own_class():
    dense = filled(nn.LSTM(5, 4))
    with torch.device("meta"):
        late = LowRankLSTM(5, 4, dtype=torch.float64)
    late = late.to_empty(device="cpu")
    late.load_state_dict(in_factors(dense, bases="frozen").state_dict())
    same(to_dense(late)(drawn((3, 2, 5))), dense(drawn((3, 2, 5))))


def test_names_of_factors_are_stable():
    layer = in_factors(nn.LSTM(5, 4, bias=False, bidirectional=True))
    assert {*layer.state_dict()} == {
        "ih_l0_pair", "hh_l0_pair", "ih_l0_reverse_pair", "hh_l0_reverse_pair",
    }  # fmt: skip
    frozen = in_factors(nn.GRUCell(5, 4, bias=False), bases="frozen")
    assert {*frozen.state_dict()} == {
        "ih_u", "ih_core", "ih_vh", "hh_u", "hh_core", "hh_vh",
    }  # fmt: skip
    assert {*in_factors(nn.Embedding(9, 4)).state_dict()} == {"pair"}


def test_packed_sequences_enter_a_low_rank_layer():
    dense = filled(nn.LSTM(5, 4, bidirectional=True))
    layer = in_factors(dense)
    x = pack_padded_sequence(drawn((6, 3, 5)), torch.tensor([2, 6, 4]), enforce_sorted=False)
    same(layer(x)[0].data, dense(x)[0].data)


def network():
    return nn.ModuleDict(
        {
            "table": nn.Embedding(20, 8, padding_idx=0),
            "lstm": nn.LSTM(8, 6, 2),
            "cell": nn.GRUCell(6, 8),
            "up": nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2),
        }
    )


@both_bases
def test_saved_loaded_and_followed(tmp_path, bases):
    model = filled(network(), torch.float32)
    for module in model.values():
        low_rank_class = low_rank_class_of(module)
        for weight in low_rank_class.weights_of(module):
            factorize_(module, weight, low_rank_class, rank=2, bases=bases)
    save(model, tmp_path / "model.safetensors")
    loaded = load(network(), tmp_path / "model.safetensors")
    followed = follow(network())
    followed.load_state_dict(model.state_dict())
    for other in (loaded, followed):
        assert type(other["lstm"]) is LowRankLSTM
        assert type(other["cell"]) is LowRankGRUCell
        assert type(other["table"]) is LowRankEmbedding
        for key, value in model.state_dict().items():
            assert torch.equal(other.state_dict()[key], value)


@both_bases
def test_an_embedding_in_factors(bases):
    dense = filled(nn.Embedding(9, 6, padding_idx=2))
    layer = in_factors(dense, bases=bases)
    ids = torch.tensor([[1, 2, 8], [2, 2, 0]])
    same(layer(ids), dense(ids))
    layer(ids).square().sum().backward()
    dense(ids).square().sum().backward()
    rows = [0, 1, 8]
    if bases == "trained":
        left, _ = layer.pair_of()
        gradient = layer.pair.grad[:, 6:]
        same(gradient[:, rows], (dense.weight.grad @ left).mT.detach()[:, rows])
        assert not gradient[:, 2].any()  # the padding row gets none
    pair = to_factored(nn.Sequential(in_factors(dense, 2, bases)))[0]
    assert [type(each) for each in pair] == [nn.Embedding, nn.Linear]
    assert pair[0].padding_idx == 2
    same(pair(ids), in_factors(dense, 2, bases)(ids))


@both_bases
@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_as_two_layers(groups, bases):
    dense = filled(
        nn.ConvTranspose2d(4, 6, (3, 2), stride=2, output_padding=1, groups=groups, dilation=(1, 2))
    )
    layer = in_factors(dense, 1, bases)
    x = drawn((2, 4, 3, 5))
    expected = layer(x)
    pair = to_factored(nn.Sequential(copy.deepcopy(layer)))[0]
    assert [type(each) for each in pair] == [nn.ConvTranspose2d, nn.Conv2d]
    same(pair(x), expected)
    same(to_dense(copy.deepcopy(layer))(x), expected)
    size = (7, 12)
    same(in_factors(dense)(x, output_size=size), dense(x, output_size=size))


def test_recurrent_layers_become_dense_where_two_layers_are_asked_for():
    dense = filled(nn.Sequential(nn.LSTM(5, 4)))
    model = nn.Sequential(in_factors(dense[0], 2))
    expected = model(drawn((3, 2, 5)))
    assert type(to_factored(model)[0]) is nn.LSTM
    same(model(drawn((3, 2, 5))), expected)


LEAVES = {
    "embedding": (lambda: nn.Embedding(9, 6), torch.tensor([[1, 8], [2, 0]])),
    "transposed": (lambda: nn.ConvTranspose1d(4, 6, 3), drawn((2, 4, 5))),
    "cell": (lambda: nn.GRUCell(5, 4), drawn((2, 5))),
    "lstm": (lambda: nn.LSTM(5, 4), drawn((3, 2, 5))),
}


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor"
)  # torch looks, while it compiles
@pytest.mark.parametrize("name", LEAVES)
def test_traced_as_one_node_and_exported(name):
    make, x = LEAVES[name]
    net = nn.Sequential(in_factors(filled(make()), 2))
    traced = torch.fx.symbolic_trace(net)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    same(traced(x), net(x))
    same(torch.export.export(net, (x,)).module()(x), net(x))
    same(torch.compile(net, backend="eager")(x), net(x))


@pytest.mark.bad_input
def test_a_rank_out_of_range_names_the_layer():
    with pytest.raises(RankError, match="LowRankLSTM needs a rank from 1 to 3"):
        LowRankLSTM(3, 8, rank=4)
    with pytest.raises(RankError, match="LowRankEmbedding"):
        LowRankEmbedding(9, 6, rank=7)


def test_fresh_weights_keep_the_form():
    layer = LowRankLSTM(5, 4, rank=2)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.reset_parameters()
    after = layer.state_dict()
    assert [*after] == [*before]
    assert all(not torch.equal(after[n], before[n]) for n in before if not n.endswith(("u", "vh")))
    assert float(layer.weight_ih_l0.detach().abs().max()) <= 2 * 4**-0.5
