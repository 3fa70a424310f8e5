from __future__ import annotations

import copy
import io
import json
import math
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from lowrank.nets import as_published
from methods.doubles import hook_counts, same, small_model
from orthotrain.diagnostics import ConditionMonitor, conditioning
from orthotrain.diagnostics._layer_covariance import (
    MOST_MATRICES,
    covariance_of,
)
from orthotrain.errors import ConfigError, OrthotrainWarning, ShapeError, StateError
from orthotrain.layers import (
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
    GlobalCovariancePool,
)
from orthotrain.methods import NearestOrthogonalGradient, SpectralNormalization, attach
from reference import conditioning as twins
from reference.matrices import from_spectrum

EPS = torch.finfo(torch.float64).eps
FIELDS = [
    "step", "method", "what", "layer", "rank", "size", "rtol", "condition_range",
    "condition_ridge", "condition_float32", "condition_float64", "largest", "ridge", "norm",
    "dtype", "matrices",
]  # fmt: skip
SENSES = [name for name in FIELDS if name.startswith("condition")]


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fill_(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def network(norm=None, *, channels=8, pool=None):
    """A stem that sees 27 numbers, a norm, a pool and a head."""
    pool = pool or nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    features = pool.out_features if isinstance(pool, GlobalCovariancePool) else 4 * channels
    return fill_(
        nn.Sequential(
            nn.Conv2d(3, channels, 3, bias=False),
            norm or DecorrelatedBatchNorm2d(channels, ridge=1e-2),
            pool,
            nn.Linear(features, 3),
        )
    )


def attached(model, *methods, optimizer=None, **settings):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = ConditionMonitor(settings.pop("params", ()), **settings)
    return optimizer, attach(model, optimizer, *methods, monitor)


def train(model, optimizer, steps, *, seed=0, batch=6):
    for step in range(steps):
        optimizer.zero_grad()
        model(random(batch, 3, 7, 7, seed=seed + step)).square().mean().backward()
        optimizer.step()


def of(handle, what):
    return [record for record in handle.records if record.get("what") == what]


def expect(record, twin, *, condition):
    """Record against twin; an eigenvalue is known to a few eps of the largest."""
    near = {"rel": 64 * EPS * condition}
    assert record["rank"] == twin.rank
    assert record["condition_range"] == pytest.approx(twin.on_range, **near)
    assert record["condition_float64"] == pytest.approx(twin.naive, **near)
    assert record["largest"] == pytest.approx(twin.largest, **near)
    assert record["norm"] == pytest.approx(twin.norm, **near)


# --- covariances --------------------------------------------------------------------------------


def test_the_covariance_that_enters_whitening_is_recorded_in_four_senses():
    model = network()
    optimizer, handle = attached(model)
    x = model[0](random(6, 3, 7, 7)).detach()
    train(model, optimizer, 1)
    (record,) = handle.records
    assert list(record)[: len(FIELDS)] == FIELDS
    vectors = x.movedim(1, -1).reshape(-1, 8)
    values = torch.linalg.eigvalsh(twins.covariance(vectors))
    twin = twins.readings(values, rtol=record["rtol"], ridge=1e-2)
    expect(record, twin, condition=1e4)
    assert record["condition_ridge"] == pytest.approx(twin.with_ridge, rel=1e-9)
    assert record["condition_float32"] == pytest.approx(twin.naive, rel=1e-4)
    fixed = {
        "step": 1, "method": "condition_monitor", "what": "covariance", "layer": "1", "size": 8,
        "rtol": 8 * 2.0**-46, "ridge": 1e-2, "dtype": "float64", "matrices": 1,
        "samples": 6 * 25, "input_dtype": "float32",
    }  # fmt: skip
    assert {key: record[key] for key in fixed} == fixed
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_27_inputs_seen_through_64_channels_have_rank_27_in_any_precision(dtype):
    # Inputs that differ in size by 2, so that even bfloat16 tells the smallest from its rounding.
    inputs = from_spectrum(torch.logspace(0, -0.3, 27, dtype=torch.float64), 27, 4096, seed=1)
    features = random(64, 27, dtype=torch.float64) @ inputs * 64
    x = features.T.reshape(16, 16, 16, 64).movedim(-1, 1).to(dtype)
    layer = DecorrelatedBatchNorm2d(64, ridge=1e-2)
    covariance = covariance_of(layer, x)
    record = conditioning.read_covariance("norm", covariance, rtol=None)
    assert record["rank"] == 27
    assert record["condition_range"] < 200
    assert record["condition_float64"] > 1e6
    assert record["rtol"] == 64 * max(EPS, torch.finfo(dtype).eps ** 2)
    # Judged by the precision of the covariance alone, the input's rounding would count.
    if dtype in (torch.float16, torch.bfloat16):
        assert conditioning.read_covariance("norm", covariance, rtol=64 * EPS)["rank"] == 64
    # A fixed rtol is taken as it is.
    assert conditioning.read_covariance("norm", covariance, rtol=0.9)["rank"] < 5


def stretched(shape, seed=0):
    """An activation with a mean and correlated channels."""
    x = random(*shape, seed=seed)
    mix = random(shape[1], shape[1], seed=seed + 1)
    return torch.einsum("dc,nc...->nd...", mix, x) + 3.0


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (DecorrelatedBatchNorm1d(6), (9, 6)),
        (DecorrelatedBatchNorm1d(6, group_size=2), (9, 6, 5)),
        (DecorrelatedBatchNorm2d(6, groups=2), (4, 6, 5, 3)),
        (DecorrelatedBatchNorm2d(6), (1, 6, 5, 3)),
        (DecorrelatedBatchNorm3d(6, groups=3), (3, 6, 2, 5, 3)),
    ],
    ids=["2-D", "3-D", "4-D", "one sample", "5-D"],
)
@pytest.mark.parametrize("chunk", [2**18, 7], ids=["whole", "in pieces"])
@pytest.mark.parametrize("order", ["contiguous", "channels last"])
def test_read_is_the_covariance_that_the_layer_forms(layer, shape, chunk, order, monkeypatch):
    monkeypatch.setattr("orthotrain.linalg.channel_covariance._CHUNK_ON_CPU", chunk)
    x = stretched(shape)
    if order == "channels last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    expected = layer.covariance(x.double())
    found = covariance_of(layer, x)
    torch.testing.assert_close(found.matrices, expected, rtol=64 * EPS, atol=64 * EPS * 100)
    assert found.samples == x.numel() // x.shape[1]
    assert (found.ridge, found.relative_ridge) == (layer.ridge, 0.0)


def test_a_batch_in_order_and_far_from_zero_is_read_as_well_as_any(monkeypatch):
    # In pieces, the first of which says little about the mean of the others.
    monkeypatch.setattr("orthotrain.linalg.channel_covariance._CHUNK_ON_CPU", 4 * 50)
    x = random(64, 4, 50, dtype=torch.float64) + 1e4 + torch.arange(64.0)[:, None, None]
    found = covariance_of(nn.BatchNorm1d(4), x).matrices[0]
    expected = twins.covariance(x.movedim(1, -1).reshape(-1, 4))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_batch_norm_is_read_like_whitening_of_one_group_with_its_eps_as_ridge():
    model = network(nn.BatchNorm2d(8, eps=0.5))
    one, watching = attached(model, covariances="1")
    whitened = network(DecorrelatedBatchNorm2d(8, ridge=0.5))
    other, reference = attached(whitened)
    train(model, one, 1)
    train(whitened, other, 1)
    assert watching.records == reference.records
    assert watching.records[0]["ridge"] == 0.5


def test_pooling_is_read_behind_its_reduction_for_some_of_the_batch():
    pool = GlobalCovariancePool(8, reduced_channels=5, ridge=1e-3, relative_ridge=1e-2)
    model = network(nn.Identity(), pool=pool)
    model[2].reduce[1].momentum = None
    reduced = []
    pool.reduce.register_forward_hook(lambda m, a, y: reduced.append(y.detach().double()))
    optimizer, handle = attached(model)
    train(model, optimizer, 1, batch=20)
    assert len(reduced) == 1
    rows = [reduced[0][i].flatten(1).T for i in (0, 2, 5, 7, 10, 12, 15, 17)]
    (record,) = handle.records
    found = [
        twins.readings(
            torch.linalg.eigvalsh(twins.covariance(row)),
            rtol=record["rtol"], ridge=1e-3, relative=1e-2,
        )
        for row in rows
    ]  # fmt: skip
    assert record["matrices"] == MOST_MATRICES == len(rows)
    assert record["samples"] == 25
    near = {"rel": 1e-6}

    def middle(values):
        return sorted(values)[3]  # the lower one of the two in the middle

    assert record["rank"] == middle(twin.rank for twin in found)
    assert record["worst_rank"] == min(twin.rank for twin in found)
    ranges = [twin.on_range for twin in found]
    assert record["condition_range"] == pytest.approx(middle(ranges), **near)
    assert record["worst_condition_range"] == pytest.approx(max(ranges), **near)
    ridged = [twin.with_ridge for twin in found]
    assert record["condition_ridge"] == pytest.approx(middle(ridged), **near)
    assert record["worst_condition_ridge"] == pytest.approx(max(ridged), **near)
    assert record["ridge"] == pytest.approx(middle(twin.ridge for twin in found), **near)


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_read_is_the_covariance_that_pooling_forms(shrinkage):
    x = stretched((5, 6, 4, 3))
    layer = GlobalCovariancePool(6, shrinkage=shrinkage)
    expected = layer.covariance(x)
    assert expected.dtype == torch.float64
    found = covariance_of(layer, x)
    assert found.samples == 12
    torch.testing.assert_close(found.matrices, expected, rtol=64 * EPS, atol=64 * EPS * 100)


@pytest.mark.parametrize("kind", [GlobalCovariancePool, DecorrelatedBatchNorm2d])
def test_a_subclass_with_a_covariance_of_its_own_is_asked_for_it(kind):
    class Own(kind):
        def covariance(self, x):
            return 3 * super().covariance(x)

    layer, plain = Own(8), kind(8)
    optimizer, handle = attached(
        network(layer) if kind is DecorrelatedBatchNorm2d else network(nn.Identity(), pool=layer)
    )
    model = handle.run.model
    x = model[0](random(6, 3, 7, 7)).detach()
    train(model, optimizer, 1)
    (record,) = handle.records
    largest = torch.linalg.eigvalsh(3 * plain.covariance(x))[:, -1].median()
    assert record["largest"] == pytest.approx(largest.item(), rel=1e-5)


def test_groups_have_one_record_with_the_median_and_the_worst():
    layer = DecorrelatedBatchNorm1d(6, groups=3, ridge=0.25)
    model = nn.Sequential(layer, nn.Linear(6, 2))
    optimizer, handle = attached(model)
    # Variances of (4, 1), (9, 0) and (64, 1), without correlation: conditions 4, inf and 64.
    signs = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    x = torch.cat([signs * torch.tensor(s) for s in ([2.0, 1], [3.0, 0], [8.0, 1])], dim=1)
    model(x).sum().backward()
    optimizer.step()
    (record,) = handle.records
    near = {"rel": 1e-12}
    assert (record["matrices"], record["size"]) == (3, 2)
    assert (record["rank"], record["worst_rank"]) == (2, 1)
    assert record["condition_range"] == pytest.approx(4.0, **near)
    assert record["worst_condition_range"] == pytest.approx(64.0, **near)
    assert record["condition_ridge"] == pytest.approx(37.0, **near)
    assert record["worst_condition_ridge"] == pytest.approx(64.25 / 1.25, **near)
    assert record["condition_float64"] == pytest.approx(64.0, **near)
    assert record["largest"] == pytest.approx(9.0, **near)


class Foreign(nn.Module):
    """A spectral layer of somebody else's, whose covariance runs a batch norm of its own."""

    def __init__(self, ridge=0.5):
        super().__init__()
        self.inner = nn.BatchNorm1d(4)
        self.ridge = ridge
        self.refuse = False

    def covariance(self, x):
        if self.refuse:
            raise ShapeError("Foreign needs another shape")
        y = self.inner(x)
        return (y.mT @ y / len(y))[None]

    def forward(self, x):
        return x @ torch.linalg.inv(self.covariance(x)[0] + self.ridge * torch.eye(4))


def test_any_module_with_a_covariance_and_a_ridge_is_watched_and_its_buffers_left_alone():
    def run(*methods):
        model = fill_(nn.Sequential(nn.Linear(3, 4), Foreign()))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = attach(model, optimizer, *methods)
        for seed in range(3):
            optimizer.zero_grad()
            model(random(9, 3, seed=seed)).square().mean().backward()
            optimizer.step()
        return model, handle

    plain, _ = run(SpectralNormalization("0"))
    watched, handle = run(SpectralNormalization("0"), ConditionMonitor())
    assert same(dict(plain.state_dict()), dict(watched.state_dict()))
    assert watched[1].inner.num_batches_tracked == 3
    records = of(handle, "covariance")
    assert [r["layer"] for r in records] == ["1"] * 3
    assert (records[0]["ridge"], records[0]["samples"]) == (0.5, None)
    assert records[0]["dtype"] == "float32"


def test_an_input_that_the_layer_refuses_is_left_to_the_layer():
    layer = Foreign()
    layer.refuse = True
    model = nn.Sequential(nn.Linear(3, 4), layer)
    _optimizer, _handle = attached(model)
    with pytest.raises(ShapeError, match="another shape"):
        model(random(5, 3))
    for norm in (DecorrelatedBatchNorm2d(3), nn.BatchNorm2d(3)):
        for x in (random(4), random(2, 5, 2, 2), random(0, 3, 2, 2), torch.ones(2, 3).long()):
            assert covariance_of(norm, x) is None


# --- which forward pass -------------------------------------------------------------------------


@pytest.fixture
def looks(monkeypatch):
    """Counts how often a covariance is formed."""
    counted = []

    def count(module, x):
        counted.append(x)
        return covariance_of(module, x)

    monkeypatch.setattr(conditioning, "covariance_of", count)
    return counted


def test_steps_without_a_look_form_no_covariance(looks):
    model = network()
    optimizer, handle = attached(model, params="0", every_steps=3)
    seen = []
    for _ in range(7):
        train(model, optimizer, 1)
        seen.append(len(looks))
    assert seen == [0, 0, 1, 1, 1, 2, 2]
    assert sorted({r["step"] for r in handle.records}) == [3, 6]
    assert [r["what"] for r in handle.records[:4]] == ["covariance", "weight", "gradient", "update"]


def test_the_first_training_pass_of_a_step_is_read_and_no_other(looks):
    model = network()
    optimizer, handle = attached(model)
    model.eval()
    model(random(6, 3, 7, 7, seed=7))
    model.train()
    with torch.no_grad():
        model(random(6, 3, 7, 7, seed=8))
    first = random(6, 3, 7, 7, seed=9)
    for x in (first, random(6, 3, 7, 7, seed=10)):
        model(x).square().mean().backward()
    optimizer.step()
    assert len(looks) == 1
    optimizer.zero_grad()
    fresh = network()
    other, alone = attached(fresh)
    fresh(first)
    other.step()
    assert handle.records == alone.records


def test_a_look_in_the_forward_pass_counts_as_time_of_the_monitor():
    model = network()
    _, handle = attached(model)
    model.eval()(random(6, 3, 7, 7))
    assert handle.seconds == {"condition_monitor": 0.0}
    model.train()(random(6, 3, 7, 7))
    assert handle.seconds["condition_monitor"] > 0


def test_a_layer_used_twice_or_with_a_keyword_is_read_at_its_first_use():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = DecorrelatedBatchNorm1d(3)
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.norm(x=self.norm(x=x) * 5))

    model = Twice()
    optimizer, handle = attached(model)
    x = stretched((20, 3))
    model(x).sum().backward()
    optimizer.step()
    (record,) = handle.records
    twin = twins.readings(torch.linalg.eigvalsh(twins.covariance(x)), rtol=1e-12, ridge=1e-3)
    expect(record, twin, condition=1e3)


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(3, 4), DecorrelatedBatchNorm1d(4))

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=reentrant)

    model = fill_(Checkpointed())
    optimizer, handle = attached(model)
    x = random(9, 3).requires_grad_()
    model(x).square().mean().backward()
    optimizer.step()
    assert [r["layer"] for r in handle.records] == ["body.1"]


def test_a_layer_that_was_not_seen_is_named_once():
    model = network()
    model[1].eval()
    optimizer, handle = attached(model, params="0")
    with pytest.warns(OrthotrainWarning, match="no forward pass of 1 in training") as caught:
        train(model, optimizer, 3)
    assert len(caught) == 1
    assert not of(handle, "covariance")
    assert len(of(handle, "weight")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("attach_first", [True, False])
def test_a_compiled_model_runs_no_hooks_and_says_so(attach_first):
    torch.compiler.reset()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, ConditionMonitor("0")) if attach_first else None
    compiled = torch.compile(model, backend="eager")
    handle = handle or attach(compiled, optimizer, ConditionMonitor("0"))
    with pytest.warns(OrthotrainWarning, match=r"torch\.compile"):
        train(compiled, optimizer, 2)
    assert [r["what"] for r in handle.records] == ["weight", "gradient", "update"] * 2
    torch.compiler.reset()


@pytest.mark.slow
def test_a_layer_left_out_of_compilation_is_seen():
    torch.compiler.reset()
    model = network()
    model[1] = torch.compiler.disable(model[1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, ConditionMonitor())
    train(torch.compile(model, backend="eager"), optimizer, 2)
    assert [r["step"] for r in of(handle, "covariance")] == [1, 2]
    torch.compiler.reset()


def test_names_go_through_ddp(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = DistributedDataParallel(network())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        handle = attach(model, optimizer, ConditionMonitor("0", covariances="1"))
        train(model, optimizer, 1)
    finally:
        dist.destroy_process_group()
    assert [(r["what"], r["layer"]) for r in handle.records] == [
        ("covariance", "1"), ("weight", "0"), ("gradient", "0"), ("update", "0"),
    ]  # fmt: skip


# --- weights, gradients, updates ----------------------------------------------------------------


def test_weight_gradient_and_update_of_a_step():
    model = fill_(nn.Sequential(nn.Linear(5, 4, bias=False))).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    _, handle = attached(model, params="0", optimizer=optimizer)
    old = model[0].weight.detach().clone()
    for scale in (1.0, 3.0):
        old = model[0].weight.detach().clone()
        optimizer.zero_grad()
        (model(random(7, 5, dtype=torch.float64)).square().mean() * scale).backward()
        optimizer.step()
    new, gradient = model[0].weight.detach(), model[0].weight.grad
    last = {r["what"]: r for r in handle.records if r["step"] == 2}
    for what, matrix in (("weight", new), ("gradient", gradient), ("update", new - old)):
        twin = twins.readings(torch.linalg.svdvals(matrix), rtol=5 * EPS)
        expect(last[what], twin, condition=1e3)
        assert last[what]["condition_ridge"] is last[what]["ridge"] is None
        assert (last[what]["size"], last[what]["dtype"]) == (4, "float64")
        assert list(last[what]) == [*FIELDS, "route"]


def test_the_gradient_is_the_one_the_optimizer_gets_and_the_update_what_it_did():
    model = fill_(nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    _, handle = attached(
        model, NearestOrthogonalGradient("0"), SpectralNormalization("0"),
        params=("0", "1"), optimizer=optimizer,
    )  # fmt: skip
    old = model[0].weight.detach().clone()
    model(random(7, 5)).square().mean().backward()
    optimizer.step()
    by = {(r.get("what"), r["layer"]): r for r in handle.records}
    assert by["gradient", "0"]["condition_range"] == pytest.approx(1.0, rel=1e-5)
    assert by["gradient", "1"]["condition_range"] > 1.1
    # What spectral normalization did after the step is part of it.
    assert by["weight", "0"]["largest"] == pytest.approx(1.0, rel=1e-5)
    delta = torch.linalg.norm((model[0].weight.detach() - old).double())
    assert by["update", "0"]["norm"] == pytest.approx(delta.item(), rel=1e-5)


def test_an_update_far_smaller_than_the_weight_is_not_read_into_its_rounding():
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(100 * random(16, 16))
    optimizer, handle = attached(model, params="0")
    model[0].weight.grad = torch.outer(random(16, seed=1), random(16, seed=2)) * 1e-2
    optimizer.step()
    (update,) = of(handle, "update")
    assert update["rank"] == 1
    assert update["rtol"] > 16 * torch.finfo(torch.float32).eps
    (gradient,) = of(handle, "gradient")
    assert gradient["rtol"] == 16 * torch.finfo(torch.float32).eps


def test_a_step_lost_in_rounding_and_a_step_of_zero():
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    fill_(model)
    optimizer, handle = attached(model, params="0")
    for size in (1e-7, 0.0):
        model[0].weight.grad = size * torch.eye(4)
        optimizer.step()
    small, zero = of(handle, "update")
    assert small["rtol"] == 0.5
    assert (zero["rank"], zero["norm"], zero["condition_range"]) == (0, 0.0, None)


def test_groups_of_a_convolution_and_a_transposed_one():
    model = fill_(nn.Sequential(nn.Conv2d(4, 6, 2, groups=2), nn.ConvTranspose2d(6, 5, 2)))
    optimizer, handle = attached(model, params=("0", "1"))
    model(random(2, 4, 5, 5)).square().mean().backward()
    optimizer.step()
    grouped, transposed = of(handle, "weight")
    assert (grouped["size"], grouped["matrices"], grouped["worst_rank"]) == (3, 2, 3)
    blocks = model[0].weight.detach().double().reshape(2, 3, 8)
    ranges = [(s[0] / s[-1]).item() for s in torch.linalg.svdvals(blocks)]
    assert grouped["condition_range"] == pytest.approx(min(ranges), rel=1e-9)
    assert grouped["worst_condition_range"] == pytest.approx(max(ranges), rel=1e-9)
    assert grouped["norm"] == pytest.approx(model[0].weight.norm().item(), rel=1e-6)
    assert (transposed["size"], transposed["matrices"]) == (5, 1)


def test_the_scale_of_a_gradient_scaler_is_taken_out():
    model = fill_(nn.Sequential(nn.Linear(4, 3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    _, handle = attached(model, params="0", optimizer=optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    x = random(5, 4)
    scaler.scale(model(x).square().mean()).backward()
    scaler.step(optimizer)
    scaler.update()
    fresh = fill_(nn.Sequential(nn.Linear(4, 3)))
    fresh(x).square().mean().backward()
    (gradient,) = of(handle, "gradient")
    assert gradient["norm"] == pytest.approx(fresh[0].weight.grad.norm().item(), rel=1e-5)


def test_a_step_that_is_skipped_is_no_step():
    model = network()
    optimizer, handle = attached(model, params="0")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for scale in (math.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale(model(random(6, 3, 7, 7)).mean() * scale).backward()
        scaler.step(optimizer)
        scaler.update()
    assert [(r["step"], r["what"]) for r in handle.records] == [
        (1, "covariance"), (1, "weight"), (1, "gradient"), (1, "update"),
    ]  # fmt: skip


@pytest.mark.parametrize("others", [(), (NearestOrthogonalGradient("0"),)])
def test_a_gradient_that_a_closure_computes(others):
    model = fill_(nn.Sequential(nn.Linear(4, 3)))
    optimizer, handle = attached(model, *others, params="0")

    def closure():
        optimizer.zero_grad()
        loss = model(random(5, 4, seed=step)).square().mean()
        loss.backward()
        return loss

    for step in range(2):
        optimizer.step(closure)
        got = of(handle, "gradient")[-1]
        assert got["step"] == step + 1
        assert got["norm"] == pytest.approx(model[0].weight.grad.norm().item(), rel=1e-6)
    assert len(of(handle, "update")) == 2


def test_without_a_gradient_only_weight_and_update_are_read():
    model = small_model()
    optimizer, handle = attached(model, params="0")
    optimizer.step()
    assert [r["what"] for r in handle.records] == ["weight", "update"]


def test_called_by_hand():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, ConditionMonitor("0"), auto=False)
    model(random(6, 3, 7, 7)).mean().backward()
    optimizer.step()
    handle.step()
    assert [r["what"] for r in handle.records] == ["covariance", "weight"]
    model(random(6, 3, 7, 7)).mean().backward()
    handle.before_step()
    optimizer.step()
    handle.step()
    assert len(handle.records) == 2 + 4


def test_a_layer_that_becomes_low_rank_is_seen_by_its_core():
    model = fill_(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    low = as_published(
        delay_steps=2, every_steps=2, rank_rtol=0.5, dense_last=False, only_if_cheaper=False
    )
    optimizer, handle = attached(model, low, params="0")
    for seed in range(3):
        optimizer.zero_grad()
        model(random(9, 8, seed=seed)).square().mean().backward()
        optimizer.step()
    rank = model[0].rank
    watched = [r for r in handle.records if r["method"] == "condition_monitor"]
    assert [(r["step"], r["what"], r["size"]) for r in watched] == [
        (1, "weight", 8), (1, "gradient", 8), (1, "update", 8),
        (2, "weight", rank), (2, "gradient", 8), (2, "update", 8),
        (3, "weight", rank), (3, "gradient", rank), (3, "update", rank),
    ]  # fmt: skip
    s = torch.linalg.svdvals(model[0].weight.detach().double())[:rank]
    assert watched[6]["condition_range"] == pytest.approx((s[0] / s[-1]).item(), rel=1e-5)


# --- input that cannot be read ------------------------------------------------------------------


def test_nan_is_recorded_as_unknown_and_warned_about_once():
    model = network(nn.BatchNorm2d(8))
    optimizer, handle = attached(model, params=("0", "3"), covariances="1")
    x = random(6, 3, 7, 7)
    x[0, 0, 0, 0] = math.nan

    def step():
        model(x).mean().backward()
        optimizer.step()

    with pytest.warns(OrthotrainWarning) as caught:
        step()
    step()  # nothing more is said, and a warning would be an error
    messages = [str(w.message) for w in caught]
    assert len(messages) == len(set(messages)) == 7  # one covariance, two weights in three ways
    assert sum("covariance of 1 holds NaN" in message for message in messages) == 1
    assert len(handle.records) == 14
    for record in handle.records:
        assert record["rank"] is record["largest"] is record["norm"] is None
        assert all(record[sense] is None for sense in SENSES)
        assert record["size"] == {"1": 8, "0": 8, "3": 3}[record["layer"]]
        json.dumps(record, allow_nan=False)
    assert not handle.summary().notes


def test_fewer_samples_than_channels_shows_in_the_rank():
    model = nn.Sequential(nn.Linear(3, 6), DecorrelatedBatchNorm1d(6, ridge=0.1))
    optimizer, handle = attached(model)
    for count in (2, 3):
        model(random(count, 3)).sum().backward()
        optimizer.step()
    two, three = handle.records
    assert (two["samples"], two["rank"], two["condition_range"]) == (2, 1, 1.0)
    assert (three["samples"], three["rank"], three["size"]) == (3, 2, 6)


def test_a_single_sample_has_no_covariance():
    model = nn.Sequential(nn.Linear(3, 4), Foreign())
    model[1].inner = nn.Identity()
    layer = nn.BatchNorm1d(4)
    record = conditioning.read_covariance("x", covariance_of(layer, random(1, 4)), rtol=None)
    assert (record["samples"], record["rank"], record["largest"]) == (1, 0, 0.0)
    assert record["condition_range"] is None
    assert record["condition_ridge"] == 1.0  # the ridge alone
    assert record["condition_float32"] is record["condition_float64"] is None


def test_without_a_ridge_there_is_no_condition_with_it():
    pool = GlobalCovariancePool(8, relative_ridge=0.0)
    optimizer, handle = attached(model := network(nn.Identity(), pool=pool))
    train(model, optimizer, 1)
    (record,) = handle.records
    assert (record["ridge"], record["condition_ridge"]) == (0.0, None)
    assert record["worst_condition_ridge"] is None
    assert record["condition_range"] > 1


def test_a_decomposition_that_fails_is_recorded_as_unknown(monkeypatch):
    def fail(a):
        raise torch.linalg.LinAlgError("no")

    model = small_model()
    optimizer, handle = attached(model, params="0")
    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    with pytest.warns(OrthotrainWarning, match="no decomposition"):
        optimizer.step()
    assert [r["rank"] for r in handle.records] == [None, None]


# --- being attached -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["whitening", "pooling", "batch norm"])
def test_training_is_the_same_with_and_without_the_monitor(kind):
    def run(*methods):
        model = {
            "whitening": lambda: network(DecorrelatedBatchNorm2d(8, groups=2)),
            "pooling": lambda: network(
                nn.BatchNorm2d(8), pool=GlobalCovariancePool(8, reduced_channels=4)
            ),
            "batch norm": lambda: network(nn.BatchNorm2d(8)),
        }[kind]()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        state = torch.get_rng_state()
        if methods:
            attach(model, optimizer, *methods)
        train(model, optimizer, 3)
        assert torch.equal(torch.get_rng_state(), state)
        return dict(model.state_dict())

    covariances = "1" if kind == "batch norm" else None
    assert same(run(ConditionMonitor(("0", "3"), covariances=covariances)), run())


def test_detach_leaves_nothing_behind():
    pool = GlobalCovariancePool(8, reduced_channels=4)
    model = network(pool=pool)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    modules = list(model.modules())
    before = [hook_counts(m, optimizer) for m in modules]
    handle = attach(model, optimizer, ConditionMonitor("0"))
    assert [hook_counts(m, optimizer) for m in modules] != before
    train(model, optimizer, 1)
    handle.detach()
    assert [hook_counts(m, optimizer) for m in modules] == before
    count = len(handle.records)
    train(model, optimizer, 1)
    assert len(handle.records) == count == 5


def test_copies_of_the_model_carry_nothing(looks):
    model = network(pool=GlobalCovariancePool(8, reduced_channels=4))
    optimizer, handle = attached(model, params="0")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies = [copy.deepcopy(model), torch.load(file, weights_only=False)]
    for twin in copies:
        twin(random(6, 3, 7, 7)).mean().backward()
    assert not looks
    train(model, optimizer, 1)
    assert len(handle.records) == 5
    for twin in copies:
        fresh = hook_counts(network(pool=GlobalCovariancePool(8, reduced_channels=4))[1], optimizer)
        again, own = attached(twin)
        train(twin, again, 1)
        assert len(own.records) == 2
        own.detach()
        assert hook_counts(twin[1], optimizer) == fresh


def test_resume_keeps_the_schedule_and_forgets_what_was_seen():
    model = network()
    optimizer, handle = attached(model, params="0", every_steps=3)
    train(model, optimizer, 4)
    state = handle.state_dict()
    assert state["methods"]["condition_monitor"] == {}
    model(random(6, 3, 7, 7))
    again = network()
    again_optimizer, again_handle = attached(again, params="0", every_steps=3)
    train(again, again_optimizer, 2)
    again(random(6, 3, 7, 7, seed=99))  # seen for a step that does not come
    again_handle.load_state_dict(state)
    again.load_state_dict(model.state_dict())
    for net, o, h in ((model, optimizer, handle), (again, again_optimizer, again_handle)):
        del h.records[:]
        train(net, o, 2, seed=4)
    assert handle.records == again_handle.records
    assert {r["step"] for r in handle.records} == {6}
    with pytest.raises(StateError, match="keeps no state"):
        handle.load_state_dict({"step": 1, "methods": {"condition_monitor": {"looks": []}}})


def test_plan_and_notes_name_what_is_watched_and_the_worst():
    model = network()
    optimizer, handle = attached(model, params=("0", "3"), every_steps=2)
    assert "every 2 steps" in handle.plan
    train(model, optimizer, 2)
    record, worst = of(handle, "covariance")[0], max(
        of(handle, "weight"), key=lambda r: r["condition_range"]
    )  # fmt: skip
    notes = handle.summary().notes
    assert len(notes) == 4
    for number in (f"{record['rtol']:.1e}", f"{record['condition_range']:.2g}"):
        assert number in notes[0]
    assert f"weight of {worst['layer']}, worst of 2" in notes[1]
    optimizer = torch.optim.SGD((model := network()).parameters(), lr=1.0)
    late = attach(model, optimizer, ConditionMonitor(every_steps=9), total_steps=8)
    assert "never" in late.plan


def test_what_is_watched_can_be_chosen():
    def watched(**settings):
        model = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), DecorrelatedBatchNorm1d(4), nn.Linear(4, 2)
        )
        optimizer, handle = attached(model, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(random(9, 3)).sum().backward()
            optimizer.step()
        return [(r["what"], r["layer"]) for r in handle.records if r["what"] != "update"]

    assert watched() == [("covariance", "2")]
    assert watched(covariances="*") == [("covariance", "1"), ("covariance", "2")]
    assert watched(covariances=("1",)) == [("covariance", "1")]
    assert watched(covariances=(), params="3") == [("weight", "3"), ("gradient", "3")]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"every_steps": 0}, "every_steps"),
        ({"rtol": 1.0}, "rtol"),
        ({"rtol": -0.1}, "rtol"),
        ({"covariances": ()}, "nothing to watch"),
        ({"covariances": "0"}, "means Conv2d"),
        ({"covariances": "norm"}, "'norm'"),
        ({"params": "norm"}, "'norm'"),
        ({"params": "*.bias"}, "is no matrix"),
    ],
)
def test_settings_that_cannot_work(settings, words):
    model = network()
    with pytest.raises(ConfigError, match=words):
        attached(model, **settings)
    assert not model[1]._forward_pre_hooks
