"""What is gathered at each layer is the second moment of its samples, counted once."""

from __future__ import annotations

import gc
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lowrank.nets import Everything, batch, everything_loss, filled, mlp
from orthotrain.errors import NonFiniteError
from orthotrain.linalg import truncated
from orthotrain.lowrank import collect, compress, samples
from orthotrain.lowrank.change import cut_site_
from orthotrain.lowrank.collect import Collector
from orthotrain.lowrank.look import decomposed_in
from orthotrain.lowrank.metric import metric_of
from orthotrain.lowrank.moments import Moments
from orthotrain.lowrank.samples import chosen_samples
from orthotrain.lowrank.sites import Selection, find_sites
from reference.matrices import generator


def sites_of(model, **options):
    return find_sites(model, Selection(max_aspect=math.inf, **options))[0]


def collected(model, run, *, gradients=True, passes=1, **options):
    """Moments of each site by name, after some backward passes of ``run(model)``."""
    sites = sites_of(model)
    collector = Collector(sites, gradients=gradients, **options)
    with collector.active():
        for _ in range(passes):
            loss = run(model)
            if gradients:
                loss.backward()
            collector.end_pass()
    return {site.name: collector.moments(site) for site in sites}


def outer(rows):
    return rows.mT @ rows


def seen_by_linear(layer, x):
    """Inputs and output gradients of one linear layer on ``x``, by autograd alone."""
    y = layer(x)
    loss = (y**3).sum() + (y * x.mean()).sum()
    (g,) = torch.autograd.grad(loss, y)
    return x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])


def linear_loss(x):
    def run(model):
        y = model(x)
        return (y**3).sum() + (y * x.mean()).sum()

    return run


# --- what samples are -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7)])
def test_rows_of_a_linear_layer_are_its_samples(shape):
    layer, x = filled(nn.Linear(7, 4)), batch(0, *shape)
    rows, gradients = seen_by_linear(layer, x)
    [moments] = collected(layer, linear_loss(x))[""]
    torch.testing.assert_close(moments.a[0], outer(rows) / len(rows))
    torch.testing.assert_close(moments.b[0], outer(gradients) * len(rows) ** 2)
    [inputs] = collected(layer, lambda model: model(x), gradients=False)[""]
    torch.testing.assert_close(inputs.a, moments.a)
    assert inputs.b is None


CONVOLUTIONS = [
    lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, padding_mode="circular"),
    lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"),
    lambda: nn.Conv2d(4, 6, 3, groups=2, padding="same", dilation=2),
    lambda: nn.Conv3d(4, 6, (2, 1, 3), padding=(1, 0, 1), groups=2),
]


@pytest.mark.parametrize("make", CONVOLUTIONS)
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("most", [4096, 10**9])
def test_patches_of_a_convolution_are_its_samples(make, batched, most):
    layer = filled(make())
    dims = len(layer.kernel_size)
    x = batch(0, 3, 4, *(7, 6, 5)[:dims])
    x = x if batched else x[0]
    y = layer(x)
    (g,) = torch.autograd.grad((y**3).sum(), y)
    # The patches, one tap after the other, by convolutions that pick one number each.
    blocks, width = layer.groups, 4 // layer.groups
    taps = list(itertools.product(range(width), *map(range, layer.kernel_size)))
    pick = filled(make())
    patches = []
    for tap in taps:
        with torch.no_grad():
            pick.weight.zero_()[(slice(None), *tap)] = 1.0
            pick.bias.zero_()
            patches.append(pick(x))
    seen = torch.stack(patches, -1)  # (batch, 6, *places, taps): equal within a group
    seen, g = (t if batched else t.unsqueeze(0) for t in (seen, g))
    seen = seen.unflatten(1, (blocks, -1))[:, :, 0].movedim(1, 0).reshape(blocks, -1, len(taps))
    g = g.unflatten(1, (blocks, -1)).movedim(1, 0).movedim(2, -1).reshape(blocks, seen.shape[1], -1)
    [moments] = collected(layer, lambda model: (model(x) ** 3).sum(), most=most)[""]
    places = seen.shape[1]
    torch.testing.assert_close(moments.a, seen.mT @ seen / places)
    torch.testing.assert_close(moments.b, g.mT @ g * places**2)


@pytest.mark.parametrize("kind", ["packed", "separate", "shared basis", "low-rank"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_projections_of_attention_are_seen_one_by_one(kind, batch_first):
    sizes = {"kdim": 6, "vdim": 4} if kind == "separate" else {}
    layer = filled(nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes))
    if kind == "low-rank":
        compress(layer, rank_rtol=0.0, only_if_cheaper=False)
    q, k, v = (
        batch(i, 3, 5, width)
        for i, width in enumerate((8, sizes.get("kdim", 8), sizes.get("vdim", 8)))
    )
    target = batch(4, 3, 5, 8)

    def run(model):
        y, _ = model(q, k, v, need_weights=False)
        return (y * target).sum() + (y**2).sum()

    plain = run(layer)
    found = collected(layer, run)
    assert type(layer).__name__ in ("MultiheadAttention", "LowRankMultiheadAttention")
    assert torch.equal(run(layer), plain)
    weights = (
        layer.in_proj_weight.chunk(3)
        if kind != "separate"
        else (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    )
    projected = [
        F.linear(x, w.detach(), b.detach()).requires_grad_()
        for x, w, b in zip((q, k, v), weights, layer.in_proj_bias.chunk(3), strict=True)
    ]
    heads = [
        (t if batch_first else t.transpose(0, 1)).unflatten(-1, (2, 4)).transpose(1, 2)
        for t in projected
    ]
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    mixed = mixed if batch_first else mixed.transpose(0, 1)
    y = layer.out_proj(mixed)
    loss = (y * target).sum() + (y**2).sum()
    *gradients, at_output = torch.autograd.grad(loss, [*projected, y])
    parts = (
        [found[f"{name}_proj_weight"][0] for name in "qkv"]
        if kind == "separate"
        else found["in_proj_weight"]
    )
    assert len(parts) == 3
    for moments, x, g in zip(parts, (q, k, v), gradients, strict=True):
        torch.testing.assert_close(moments.a[0], outer(x.reshape(15, -1)) / 15)
        torch.testing.assert_close(moments.b[0], outer(g.reshape(15, -1)) * 15**2)
    [moments] = found["out_proj"]
    torch.testing.assert_close(moments.a[0], outer(mixed.detach().reshape(15, -1)) / 15)
    torch.testing.assert_close(moments.b[0], outer(at_output.reshape(15, -1)) * 15**2)
    if kind == "shared basis":
        [site] = [s for s in sites_of(layer, shared_attention_basis=True) if "in_proj" in s.name]
        metric = metric_of(site, parts)
        torch.testing.assert_close(metric.a, sum(part.a[0] for part in parts) / 3)
        torch.testing.assert_close(metric.b, torch.block_diag(*(part.b[0] for part in parts)))


class Conv1D(nn.Module):
    """The linear layer of Transformers, whose weight is ``(in, out)``."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


Conv1D.__module__ = "transformers.pytorch_utils"


def test_a_weight_with_inputs_in_front_has_its_inputs_at_its_rows():
    layer, x = filled(Conv1D(4, 7)), batch(0, 5, 7)
    rows, gradients = seen_by_linear(layer, x)
    [site] = sites_of(layer)
    metric = metric_of(site, collected(layer, linear_loss(x))[""])
    torch.testing.assert_close(metric.b, outer(rows) / 5)
    torch.testing.assert_close(metric.a, outer(gradients) * 25)


def test_a_low_rank_layer_is_measured_in_the_coordinates_of_its_core():
    layer, x = filled(nn.Linear(7, 5)), batch(0, 9, 7)
    compress(layer, rank_rtol=0.3, only_if_cheaper=False)
    [site] = sites_of(layer)
    rows, gradients = seen_by_linear(layer, x)
    metric = metric_of(site, collected(layer, linear_loss(x))[""])
    torch.testing.assert_close(metric.a, outer(rows @ layer.vh.mT) / 9)
    torch.testing.assert_close(metric.b, outer(gradients @ layer.u) * 81)


# --- what is counted ------------------------------------------------------------------------------


def test_a_layer_that_is_called_twice_counts_twice_and_tied_ones_together():
    model = filled(Everything())
    found = collected(model, lambda m: everything_loss(m, 0))
    assert {name: len(each) for name, each in found.items()} == {
        "stem": 1, "grouped": 1, "line": 1, "encoder.self_attn.in_proj_weight": 3,
        "encoder.self_attn.out_proj": 1, "encoder.linear1": 1, "encoder.linear2": 1,
        "shared": 1, "tied.0": 1, "head": 1,
    }  # fmt: skip
    assert found["shared"][0].a_samples == found["tied.0"][0].a_samples == 16
    assert found["head"][0].a_samples == 8


class Checkpointed(nn.Module):
    def __init__(self, inner, reentrant):
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x):
        if self.reentrant is None:
            return self.inner(x)
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_checkpointing_computes_again_counts_once(reentrant):
    x = batch(0, 6, 8).requires_grad_()
    results = [
        collected(Checkpointed(mlp(), each), lambda model: model(x).square().mean())
        for each in (None, reentrant)
    ]
    for name, [moments] in results[0].items():
        [again] = results[1][name]
        assert again.a_samples == moments.a_samples == 6
        torch.testing.assert_close(again.a, moments.a)
        torch.testing.assert_close(again.b, moments.b)


def test_a_forward_pass_without_a_gradient_is_left_out():
    model, x = mlp(), batch(0, 6, 8)

    def run(model):
        model.eval()
        with torch.no_grad():
            model(100 * x)
        model.train()
        model(100 * x)  # a graph, but nothing is learnt from it
        return model(x).square().mean()

    for moments, plain in zip(
        collected(model, run).values(),
        collected(model, lambda m: m(x).square().mean()).values(),
        strict=True,
    ):
        assert torch.equal(moments[0].a, plain[0].a)
        assert torch.equal(moments[0].b, plain[0].b)


def test_an_activation_in_place_changes_nothing():
    x = batch(0, 6, 8)
    results = [
        collected(
            filled(nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace), nn.Linear(8, 8))),
            lambda m: m(x).square().mean(),
        )
        for inplace in (True, False)
    ]
    for name, [moments] in results[0].items():
        torch.testing.assert_close(moments.a, results[1][name][0].a)
        torch.testing.assert_close(moments.b, results[1][name][0].b)


def test_a_mean_over_a_smaller_last_batch_counts_no_more_than_its_examples():
    x, model = batch(0, 12, 8), mlp()
    [whole] = collected(model, lambda m: m(x).square().mean())["4"]
    sizes = iter((slice(0, 10), slice(10, 12)))
    sites = sites_of(model)
    collector = Collector(sites, gradients=True)
    with collector.active():
        for part in sizes:
            model(x[part]).square().mean().backward()
            collector.end_pass()
    [parts] = collector.moments(sites[-1])
    torch.testing.assert_close(parts.a, whole.a)
    torch.testing.assert_close(parts.b, whole.b)


def test_one_scale_of_the_loss_for_layers_with_many_places_and_few():
    """A pointwise convolution over four places is a linear layer over four tokens."""
    x = batch(0, 3, 8, 2, 2)
    conv, linear = filled(nn.Conv2d(8, 6, 1)), filled(nn.Linear(8, 6))
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
    [one] = collected(conv, lambda m: m(x).square().mean())[""]
    [other] = collected(linear, lambda m: m(x.movedim(1, -1)).square().mean())[""]
    torch.testing.assert_close(one.a, other.a)
    torch.testing.assert_close(one.b, other.b)


# --- sampling -------------------------------------------------------------------------------------


def test_all_samples_or_one_of_each_stretch():
    g = generator(0)
    state = g.get_state()
    assert chosen_samples(5, 5, g).tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(g.get_state(), state)
    index = chosen_samples(1000, 10, g)
    assert [int(i) // 100 for i in index] == list(range(10))
    assert not torch.equal(chosen_samples(1000, 10, g), index)


@pytest.mark.parametrize(("side", "read"), [(6, 128), (512, 128), (1024, 256)])
def test_of_few_samples_a_wide_layer_has_a_quarter_of_its_side(monkeypatch, side, read):
    layer, rows = filled(nn.Linear(side, 4)), []
    chosen = collect.chosen_samples
    monkeypatch.setattr(
        collect, "chosen_samples", lambda *a: (rows.append(len(i := chosen(*a))), i)[1]
    )
    collected(layer, linear_loss(batch(0, 2000, side)), few=True)
    assert rows == [read]


def test_a_subsample_is_right_on_average_and_repeats_with_its_seed():
    model, x = filled(nn.Linear(6, 4)), batch(0, 4000, 6)
    run = linear_loss(x)
    [whole] = collected(model, run)[""]
    [some] = collected(model, run, most=1000, seed=1)[""]
    [again] = collected(model, run, most=1000, seed=1)[""]
    [other] = collected(model, run, most=1000, seed=2)[""]
    assert torch.equal(some.a, again.a)
    assert torch.equal(some.b, again.b)
    assert not torch.equal(some.a, other.a)
    assert some.a_samples == 4000
    for part, all_of_it in ((some.a, whole.a), (some.b, whole.b)):
        assert (part - all_of_it).norm() < 0.2 * all_of_it.norm()


# --- nothing is left behind -----------------------------------------------------------------------


def test_the_model_is_as_before_and_trains_alike_while_it_is_observed():
    gc.collect()  # an attached model of an earlier test may still be observed
    model = filled(Everything())
    classes = [type(m) for m in model.modules()]
    loss = everything_loss(model, 0)
    loss.backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    state = torch.get_rng_state()
    collected(model, lambda m: everything_loss(m, 0), most=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert [type(m) for m in model.modules()] == classes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()
    assert not any("_observer" in m.__dict__ for m in model.modules())
    for p, gradient in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_an_error_in_the_middle_leaves_nothing_behind():
    model = filled(Everything())
    classes = [type(m) for m in model.modules()]
    with pytest.raises(ZeroDivisionError):
        collected(model, lambda _: 1 / 0)
    assert [type(m) for m in model.modules()] == classes
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.bad_input
@pytest.mark.parametrize("where", ["inputs", "output gradients"])
def test_what_is_not_finite_is_named(where):
    model, x = mlp(), batch(0, 6, 8)

    def run(model):
        if where == "inputs":
            return model(x / 0).nan_to_num().sum()
        return (model(x).abs() * 1e-300).sqrt().mul(0).add(1).log().sqrt().sum()

    with pytest.raises(NonFiniteError, match=rf"the {where} of \d hold NaN or infinity"):
        collected(model, run)


# --- layers that are cut on request ---------------------------------------------------------------


TRANSPOSED = [
    lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, dilation=2),
    lambda: nn.ConvTranspose2d(4, 6, (3, 2), stride=(2, 3), output_padding=(1, 2), groups=2),
    lambda: nn.ConvTranspose3d(2, 3, (1, 2, 2), padding=(1, 0, 1)),
]


@pytest.mark.parametrize("make", TRANSPOSED)
def test_patches_of_a_transposed_convolution_give_its_output(make):
    layer = filled(make())
    x = batch(0, 2, layer.in_channels, *(3,) * len(layer.kernel_size))
    y = layer(x)
    index = torch.arange(y.numel() // layer.out_channels)
    patches = samples.input_samples(layer, x, y, index)
    site = sites_of(layer, also=["transposed"])[0]
    matrices = site.layout.matrices(layer.weight.detach())
    parts = patches.view(len(patches), layer.groups, -1)
    by_place = torch.einsum("sbn,bmn->sbm", parts, matrices).flatten(1) + layer.bias
    torch.testing.assert_close(by_place, samples.output_samples(layer, y, index))


def test_an_embedding_is_a_linear_layer_of_one_hot_inputs():
    table, ids = filled(nn.Embedding(7, 4)), torch.tensor([[1, 1, 6], [0, 3, 1]])
    site = sites_of(table, also=["embedding"])[0]
    collector = Collector([site], gradients=True)
    with collector.active():
        (table(ids) ** 3).sum().backward()
    collector.end_pass()
    [moments] = collector.moments(site)
    torch.testing.assert_close(moments.a, torch.bincount(ids.flatten(), minlength=7)[None] / 6)
    gradients = 3 * table(ids).detach().flatten(0, 1) ** 2
    torch.testing.assert_close(moments.b[0], outer(gradients) * 36)
    twin = filled(nn.Linear(7, 4, bias=False))
    with torch.no_grad():
        twin.weight.copy_(table.weight.mT)
    [twin_site] = sites_of(twin)
    a = torch.diag_embed(moments.a)
    metric = metric_of(twin_site, [Moments(a, 6, moments.b)])
    ours = decomposed_in(site, metric_of(site, [moments]))
    expected = decomposed_in(twin_site, metric)
    for got, wanted in zip(truncated(ours, 2), truncated(expected, 2), strict=True):
        torch.testing.assert_close(got.abs(), wanted.abs())
    cut_site_(site, *truncated(ours, 3))
    cut_site_(twin_site, *truncated(expected, 3))
    ours = decomposed_in(site, metric_of(site, [moments]))
    expected = decomposed_in(twin_site, metric_of(twin_site, [Moments(a, 6, moments.b)]))
    torch.testing.assert_close(ours.s, expected.s)


def test_each_weight_of_a_recurrent_layer_has_its_own_samples():
    layer, x = filled(nn.LSTM(5, 4)), batch(0, 6, 2, 5)
    sites = sites_of(layer, also=["lstm"])
    collector = Collector(sites, gradients=True)
    with collector.active():
        (layer(x)[0] ** 3).sum().backward()
    collector.end_pass()
    by_name = {site.name: collector.moments(site)[0] for site in sites}
    assert {*by_name} == {"weight_ih_l0", "weight_hh_l0"}
    y, _ = layer(x)
    torch.testing.assert_close(by_name["weight_ih_l0"].a[0], outer(x.flatten(0, 1)) / 12)
    before = torch.cat((torch.zeros(1, 2, 4, dtype=y.dtype), y[:-1])).flatten(0, 1)
    torch.testing.assert_close(by_name["weight_hh_l0"].a[0], outer(before.detach()) / 12)
    # The gates as the input of a twin: its gradient is what arrives at both products.
    gates = (F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)).detach().requires_grad_()
    twin = filled(nn.LSTM(16, 4))
    with torch.no_grad():
        twin.load_state_dict(layer.state_dict() | {"weight_ih_l0": torch.eye(16)})
        twin.bias_ih_l0.zero_()
    (g,) = torch.autograd.grad((twin(gates)[0] ** 3).sum(), gates)
    for moments in by_name.values():
        torch.testing.assert_close(moments.b[0], outer(g.flatten(0, 1)) * 12**2)
