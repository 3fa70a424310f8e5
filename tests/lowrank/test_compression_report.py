"""The report of ``compress``: output errors are those of forward passes, and bounds are kept."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowrank.nets import batch, filled, mlp
from orthotrain import compress
from orthotrain.errors import ConfigError
from orthotrain.layers import LowRankLinear, LowRankLSTM
from orthotrain.linalg import truncated
from orthotrain.lowrank.change import cut_site_
from orthotrain.lowrank.cut import known_weights
from orthotrain.lowrank.output_error import errors_by_rank, layer_error, matrices_of
from orthotrain.lowrank.rules import Relative
from orthotrain.lowrank.sites import Selection, find_sites
from orthotrain.lowrank.state_dicts.read import stored_model
from orthotrain.lowrank.state_dicts.survey import surveyed
from orthotrain.lowrank.surgery import to_dense

OPEN = {"only_if_cheaper": False, "max_aspect": math.inf}


def squared(model, x):
    y = model(x)
    return ((y[0] if isinstance(y, tuple) else y) ** 2).mean()


def distance(y, z):
    return float(((y - z).norm() / y.norm()).detach())


SINGLE = {
    "linear": (lambda: nn.Linear(9, 7, bias=False), (5, 9)),
    "conv": (lambda: nn.Conv2d(8, 48, 3, padding=1, stride=2, groups=2, bias=False), (3, 8, 6, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(8, 24, 3, stride=2, bias=False), (3, 8, 3, 3)),
}


@pytest.mark.parametrize("name", SINGLE)
@pytest.mark.parametrize("bases", ["frozen", "trained"])
@pytest.mark.parametrize("loss", [None, squared])
def test_the_error_of_a_layer_is_that_of_its_outputs(name, bases, loss):
    make, shape = SINGLE[name]
    model = filled(nn.Sequential(make()))
    data = [batch(i, *shape) for i in range(3)]
    dense = copy.deepcopy(model)
    compress(
        model, rank_rtol=0.8, data=data, loss=loss, bases=bases, also=["transposed"],
        held_out=data, **OPEN,
    )  # fmt: skip
    [layer] = model.compression.layers
    y, z = (torch.cat([net(x).detach() for x in data]) for net in (dense, model))
    assert 0.01 < layer.output_error < 1
    assert layer.output_error == pytest.approx(distance(y, z), rel=1e-9)
    assert model.compression.output_error == pytest.approx(distance(y, z), rel=1e-9)
    if (
        name == "linear" and layer.rank > 1
    ):  # a second cut is told beside the model that it started from
        compress(model, energy=0.5, data=data, held_out=data, **OPEN)
        again = torch.cat([model(x).detach() for x in data])
        [layer] = model.compression.layers
        assert layer.output_error > 0.01
        assert layer.output_error == pytest.approx(distance(z, again), rel=1e-9)


def test_the_error_of_packed_projections_and_of_an_embedding():
    attention = filled(nn.MultiheadAttention(8, 2, batch_first=True, bias=False))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.attention = filled(nn.Embedding(11, 8)), attention

        def forward(self, ids):
            x = self.table(ids)
            return self.attention(x, x, x)[0]

    model, data = Net(), [torch.tensor([[1, 2, 3, 3], [0, 10, 1, 2]])]
    dense = copy.deepcopy(model)
    compress(model, rank_rtol=0.5, data=data, also=["embedding"], **OPEN)
    errors = {layer.name: layer.output_error for layer in model.compression.layers}
    x = dense.table(data[0]).flatten(0, 1)
    table = distance(x, model.table(data[0]).flatten(0, 1))
    assert errors["table"] == pytest.approx(table, rel=1e-9)
    y, z = (x @ net.attention.in_proj_weight.mT for net in (dense, model))
    assert errors["attention.in_proj_weight"] == pytest.approx(distance(y, z), rel=1e-9)


def test_the_error_of_recurrent_weights():
    model, data = filled(nn.Sequential(nn.LSTM(6, 5))), [batch(0, 4, 3, 6)]
    dense = copy.deepcopy(model)
    compress(model, rank_rtol=0.5, data=data, loss=squared, also=["lstm"], held_out=data, **OPEN)
    report = model.compression
    errors = {layer.name: layer.output_error for layer in report.layers}
    y, z = (data[0] @ net[0].weight_ih_l0.mT for net in (dense, model))
    assert errors["0.weight_ih_l0"] == pytest.approx(distance(y, z), rel=1e-9)
    h = torch.cat((torch.zeros(1, 3, 5), dense(data[0])[0][:-1]))
    y, z = (h @ net[0].weight_hh_l0.mT for net in (dense, model))
    assert errors["0.weight_hh_l0"] == pytest.approx(distance(y, z), rel=1e-9)
    y, z = dense(data[0])[0], model(data[0])[0]
    assert report.output_error == pytest.approx(distance(y, z), rel=1e-9)
    assert report.loss_before == pytest.approx(float(squared(dense, data[0]).detach()))
    assert report.loss_after == pytest.approx(float(squared(model, data[0]).detach()))
    assert "held-out loss" in str(report)


MODELS = {
    "linear": lambda: mlp(6),
    "attention": lambda: filled(nn.MultiheadAttention(8, 2, batch_first=True)),
    "conv": lambda: filled(nn.Sequential(nn.Conv1d(4, 6, 3, groups=2))),
    "transposed": lambda: filled(nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=2))),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", ["dense", "frozen", "trained"])
@pytest.mark.parametrize("by_loss", [False, True])
def test_errors_are_known_for_every_rank_before_a_cut(name, form, by_loss):
    model = MODELS[name]()
    x = batch(0, 7, *{"linear": (6,), "attention": (3, 8)}.get(name, (4, 5)))

    def call(model, x):
        y = model(x, x, x)[0] if name == "attention" else model(x)
        return (y**3).sum()

    if form != "dense":
        options = {"shared_attention_basis": True} if form == "frozen" else {}
        sites, _ = find_sites(model, Selection(also=["transposed"], max_aspect=math.inf, **options))
        for site in sites:
            whole = torch.linalg.svd(site.matrix, full_matrices=False)
            cut_site_(site, *whole, bases=form)
    sites, _ = find_sites(model, Selection(also=["transposed"], max_aspect=math.inf))
    known = known_weights(
        model, sites, [], rules=[Relative(0.1)], data=[x], loss=call, only_if_cheaper=False,
        bases="trained", what="test",
    )  # fmt: skip
    for site in sites:
        a = known.inputs[site.name]
        found = known.views[site.name] if by_loss else torch.linalg.svd(
            site.matrix, full_matrices=False
        )  # fmt: skip
        errors = errors_by_rank(site, found, a)
        assert len(errors) == site.rank + 1
        before = matrices_of(site)
        for k in range(1, site.rank + 1):
            twin = copy.deepcopy(model)
            twins, _ = find_sites(twin, Selection(also=["transposed"], max_aspect=math.inf))
            other = next(each for each in twins if each.name == site.name)
            p, s, qh = found
            kept = truncated(found, k) if by_loss else (p[..., :k], s[..., :k], qh[..., :k, :])
            cut_site_(other, *kept)
            assert float(errors[k]) == pytest.approx(
                layer_error(before, matrices_of(other), a), rel=1e-7, abs=1e-7
            )


# --- a bound on the error ------------------------------------------------------------------------


def data_of(width, count=4):
    return [batch(i, 32, width) for i in range(count)]


def test_layers_keep_the_rank_that_the_bound_needs():
    dense, data = mlp(16), data_of(16)
    loose = compress(copy.deepcopy(dense), energy=0.5, data=data, **OPEN).compression
    bounded = compress(
        copy.deepcopy(dense), energy=0.5, data=data, max_output_error=0.2, **OPEN
    ).compression
    assert max(layer.output_error for layer in loose.layers) > 0.2
    for free, kept in zip(loose.layers, bounded.layers, strict=True):
        assert kept.output_error <= 0.2
        assert kept.rank > free.rank
        one_less = compress(
            copy.deepcopy(dense), energy=1e-9, data=data, only=[kept.name], max_output_error=0.2,
            **OPEN,
        ).compression.layers[0]  # fmt: skip
        assert one_less.rank == kept.rank  # no more than it needs


def test_a_layer_without_data_stays_as_it_is_under_a_bound():
    model = filled(nn.ModuleDict({"used": nn.Linear(16, 16), "idle": nn.Linear(16, 16)}))

    def loss(model, x):
        return (model["used"](x) ** 2).sum()

    compress(model, energy=0.1, data=data_of(16), loss=loss, max_output_error=0.5)
    ranks = {layer.name: layer.rank for layer in model.compression.layers}
    assert ranks["idle"] is None
    assert ranks["used"] is not None


def refused(model, **settings):
    """The message of what is refused; the model is as it was, bit for bit."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    x = batch(9, 3, 16)
    squared(model, x).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    y = model(x)
    with pytest.raises(ConfigError) as error:
        compress(model, **settings)
    assert [type(module) for module in model.modules()] == kinds
    assert [*model.state_dict()] == [*before]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    pairs = zip(model.parameters(), gradients, strict=True)
    assert all(torch.equal(p.grad, gradient) for p, gradient in pairs)
    assert torch.equal(model(x), y)
    assert "compression" not in model.__dict__
    return str(error.value)


def test_a_budget_and_a_bound_that_exclude_each_other_name_the_layers():
    message = refused(mlp(16), stored_budget=0.3, data=data_of(16), max_output_error=0.01)
    assert "max_output_error=0.01" in message
    assert "4 needs rank" in message
    assert "stored_budget=0.3" in message


@pytest.mark.parametrize("bases", [None, "frozen", "trained"])
def test_a_model_beyond_the_bound_is_left_as_it_was(bases):
    model = mlp(16)
    if bases is not None:
        compress(model, energy=0.999, bases=bases, only_if_cheaper=False)
        del model.compression
    far = [100 * x for x in data_of(16)]  # on which tanh does not forgive
    message = refused(
        model, energy=0.9, data=data_of(16), held_out=far, max_output_error=0.35,
        only_if_cheaper=False,
    )  # fmt: skip
    assert "held_out" in message
    assert "0 0." in message or "2 0." in message  # a layer and its error


def test_a_model_within_the_bound_is_cut():
    model, data = mlp(16), data_of(16)
    held_out = data_of(16, 6)[4:]
    compress(model, energy=0.8, data=data, held_out=held_out, max_output_error=0.7, **OPEN)
    assert 0 < model.compression.output_error <= 0.7


# --- which layers --------------------------------------------------------------------------------


class Speech(nn.Module):
    """Layers of every kind that is cut on request, and one thin layer that holds most numbers."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 12)
        self.gru, self.lstm = nn.GRU(12, 24, batch_first=True), nn.LSTM(24, 24, batch_first=True)
        self.up = nn.ConvTranspose1d(24, 32, 4, stride=2)
        self.wide = nn.Linear(32, 330)
        self.bag = nn.EmbeddingBag(5, 5)

    def forward(self, ids):
        x, _ = self.lstm(self.gru(self.table(ids))[0])
        return self.wide(self.up(x.mT).mT)


def ids(seed):
    return torch.randint(30, (4, 7), generator=torch.Generator().manual_seed(seed))


def test_every_layer_that_stays_is_named_with_the_setting_that_opens_it():
    model = filled(Speech())
    with pytest.raises(ConfigError, match=r"wide: too thin: 330 x 32, max_aspect=10") as error:
        compress(copy.deepcopy(model), energy=0.9)
    for said in ("also=['embedding']", "also=['gru']", "also=['lstm']", "also=['transposed']"):
        assert said in str(error.value)
    compress(model, energy=0.9, max_aspect=math.inf)
    report = model.compression
    assert [layer.name for layer in report.layers] == ["wide"]
    assert {*report.refused} == {"table", "gru", "lstm", "up", "bag"}
    assert "GRU is cut on request: also=['gru']" in report.refused["gru"]
    assert "EmbeddingBag has no low-rank form" in report.refused["bag"]
    assert "gru stays as it is" in str(report)


def test_layers_on_request_are_cut_where_the_data_say():
    dense, data = filled(Speech()), [ids(i) for i in range(6)]
    every = {"also": ["lstm", "gru", "embedding", "transposed"], "max_aspect": math.inf}
    errors = {}
    for way, settings in {
        "plain": {}, "input": {"data": data}, "both": {"data": data, "loss": squared},
    }.items():  # fmt: skip
        model = compress(
            copy.deepcopy(dense), stored_budget=0.35, held_out=[ids(9)], **every, **settings
        )
        report = model.compression
        assert {layer.name for layer in report.layers} == {
            "table", "gru.weight_ih_l0", "gru.weight_hh_l0", "lstm.weight_ih_l0",
            "lstm.weight_hh_l0", "up", "wide",
        }  # fmt: skip
        assert report.stored <= 0.35 * report.stored_before
        assert report.stored == sum(p.numel() for p in model.parameters())
        assert isinstance(model.lstm, LowRankLSTM)
        errors[way] = report.output_error
    assert errors["input"] < errors["plain"]
    assert errors["both"] < errors["plain"]
    to_dense(model)
    assert type(model.lstm) is nn.LSTM
    kinds = {type(module) for module in model.modules()}
    assert kinds == {type(module) for module in dense.modules()}


def test_an_embedding_tied_to_a_head_stays_and_is_named():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.body = nn.Embedding(9, 8), nn.Linear(8, 8)
            self.head = nn.Linear(8, 9, bias=False)
            self.head.weight = self.table.weight

    for also in ((), ("embedding",)):
        model = compress(filled(Tied()), energy=0.5, also=also)
        assert [layer.name for layer in model.compression.layers] == ["body"]
        assert "tied" in model.compression.refused["head"]


def test_rescaled_and_sparse_embeddings_stay():
    model = nn.ModuleDict(
        {
            "rescaled": nn.Embedding(9, 8, max_norm=1.0),
            "sparse": nn.Embedding(9, 8, sparse=True),
            "by frequency": nn.Embedding(9, 8, scale_grad_by_freq=True),
            "plain": nn.Embedding(9, 8),
        }
    )
    stored, owners = stored_model(model.state_dict()), dict(model.named_modules())
    compress(model, energy=0.5, also=["embedding"])
    assert [layer.name for layer in model.compression.layers] == ["plain"]
    assert {*model.compression.refused} == {"rescaled", "sparse", "by frequency"}
    of_file = surveyed(stored, also=["embedding"], owners=owners)
    assert [weight.name for weight in of_file.weights] == ["plain"]


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_output_error": 0.1}, "needs data"),
        ({"max_output_error": 0.0, "data": data_of(6)}, "max_output_error"),
        ({"also": ["lstmm"]}, "also"),
        ({"also": "lstm"}, "also"),
        ({"max_aspect": 1.0}, "max_aspect"),
        ({"held_out": []}, "held_out"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ConfigError, match=said):
        compress(mlp(6), energy=0.5, **settings)


def test_the_model_is_seen_in_evaluation_mode_and_keeps_its_modes():
    model = filled(nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.Linear(16, 16))).train()
    model[0].eval()
    dense, data = copy.deepcopy(model).eval(), data_of(16)
    compress(model, energy=0.5, held_out=data, **OPEN)
    assert [module.training for module in model.modules()] == [True, False, True, True]
    x = torch.cat(data)
    wanted = distance(dense(x), copy.deepcopy(model).eval()(x))
    assert model.compression.output_error == pytest.approx(wanted, rel=1e-9)


def test_outputs_that_cannot_be_compared_are_no_error():
    def loss(model, x):  # never calls the model itself
        return (model[2](model[0](x)) ** 2).sum()

    model = compress(mlp(16), energy=0.9, data=data_of(16), loss=loss, held_out=data_of(16))
    assert model.compression.output_error is None
    assert model.compression.loss_after != model.compression.loss_before
    with pytest.raises(ConfigError, match="call the model"):
        compress(
            mlp(16), energy=0.9, data=data_of(16), loss=loss, held_out=data_of(16),
            max_output_error=0.9,
        )  # fmt: skip


def test_outputs_with_names_are_compared_by_their_logits():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(16)

        def forward(self, x):
            return {"loss": x.sum(), "count": torch.tensor(3), "out": self.net(x)}

    model = compress(Named(), energy=0.5, held_out=data_of(16))
    dense = Named()
    x = torch.cat(data_of(16))
    wanted = distance(dense(x)["out"].detach(), model(x)["out"].detach())
    assert model.compression.output_error == pytest.approx(wanted, rel=1e-9)
    assert isinstance(model.net[0], LowRankLinear)
    assert F.mse_loss(dense(x)["out"], model(x)["out"]) > 0


def test_layers_on_request_are_taken_whatever_their_shape():
    model = nn.Sequential(nn.Embedding(400, 8), nn.LSTM(8, 64), nn.ConvTranspose1d(2, 64, 1))
    also = ["embedding", "lstm", "transposed"]
    report = compress(model, energy=0.5, also=also).compression
    assert {*report.refused} == set()
    assert [layer.name for layer in report.layers] == [
        "0", "1.weight_ih_l0", "1.weight_hh_l0", "2",
    ]  # fmt: skip
