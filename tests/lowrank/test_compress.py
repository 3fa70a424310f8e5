"""``compress`` with data and with a loss: which cut it makes, what it tells, what it refuses."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowrank.nets import Everything, batch, filled, mlp
from orthotrain.errors import ConfigError, NonFiniteError
from orthotrain.layers import LowRankLinear
from orthotrain.lowrank import Candidate, Compression, LayerRule, StoredBudget, compress
from orthotrain.lowrank.look import weighed
from reference import metric_svd as twin

CUT = {"rank_rtol": 0.3, "only_if_cheaper": False}


def squares(model, x):
    return model(x).square().mean()


def batches(count, *shape):
    return [batch(i, *shape) for i in range(count)]


def stretched(count, width, *, seed=0):
    """Batches whose inputs are large in some directions and small in others."""
    scale = torch.logspace(0, -2, width, dtype=torch.float64)
    return [x * scale for x in batches(count, 32, width)]


# --- the cut is the one that loses least ----------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 3])
def test_with_data_the_outputs_change_least(rank):
    layer, data = filled(nn.Linear(16, 12)), stretched(4, 16)
    rows = torch.cat(data)
    a = rows.mT @ rows / len(rows)
    dense = layer.weight.detach().clone()
    expected = twin.nearest(dense, a, torch.eye(12).double(), 1e-3, rank)
    budget = (rank * (16 + 12 + rank) + 12.5) / (16 * 12 + 12)
    compress(layer, stored_budget=budget, data=data, only_if_cheaper=False)
    assert layer.rank == rank
    # The identity has a ridge in the twin; a share of it changes no truncation.
    torch.testing.assert_close(layer.weight, expected)

    def error(weight):
        return float(((dense - weight.detach()) @ rows.mT).square().sum())

    plain = compress(filled(nn.Linear(16, 12)), stored_budget=budget, only_if_cheaper=False)
    assert error(layer.weight) < error(plain.weight)


def test_with_a_loss_it_is_the_cut_in_both_metrics():
    model, data = mlp(8, depth=2), stretched(3, 8)
    dense = model[0].weight.detach().clone()
    a = sum(x.mT @ x for x in data) / 96
    b = torch.zeros(8, 8).double()
    for x in data:
        y = model[0](x)
        (g,) = torch.autograd.grad(model[1:](y).square().mean(), y)
        b += g.mT @ g
    compress(model, rank_rtol=0.03, only_if_cheaper=False, data=data, loss=squares, only=["0"])
    assert 1 < model[0].rank < 8
    torch.testing.assert_close(
        model[0].weight, twin.nearest(dense, a, b, 1e-3, model[0].rank), rtol=1e-7, atol=1e-9
    )


def quadratic(width=8):
    """Two layers side by side, one of which the loss hardly feels though its weight is large."""
    model = filled(
        nn.ModuleDict({"felt": nn.Linear(width, width), "unfelt": nn.Linear(width, width)})
    )
    with torch.no_grad():
        model["unfelt"].weight.mul_(100)

    def loss(model, x):
        y = model["felt"](x) + 1e-4 * model["unfelt"](x)
        return (y - x).square().mean()

    return model, loss


def test_one_threshold_spends_numbers_where_the_loss_feels_them():
    model, loss = quadratic()
    data = batches(4, 64, 8)
    report = compress(
        model, stored_budget=0.75, data=data, loss=loss, only_if_cheaper=False
    ).compression
    felt, unfelt = report.layers
    assert felt.rank > unfelt.rank
    by_weight = compress(quadratic()[0], stored_budget=0.75, only_if_cheaper=False).compression
    assert abs(by_weight.layers[0].rank - by_weight.layers[1].rank) <= 1


def test_ranks_do_not_change_with_the_scale_of_the_loss_or_the_size_of_batches():
    def ranks(scale, size):
        model, loss = quadratic()
        data = list(torch.cat(batches(4, 64, 8)).split(size))
        compress(
            model, stored_budget=0.75, data=data, only_if_cheaper=False,
            loss=lambda m, x: scale * loss(m, x),
        )  # fmt: skip
        return [layer.rank for layer in model.compression.layers]

    assert ranks(1.0, 64) == ranks(1e-9, 64) == ranks(1e6, 256) == ranks(1.0, 100)


def test_the_estimate_is_the_loss_of_a_linear_model():
    """For a linear model with a squared loss the estimated order of cuts is the true one."""
    layer = filled(nn.Linear(8, 8, bias=False))
    data = stretched(2, 8)
    rows = torch.cat(data)
    target = rows @ layer.weight.detach().mT

    def loss_of(model):
        return float((model(rows) - target).detach().square().mean())

    def noisy(model, x):  # a trained model's errors: the same in all directions
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(len(x))).double()
        return (model(x) - x @ dense.mT - noise).square().mean()

    dense = layer.weight.detach().clone()
    losses = {}
    for name, given in {"weight": {}, "loss": {"data": data, "loss": noisy}}.items():
        model = compress(copy.deepcopy(layer), stored_budget=0.6, only_if_cheaper=False, **given)
        losses[name] = loss_of(model)
    assert losses["loss"] < 0.5 * losses["weight"]


@pytest.mark.parametrize("given", ["input", "loss"])
def test_every_kind_of_layer_is_cut_in_its_metric(given):
    model = filled(Everything())
    data = [Everything.batch(i) for i in range(3)]
    loss = {"loss": squares} if given == "loss" else {}
    expected = model(data[0]).detach()
    compress(model, rank_rtol=0.0, only_if_cheaper=False, data=data, **loss)
    report = model.compression
    assert report.importance == given
    assert not any(layer.note for layer in report.layers)
    torch.testing.assert_close(model(data[0]), expected)  # nothing was dropped
    cut = compress(model, rank_rtol=0.5, only_if_cheaper=False, data=data, **loss)
    for layer, whole in zip(cut.compression.layers, report.layers, strict=True):
        convolution = len(layer.shape) > 2  # its rank is rounded up to a multiple of 16
        assert layer.rank < whole.rank or (convolution and layer.rank == whole.rank)
    assert torch.isfinite(cut(data[0])).all()


def test_attention_inside_torchs_fast_path_is_seen():
    model = filled(Everything())
    data = [Everything.batch(i) for i in range(2)]
    report = compress(model, **CUT, data=data, only=["encoder.self_attn"]).compression
    assert [(layer.name, layer.note) for layer in report.layers] == [
        ("encoder.self_attn.in_proj_weight", "")
    ]


def test_a_low_rank_model_is_cut_as_its_dense_one_is():
    data = stretched(3, 8)
    low_rank = compress(mlp(8), rank_rtol=0.0, only_if_cheaper=False)
    settings = {"stored_budget": 0.8, "only_if_cheaper": False, "data": data, "loss": squares}
    compress(low_rank, **settings)
    dense = compress(mlp(8), **settings)
    x = data[0]
    torch.testing.assert_close(low_rank(x), dense(x), rtol=1e-6, atol=1e-8)


# --- the model is left as it was ------------------------------------------------------------------


def test_modes_gradients_and_statistics_are_as_before():
    model = filled(
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8))
    )
    model[1].eval()
    model[3].weight.requires_grad_(False)
    model[0].bias.grad = torch.ones(8).double()
    running = model[1].running_mean.clone()
    state = torch.get_rng_state()
    compress(model, **CUT, data=batches(2, 16, 8), loss=squares)
    assert [m.training for m in model] == [True, False, True, True]
    assert torch.equal(model[0].bias.grad, torch.ones(8).double())
    assert model[3].bias.grad is None
    assert not model[3].pair.requires_grad
    assert model[0].pair.requires_grad
    assert torch.equal(model[1].running_mean, running)
    assert torch.equal(torch.get_rng_state(), state)


def test_it_works_under_no_grad_and_repeats_itself():
    first = compress(mlp(8), **CUT, data=batches(2, 16, 8), loss=squares)
    with torch.no_grad():
        second = compress(mlp(8), **CUT, data=iter(batches(2, 16, 8)), loss=squares)
    x = batch(0, 3, 8)
    assert torch.equal(first(x), second(x))


def test_a_frozen_model_is_measured_and_stays_frozen():
    model = mlp(8).requires_grad_(False)
    compress(model, **CUT, data=batches(2, 16, 8), loss=squares)
    assert not any(p.requires_grad for p in model.parameters())
    plain = compress(mlp(8), **CUT, data=batches(2, 16, 8), loss=squares)
    assert torch.equal(model[0].core, plain[0].core)


def test_a_wrapped_model_is_measured_without_its_wrapper():
    model, seen = mlp(8), []

    def loss(inner, x):
        seen.append(inner)
        return squares(inner, x)

    wrapped = torch.compile(model)
    assert compress(wrapped, **CUT, data=batches(2, 16, 8), loss=loss) is wrapped
    assert all(each is model for each in seen)
    assert wrapped.compression.importance == "loss"
    plain = compress(mlp(8), **CUT, data=batches(2, 16, 8), loss=squares)
    assert torch.equal(model[0].core, plain[0].core)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, *, scale=1.0):
        return self.layer(x) * scale


class Side(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.first(x) + self.second(x)


@pytest.mark.parametrize(
    "form",
    [lambda x: x, lambda x: (x, "label"), lambda x: [x, 1], lambda x: {"x": x, "scale": 2.0}],
    ids=["tensor", "pair", "list", "mapping"],
)
def test_batches_of_every_form_are_understood_without_a_loss(form):
    plain = compress(filled(Two()), **CUT, data=batches(2, 16, 8))
    other = compress(filled(Two()), **CUT, data=[form(x) for x in batches(2, 16, 8)])
    assert torch.equal(plain.layer.core, other.layer.core)


def test_half_precision_weights_are_measured_in_float64():
    model = filled(mlp(8), dtype=torch.float32).to(torch.bfloat16)
    data = [x.bfloat16() for x in batches(2, 16, 8)]
    compress(model, **CUT, data=data, loss=lambda m, x: m(x).float().square().mean())
    assert model[0].core.dtype == torch.bfloat16


# --- what it tells --------------------------------------------------------------------------------


def test_the_report_counts_what_is_stored_and_shares_out_the_loss():
    model = mlp(16)
    numbers = sum(p.numel() for p in model.parameters())
    report = compress(
        model, rank=StoredBudget(0.6), data=batches(2, 32, 16), loss=squares
    ).compression
    assert isinstance(report, Compression)
    assert report.importance == "loss"
    assert report.stored_before == numbers
    assert report.stored == sum(t.numel() for t in model.state_dict().values())
    assert report.stored <= 0.6 * numbers
    assert [layer.name for layer in report.layers] == ["0", "2", "4"]
    assert sum(layer.loss_share for layer in report.layers) == pytest.approx(1.0)
    for layer, module in zip(report.layers, model[::2], strict=True):
        assert layer.rank == getattr(module, "rank", None)
        assert layer.stored_before == 256
        assert layer.stored == (256 if layer.rank is None else layer.rank * 32)
        assert (layer.loss_share > 0) == (layer.rank is not None)
    table = str(report)
    assert f"stored {report.stored:,} of {numbers:,}" in table
    assert "ranks by loss" in table
    assert len(table.splitlines()) == 4


def test_without_data_the_report_is_there_too():
    report = compress(mlp(16), stored_budget=0.6).compression
    assert report.importance == "weight"
    assert sum(layer.loss_share for layer in report.layers) == pytest.approx(1.0)
    assert compress(mlp(16), rank_rtol=0.0).compression.layers[0].loss_share == 0.0


@pytest.mark.parametrize("with_loss", [True, False])
def test_a_layer_that_saw_no_data_is_cut_by_its_weight_and_named(with_loss):
    model = mlp(8)
    model.add_module("unused", filled(nn.Linear(8, 8), seed=5))
    reference = compress(filled(nn.Linear(8, 8), seed=5), **CUT)

    def loss(model, x):
        return model[:-1](x).square().mean()

    class Used(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner[:-1](x)

    whole = Used()
    given = {"loss": lambda m, x: m(x).square().mean()} if with_loss else {}
    report = compress(whole, **CUT, data=batches(2, 16, 8), **given).compression
    assert [layer.note for layer in report.layers][:-1] == ["", "", ""]
    assert report.layers[-1].name == "inner.unused"
    assert "no data or no gradient reached it" in report.layers[-1].note
    assert "no data or no gradient reached it" in str(report)
    torch.testing.assert_close(model.unused.weight, reference.weight)


def test_a_layer_without_a_metric_weighs_like_the_mean_of_those_with_one():
    layers = [
        Candidate(torch.tensor([values]), (), 2, 4, 4, True, True, name=name)
        for name, values in (("a", [2.0, 1.0]), ("b", [4.0, 2.0]), ("c", [100.0, 1.0]))
    ]
    assert [each.weight for each in weighed(layers, {"a", "b"})] == [5.0, 20.0, 12.5]
    assert [each.weight for each in weighed(layers, set())] == [1.0, 1.0, 1.0]


def test_a_layer_whose_gradient_is_zero_is_named_like_one_that_saw_nothing():
    model = filled(nn.ModuleDict({"used": nn.Linear(8, 8), "muted": nn.Linear(8, 8)}))

    def loss(model, x):
        return (model["used"](x) + 0.0 * model["muted"](x)).square().mean()

    used, muted = compress(model, **CUT, data=batches(2, 16, 8), loss=loss).compression.layers
    assert used.note == ""
    assert "no data or no gradient reached it" in muted.note


def test_with_data_alone_the_size_of_a_layer_decides_nothing():
    ranks = []
    for scale in (1.0, 100.0):
        model = filled(Side())
        with torch.no_grad():
            model.second.weight.mul_(scale)
        compress(model, stored_budget=0.75, only_if_cheaper=False, data=batches(2, 32, 8))
        ranks.append([layer.rank for layer in model.compression.layers])
    assert ranks[0] == ranks[1]


def test_a_group_that_the_loss_does_not_feel_needs_no_numbers_of_its_own():
    conv = filled(nn.Conv2d(8, 8, 3, groups=2, padding=1))
    data = batches(2, 4, 8, 5, 5)
    report = compress(
        conv, rank_rtol=0.0, only_if_cheaper=False, data=data,
        loss=lambda m, x: m(x)[:, :4].square().mean(),
    ).compression  # fmt: skip
    assert [layer.note for layer in report.layers] == [""]
    assert conv.rank == 4
    weight = filled(nn.Conv2d(8, 8, 3, groups=2, padding=1)).weight
    torch.testing.assert_close(conv.weight, weight.detach(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "given",
    [{}, {"data": 3}, {"data": 3, "loss": squares}],
    ids=["weight", "inputs", "loss"],
)
def test_two_trained_factors_hold_more_ranks_in_a_budget(given):
    given = given | ({"data": stretched(3, 16)} if given else {})
    frozen, trained = (
        compress(mlp(16), stored_budget=0.6, bases=bases, **given)
        for bases in ("frozen", "trained")
    )
    numbers = sum(p.numel() for p in trained.parameters())
    assert trained.compression.stored == numbers <= 0.6 * 3 * (16 * 16 + 16)
    ranks = [sum(row.rank or 16 for row in m.compression.layers) for m in (frozen, trained)]
    assert ranks[1] > ranks[0]
    for layer, row in zip(trained[::2], trained.compression.layers, strict=True):
        if row.rank is not None:
            assert layer.pair.shape == (row.rank, 32)
            assert row.stored == row.rank * 32


@dataclass(frozen=True)
class Rank(LayerRule):
    """One rank for all."""

    k: int

    def rank(self, layer):
        return self.k


def test_a_cut_pays_earlier_where_both_factors_are_trained():
    # Of 256 numbers: 7 x 32 in two factors, 7 x 7 more with a core between them.
    for bases, layer in (("frozen", nn.Linear), ("trained", LowRankLinear)):
        model = compress(mlp(16), rank=Rank(7), bases=bases)
        assert [type(m) for m in model[::2]] == [layer] * 3
        assert type(compress(mlp(16), rank=Rank(8), bases=bases)[0]) is nn.Linear


def test_only_and_skip_choose_the_layers():
    model = compress(mlp(8), **CUT, only=["0", "4"], skip=["4"])
    assert [type(m) is LowRankLinear for m in model[::2]] == [True, False, False]
    assert [layer.name for layer in model.compression.layers] == ["0"]


# --- what is refused ------------------------------------------------------------------------------


def detached(model, x):
    return squares(model, x).detach()


def not_finite(model, x):
    return squares(model, x) / 0


def number(model, x):
    return squares(model, x).item()


def many(model, x):
    return model(x).square()


def another(model, x):
    return (x * torch.ones(8, dtype=torch.float64, requires_grad=True)).sum()


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"data": None, "loss": squares}, ConfigError, "loss without data"),
        (
            {"loss": nn.CrossEntropyLoss()},
            ConfigError,
            r"loss\(model, batch\), .*CrossEntropyLoss",
        ),
        ({"loss": F.mse_loss}, ConfigError, "loss=lambda model, batch: "),
        ({"loss": partial(F.huber_loss, delta=2)}, ConfigError, "to take the model and a batch"),
        ({"loss": lambda model: None}, ConfigError, "to take the model and a batch"),
        ({"loss": detached}, ConfigError, r"backward pass, got a tensor of shape \(\) without"),
        ({"loss": number}, ConfigError, "backward pass, got float"),
        ({"loss": many}, ConfigError, r"one number .* shape \(16, 8\) with a graph"),
        ({"loss": not_finite}, NonFiniteError, "finite loss, got inf"),
        ({"loss": another}, ConfigError, "a layer that saw data"),
        ({"data": []}, ConfigError, "at least one batch"),
        ({"data": [torch.full((4, 8), torch.inf).double()]}, NonFiniteError, "inputs of 0 hold"),
        ({"only": "0"}, ConfigError, "only to be a collection"),
        ({"only": ["nothing"]}, ConfigError, "'nothing'"),
        ({"bases": "both"}, ConfigError, "bases to be one of"),
        ({"rank_rtol": None, "stored_budget": 1.5}, ConfigError, "stored_budget.* to be a share"),
        ({"rank_rtol": None, "stored_budget": 0.0}, ConfigError, "stored_budget.* to be a share"),
    ],
)
def test_what_cannot_work_is_refused_and_nothing_is_changed(given, error, message):
    model = mlp(8)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        compress(model, **CUT | {"data": batches(2, 16, 8)} | given)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    assert not hasattr(model, "compression")


@pytest.mark.bad_input
def test_a_budget_out_of_reach_is_told_with_layers_before_data_are_read():
    read = []

    def data():
        read.append(1)
        yield batch(0, 16, 8)

    least = r"smallest ranks they hold 48 \(0: 16, 2: 16, 4: 16\).*Raise stored_budget to 0\.334"
    least += r".*Largest of the rest: 0: 8, 2: 8, 4: 8"
    with pytest.raises(ConfigError, match=least):
        compress(mlp(8), stored_budget=0.2, data=data(), loss=squares)
    assert not read


@pytest.mark.bad_input
def test_a_model_on_several_devices_is_refused_where_data_are_measured():
    model = mlp(8)
    model.register_buffer("elsewhere", torch.empty(1, device="meta"))
    with pytest.raises(ConfigError, match=r"one device .*\['cpu', 'meta'\]"):
        compress(model, **CUT, data=batches(1, 4, 8))
    compress(model, **CUT)
