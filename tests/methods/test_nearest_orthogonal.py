"""NOG does what its formula says, to the right matrices, under every way to train."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrizations import orthogonal

from lowrank.nets import as_published
from methods import lockstep, nog_worker
from methods.doubles import same, small_model
from methods.lockstep import KINDS, Kind, agree, loss_of, make_layer, seeded
from orthotrain.diagnostics import ConditionMonitor
from orthotrain.errors import ConfigError, NonFiniteError, OrthotrainWarning, StateError
from orthotrain.linalg import polar_factor
from orthotrain.methods import NearestOrthogonalGradient, OptimalLearningRate, attach
from processes import outcomes_of
from reference import gradient_methods as reference
from reference.gradient_methods import Settings
from reference.matrices import from_spectrum, log_spectrum

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD momentum decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.05, fused=True),
    "AdamW tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.05), foreach=False),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=0.05, amsgrad=True),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=0.05),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=0.05),
    "RAdam": lambda p: torch.optim.RAdam(p, lr=0.05),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.05, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05),
    "Adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "Adafactor": lambda p: torch.optim.Adafactor(p, lr=0.05),
    "ASGD": lambda p: torch.optim.ASGD(p, lr=0.05),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.05),
    "maximize": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, maximize=True),
}
MOMENTUM = OPTIMIZERS["SGD momentum decay"]


def backward(model, *, scale=1.0):
    """As the double of that name, on a batch that gives gradients of full rank."""
    loss = loss_on_batch(model) * scale
    loss.backward()
    return loss


def loss_on_batch(model):
    return (model(seeded((6, 3), 9, torch.float32)) ** 2).mean()


# --- ten steps beside the twin ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("scale", ["none", "gradient_norm", "rms"])
@pytest.mark.parametrize("when", ["gradient", "update"])
def test_every_layer_in_lockstep_with_the_twin(kind, scale, when):
    method = NearestOrthogonalGradient("0", when=when, scale=scale)
    agree(lockstep.lockstep(kind, [method], Settings(nog=when, scale=scale), MOMENTUM))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("when", ["gradient", "update"])
def test_every_optimizer_in_lockstep_with_the_twin(optimizer, when):
    method = NearestOrthogonalGradient("0", when=when)
    agree(lockstep.lockstep(KINDS["grouped"], [method], Settings(nog=when), optimizer))


def test_muon_in_lockstep_with_the_twin():
    # Muon's own iteration runs in bfloat16, so only what comes after the step can be held to it.
    pairs = lockstep.lockstep(
        KINDS["linear"],
        [NearestOrthogonalGradient("0", when="update")],
        Settings(nog="update"),
        lambda p: torch.optim.Muon(p, lr=0.05),
    )
    agree(pairs)


# --- what it makes of a gradient --------------------------------------------------------------


def one_step(gradient, *, weight=None, lr=1.0, **settings):
    """A linear layer's weight before and after one SGD step with this gradient."""
    before = torch.zeros_like(gradient) if weight is None else weight
    method = NearestOrthogonalGradient("0", record_every=1, **settings)
    return before, *lockstep.one_step(method, before, gradient, lr=lr)


@pytest.mark.parametrize("when", ["gradient", "update"])
@pytest.mark.parametrize("shape", [(5, 5), (8, 3), (3, 8), (1, 4), (4, 1)])
def test_the_first_step_is_orthonormal_against_the_gradient(when, shape):
    g = seeded(shape, 3)
    before, after, _ = one_step(g, lr=0.5, when=when)
    step = (before - after) / 0.5
    small = step @ step.mT if shape[0] <= shape[1] else step.mT @ step
    torch.testing.assert_close(small, torch.eye(min(shape), dtype=g.dtype), rtol=0, atol=1e-12)
    # The nearest one: <G, R> is the sum of the singular values, the most that any R can reach.
    most = torch.linalg.svdvals(g).sum()
    torch.testing.assert_close((g * step).sum(), most, rtol=1e-12, atol=0)


@pytest.mark.parametrize("when", ["gradient", "update"])
@pytest.mark.parametrize("scale", ["none", "gradient_norm", "rms"])
@pytest.mark.parametrize("complete", [False, True])
def test_a_zero_gradient_takes_no_step(when, scale, complete):
    before, after, handle = one_step(
        torch.zeros(4, 3), weight=torch.ones(4, 3), when=when, scale=scale, complete=complete
    )
    assert torch.equal(before, after)
    record = handle.records[-1]
    assert (record["gradient_rank"], record["gradient_condition"]) == (0, None)
    assert (record["update_norm"], record["update_rank"]) == (0.0, 0)


@pytest.mark.parametrize("when", ["gradient", "update"])
def test_null_directions_stay_zero_unless_completed(when):
    g = from_spectrum([3.0, 0.5], 6, 4)
    _, after, _ = one_step(g, when=when)
    s = torch.linalg.svdvals(after)
    torch.testing.assert_close(
        s, torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=g.dtype), atol=1e-7, rtol=0
    )
    _, after, _ = one_step(g, when=when, complete=True)
    torch.testing.assert_close(
        torch.linalg.svdvals(after), torch.ones(4, dtype=g.dtype), atol=1e-7, rtol=0
    )


@pytest.mark.parametrize("scale", ["none", "gradient_norm", "rms"])
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_only_the_norm_that_is_kept_follows_the_size_of_the_gradient(scale, factor):
    g = seeded((6, 4), 5)
    _, plain, _ = one_step(g, scale=scale)
    _, scaled, _ = one_step(factor * g, scale=scale)
    expected = plain * factor if scale == "gradient_norm" else plain
    torch.testing.assert_close(scaled, expected, rtol=1e-9, atol=0)


def test_momentum_makes_the_published_step_oblique_and_ours_not():
    conditions = {}
    for when in ("gradient", "update"):
        layer = make_layer(Kind(lambda: nn.Linear(16, 16, bias=False), (64, 16)))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        method = NearestOrthogonalGradient("weight", when=when, record_every=1)
        handle = attach(layer, optimizer, method)
        for step in range(12):
            optimizer.zero_grad()
            loss_of(layer, None, seeded((64, 16), step)).backward()
            optimizer.step()
        conditions[when] = handle.records[-1]["update_condition"]
    assert conditions["gradient"] > 1.5
    assert conditions["update"] == pytest.approx(1, abs=1e-9)


def test_an_update_below_the_rounding_of_the_weights_is_null():
    # Beside weights of size one, float32 keeps steps of 1e-4 to three digits only.
    g = from_spectrum(log_spectrum(8, 1e6), 8, 8).float()
    weight = seeded((8, 8), 4, torch.float32)
    before, after, _ = one_step(1e-4 * g, weight=weight, when="update", scale="gradient_norm")
    s = torch.linalg.svdvals((after - before).double())
    kept = int((s > 0.5 * s[0]).sum())
    assert 3 <= kept < 8
    # What was kept is along the gradient's own leading directions.
    u, _, vh = torch.linalg.svd(g.double())
    wanted = -u[:, :kept] @ vh[:kept]
    step = (after - before).double() / float(s[0])
    assert float((step - wanted).norm()) < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_decomposed_in_a_wider_one(dtype):
    g = from_spectrum(log_spectrum(4, 20), 6, 4).to(dtype)
    _, after, _ = one_step(g)
    assert after.dtype == dtype
    expected = reference.nearest_orthogonal(-g)
    torch.testing.assert_close(after.double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps)


# --- which matrices ---------------------------------------------------------------------------


def gradient_after(model, names, *, seed=11, **settings):
    """Gradients before and after NOG, of every parameter by name."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attach(model, optimizer, NearestOrthogonalGradient(names, **settings))
    before = {}
    for i, (name, parameter) in enumerate(model.named_parameters()):
        parameter.grad = seeded(tuple(parameter.shape), seed + i, parameter.dtype)
        before[name] = parameter.grad.clone()
    optimizer.step()
    return before, {name: p.grad for name, p in model.named_parameters()}


def test_attention_projections_are_three_matrices():
    model = nn.Sequential(nn.MultiheadAttention(4, 2, dtype=torch.float64))
    before, after = gradient_after(model, ["0.in_proj_weight", "0.out_proj"])
    for old, new in zip(
        before["0.in_proj_weight"].chunk(3), after["0.in_proj_weight"].chunk(3), strict=True
    ):
        torch.testing.assert_close(new, polar_factor(old))
    torch.testing.assert_close(
        after["0.out_proj.weight"], polar_factor(before["0.out_proj.weight"])
    )
    assert torch.equal(before["0.in_proj_bias"], after["0.in_proj_bias"])


def test_transformers_conv1d_has_its_inputs_first():
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3, 7, dtype=torch.float64))

    before, after = gradient_after(nn.Sequential(Conv1D()), "0", scale="rms")
    expected = 0.2 * 7**0.5 * polar_factor(before["0.weight"].mT).mT
    torch.testing.assert_close(after["0.weight"], expected)


def test_a_parametrized_weight_is_meant_by_its_layer_name():
    with torch.random.fork_rng(devices=[]):
        layer = parametrizations.spectral_norm(nn.Conv2d(2, 3, 2, dtype=torch.float64))
    model = nn.Sequential(layer)
    before, after = gradient_after(model, "0")
    name = "0.parametrizations.weight.original"
    torch.testing.assert_close(after[name].flatten(1), polar_factor(before[name].flatten(1)))
    assert torch.equal(before["0.bias"], after["0.bias"])


def test_a_transposed_convolution_under_a_parametrization_keeps_its_meaning():
    with torch.random.fork_rng(devices=[]):
        layer = nn.ConvTranspose2d(2, 3, 2, bias=False, dtype=torch.float64)
        parametrizations.spectral_norm(layer)
    before, after = gradient_after(nn.Sequential(layer), "0")
    (name,) = before
    (matrix,) = reference.matrices_of(before[name], transposed=True)
    expected = reference.weight_of(
        [reference.nearest_orthogonal(matrix)], before[name].shape, transposed=True
    )
    torch.testing.assert_close(after[name], expected)


def test_records_carry_the_layer_name_also_under_a_parametrization():
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(orthogonal(nn.Linear(3, 3, bias=False)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, NearestOrthogonalGradient("0", record_every=1))
    model(seeded((4, 3), 1, torch.float32)).square().sum().backward()
    optimizer.step()
    assert [record["layer"] for record in handle.records] == ["0"]


def test_same_shapes_share_a_decomposition_and_do_not_mix():
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False, dtype=torch.float64) for _ in range(3)))
    before, after = gradient_after(model, "*", scale="gradient_norm")
    for name, old in before.items():
        q = polar_factor(old)
        torch.testing.assert_close(after[name], q * old.norm() / q.norm())


def test_a_core_is_a_matrix_like_any_other():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    attach(
        model,
        optimizer,
        as_published(
            delay_steps=2, every_steps=50, rank_rtol=0.0, dense_last=False, only_if_cheaper=False
        ),
        NearestOrthogonalGradient(["0", "2"]),
    )
    for step in range(4):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()
        if step != 1:  # the step at which the shape changes clears the gradient
            r = model[0].core.grad if step > 1 else model[0].weight.grad
            small = r @ r.mT if r.shape[0] <= r.shape[1] else r.mT @ r
            torch.testing.assert_close(small, torch.eye(len(small)), rtol=0, atol=1e-5)
    assert model[0].core.shape == (3, 3)


def test_any_memory_format():
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        layer = make_layer(KINDS["convolution"]).to(memory_format=memory_format)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        attach(layer, optimizer, NearestOrthogonalGradient("weight"))
        for step in range(3):
            optimizer.zero_grad()
            loss_of(layer, None, seeded((3, 2, 5, 5), step)).backward()
            layer.weight.grad = layer.weight.grad.contiguous(memory_format=memory_format)
            optimizer.step()
            assert layer.weight.grad.is_contiguous(memory_format=memory_format)
        results.append(layer.weight.detach())
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


# --- ways to train ----------------------------------------------------------------------------


def train(make_step, *, methods, steps=4, optimizer=None):
    """The weights after a few steps of ``make_step(model, optimizer)()``."""
    model = small_model()
    optimizer = (optimizer or MOMENTUM)(model.parameters())
    handle = attach(model, optimizer, *methods)
    step = make_step(model, optimizer)
    for _ in range(steps):
        step()
    return [p.detach().clone() for p in model.parameters()], handle


def plain(model, optimizer):
    def step():
        optimizer.zero_grad()
        backward(model)
        optimizer.step()

    return step


METHODS = {
    "gradient": [NearestOrthogonalGradient("0", record_every=1)],
    "kept norm": [NearestOrthogonalGradient("0", scale="gradient_norm", record_every=1)],
    "update": [NearestOrthogonalGradient("0", when="update", record_every=1)],
    "with a learning rate": [
        NearestOrthogonalGradient("0", record_every=1),
        OptimalLearningRate("0", record_every=1),
    ],
}
methods = pytest.mark.parametrize("methods", METHODS.values(), ids=METHODS)


def close(a, b, tolerance=1e-5):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@methods
def test_accumulated_gradients_are_one_gradient(methods):
    def accumulating(model, optimizer):
        def step():
            optimizer.zero_grad()
            for _ in range(4):
                backward(model, scale=0.25)
            optimizer.step()

        return step

    close(train(accumulating, methods=methods)[0], train(plain, methods=methods)[0])


@methods
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("optimizer", ["SGD", "fused SGD", "fused AdamW"])
def test_grad_scaler_changes_nothing(methods, optimizer, unscale):
    make = {
        "SGD": MOMENTUM,
        "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
        "fused AdamW": OPTIMIZERS["AdamW fused"],
    }[optimizer]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def scaled(model, optimizer):
        def step():
            optimizer.zero_grad()
            scaler.scale(loss_on_batch(model)).backward()
            if unscale:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()

        return step

    with_scaler, handle = train(scaled, methods=methods, optimizer=make)
    without, other = train(plain, methods=methods, optimizer=make)
    close(with_scaler, without)
    for mine, theirs in zip(handle.records, other.records, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            number = isinstance(value, float)
            assert mine[key] == (pytest.approx(value, rel=1e-3, abs=1e-6) if number else value)


@pytest.mark.parametrize("keyword", [False, True])
@methods
def test_a_closure_computes_the_gradient_that_is_acted_on(methods, keyword):
    def with_closure(model, optimizer):
        def closure():
            optimizer.zero_grad()
            return backward(model)

        return lambda: optimizer.step(closure=closure) if keyword else optimizer.step(closure)

    weights, handle = train(with_closure, methods=methods)
    expected, other = train(plain, methods=methods)
    assert same(weights, expected)
    assert same(handle.records, other.records)


def test_a_closure_that_runs_twice_is_refused():
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            with torch.enable_grad():
                closure()
            return super().step(closure)

    model = small_model()
    optimizer = Twice(model.parameters(), lr=0.1)
    attach(model, optimizer, NearestOrthogonalGradient("0"))
    with pytest.raises(ConfigError, match="more than once"):
        optimizer.step(lambda: backward(model))


def test_by_hand_equals_by_hooks():
    def by_hand(model, optimizer, handle):
        optimizer.zero_grad()
        backward(model)
        handle.before_step()
        optimizer.step()
        handle.step()

    for chosen in METHODS.values():
        model = small_model()
        optimizer = MOMENTUM(model.parameters())
        handle = attach(model, optimizer, *chosen, auto=False)
        for _ in range(4):
            by_hand(model, optimizer, handle)
        expected, _ = train(plain, methods=chosen)
        assert same([p.detach() for p in model.parameters()], expected)


@methods
def test_a_forgotten_before_step_is_an_error(methods):
    model = small_model()
    optimizer = MOMENTUM(model.parameters())
    handle = attach(model, optimizer, *methods, auto=False)
    backward(model)
    optimizer.step()
    with pytest.raises(StateError, match=r"handle\.before_step"):
        handle.step()


def test_a_closure_by_hand_is_refused():
    model = small_model()
    optimizer = MOMENTUM(model.parameters())
    handle = attach(model, optimizer, NearestOrthogonalGradient("0"), auto=False)
    backward(model)
    handle.before_step()
    with pytest.raises(ConfigError, match="auto=True"):
        optimizer.step(lambda: backward(model))


def test_groups_and_their_learning_rates_stay_and_are_used():
    model = small_model()
    optimizer = torch.optim.SGD(
        [
            {"params": [model[0].weight], "lr": 0.5},
            {"params": [model[2].weight], "lr": torch.tensor(0.25)},
            {"params": [model[0].bias, model[2].bias]},
        ],
        lr=0.1,
        foreach=False,
    )
    before = [p.detach().clone() for p in (model[0].weight, model[2].weight)]
    held = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    attach(
        model,
        optimizer,
        NearestOrthogonalGradient(["0", "2"], when="update"),
        OptimalLearningRate(["0", "2"], floor=0.5),
    )
    backward(model)
    optimizer.step()
    for old, layer, lr in zip(before, (model[0], model[2]), (0.5, 0.25), strict=True):
        s = torch.linalg.svdvals((layer.weight - old).detach())
        assert float(s.max() / s.min()) == pytest.approx(1, abs=1e-4)
        assert lr / 2 * 0.999 <= float(s.max()) <= lr * 1.001
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == held
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.5, 0.25, 0.1]
    assert isinstance(optimizer.param_groups[1]["lr"], torch.Tensor)


def test_a_scheduler_is_followed():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.04)
    attach(model, optimizer, NearestOrthogonalGradient("0", when="update"))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for lr in (0.04, 0.02, 0.01):
        before = model[0].weight.detach().clone()
        plain(model, optimizer)()
        scheduler.step()
        s = torch.linalg.svdvals((model[0].weight - before).detach())
        torch.testing.assert_close(s, torch.full((3,), lr), rtol=1e-4, atol=0)


@pytest.mark.parametrize("when", ["gradient", "update"])
def test_a_missing_gradient_moves_nothing(when):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    method = NearestOrthogonalGradient(["0", "2"], when=when, record_every=1)
    handle = attach(model, optimizer, method)
    backward(model)
    model[0].weight.grad = None
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert [record["layer"] for record in handle.records] == ["2"]


@pytest.mark.slow
def test_two_processes_act_as_one(tmp_path_factory):
    first, other = outcomes_of(
        nog_worker.__file__, nog_worker.WORLD, name="two-processes-nog",
        tmp_path_factory=tmp_path_factory,
    )  # fmt: skip
    assert same(first, other)
    for when, (weights, _) in first.items():
        model = small_model()
        expected, _ = nog_worker.train(model, model, nog_worker.batches(), when=when)
        close(weights, expected, 1e-4)


# --- NaN and infinity -------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("when", ["gradient", "update"])
@pytest.mark.bad_input
def test_a_bad_gradient_raises_before_anything_changes(bad, when):
    model = small_model()
    optimizer = MOMENTUM(model.parameters())
    attach(model, optimizer, NearestOrthogonalGradient(["0", "2"], when=when))
    backward(model)
    model[2].weight.grad[0, 0] = bad
    before = [t.detach().clone() for p in model.parameters() for t in (p, p.grad)]
    with pytest.raises(NonFiniteError, match=r"1 of 8 numbers in the gradient of 2 .* step 0"):
        optimizer.step()
    after = [t.detach() for p in model.parameters() for t in (p, p.grad)]
    assert all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, after, strict=True)
    )
    assert not optimizer.state


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("when", ["gradient", "update"])
def test_skipping_takes_no_step_for_that_weight_alone(bad, when):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    method = NearestOrthogonalGradient(["0", "2"], when=when, on_nonfinite="skip")
    handle = attach(model, optimizer, method)
    plain(model, optimizer)()
    optimizer.zero_grad()
    backward(model)
    model[2].weight.grad[0, 0] = bad
    before = [p.detach().clone() for p in model.parameters()]
    state = {k: v.clone() for k, v in optimizer.state[model[2].weight].items()}
    with pytest.warns(OrthotrainWarning, match="gradient of 2 .*no step is taken"):
        optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert moved == [True, True, False, True]
    assert same(dict(optimizer.state[model[2].weight]), state)
    assert "1 steps of a weight left out" in str(handle.summary())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain(model, optimizer)()
    assert handle.state_dict()["methods"][method.name] == {"skipped": 1}
    handle.detach()
    again = attach(model, optimizer, method)
    again.load_state_dict(handle.state_dict())
    assert again.state_dict() == handle.state_dict()
    with pytest.raises(StateError, match="'skipped'"):
        again.load_state_dict({"step": 1, "methods": {method.name: {"looks": 1}}})


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.bad_input
def test_a_bad_gradient_of_the_only_weight_raises_or_loses_its_step(bad):
    # The polar factor finds it, and no look comes before it.
    for on_nonfinite in ("raise", "skip"):
        model = small_model()
        optimizer = MOMENTUM(model.parameters())
        handle = attach(model, optimizer, NearestOrthogonalGradient("2", on_nonfinite=on_nonfinite))
        backward(model)
        model[2].weight.grad[0, 0] = bad
        before = model[2].weight.detach().clone()
        if on_nonfinite == "raise":
            with pytest.raises(NonFiniteError, match=r"1 of 8 numbers in the gradient of 2 "):
                optimizer.step()
            assert not optimizer.state
        else:
            with pytest.warns(OrthotrainWarning, match="gradient of 2 .*no step is taken"):
                optimizer.step()
            assert "1 steps of a weight left out" in str(handle.summary())
        assert torch.equal(model[2].weight, before)


@pytest.mark.bad_input
def test_an_update_that_overflows_raises_or_is_taken_back():
    for on_nonfinite in ("raise", "skip"):
        model = small_model()
        optimizer = torch.optim.SGD(model[0:1].parameters(), lr=3e38)
        method = NearestOrthogonalGradient("0", when="update", on_nonfinite=on_nonfinite)
        attach(model, optimizer, method)
        model[0].weight.grad = torch.full((4, 3), 10.0)
        before = model[0].weight.detach().clone()
        if on_nonfinite == "raise":
            with pytest.raises(NonFiniteError, match="update of 0"):
                optimizer.step()
        else:
            with pytest.warns(OrthotrainWarning, match="update of 0"):
                optimizer.step()
            assert torch.equal(model[0].weight, before)


# --- what cannot work -------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"when": "before"}, "when to be one of gradient, update"),
        ({"scale": "norm"}, "scale to be one of none, gradient_norm, rms"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite to be one of raise, skip"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        NearestOrthogonalGradient("0", **settings)


def bind(model, optimizer=None, params="0"):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return attach(model, optimizer, NearestOrthogonalGradient(params))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("5", "no module or parameter matches '5'"),
        ((), "params is empty"),
        ("*.bias", r"0\.bias, 2\.bias of shape \(4,\) is no matrix|0\.bias of shape"),
    ],
    ids=["nothing", "empty", "vectors"],
)
def test_parameters_that_are_none_or_no_matrix(params, message):
    with pytest.raises(ConfigError, match=message):
        bind(small_model(), params=params)


@pytest.mark.bad_input
def test_a_parameter_outside_the_optimizer():
    model = small_model()
    with pytest.raises(ConfigError, match=r"0\.weight is not in the optimizer"):
        bind(model, torch.optim.SGD(model[2].parameters(), lr=0.1))


@pytest.mark.bad_input
def test_an_optimizer_that_recomputes_gradients():
    model = small_model()
    with pytest.raises(ConfigError, match="LBFGS computes gradients anew"):
        bind(model, torch.optim.LBFGS(model.parameters()))


@pytest.mark.bad_input
def test_a_lazy_a_complex_and_a_sparse_weight():
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="not initialized"):
        bind(lazy, torch.optim.SGD(lazy[1].parameters(), lr=0.1))
    with pytest.raises(ConfigError, match="complex64"):
        bind(nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)))
    model = nn.Sequential(nn.Embedding(5, 3, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bind(model, optimizer)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ConfigError, match="sparse"):
        optimizer.step()


@pytest.mark.bad_input
def test_a_sharded_weight(tmp_path):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        mesh = init_device_mesh("cpu", (1,))
        layer = nn.Linear(3, 4)
        layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
        with pytest.raises(ConfigError, match="sharded"):
            bind(nn.Sequential(layer))
    finally:
        torch.distributed.destroy_process_group()


# --- records ----------------------------------------------------------------------------------


def test_records_say_what_was_and_what_was_executed():
    g = from_spectrum([4.0, 2.0, 1.0], 5, 3)
    before, after, handle = one_step(g, lr=0.5)
    (record,) = handle.records
    assert record == {
        "step": 1,
        "method": "nearest_orthogonal_gradient",
        "layer": "0",
        "gradient_norm": pytest.approx(21**0.5),
        "gradient_condition": pytest.approx(4),
        "gradient_rank": 3,
        "gradient_rtol": pytest.approx(5 * 2.0**-52),
        "update_norm": pytest.approx(float((after - before).norm())),
        "update_condition": pytest.approx(1),
        "update_rank": 3,
        "update_rtol": pytest.approx(5 * 2.0**-52),
    }
    (note,) = handle.summary().notes
    assert note.endswith("median condition 4 of the gradient, 1 of the executed update")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e5])
def test_the_recorded_condition_is_that_of_an_svd(condition, dtype):
    g = from_spectrum(log_spectrum(27, condition), 64, 27).to(dtype)
    _, _, handle = one_step(g)
    s = torch.linalg.svdvals(g.double())
    assert handle.records[0]["gradient_condition"] == pytest.approx(float(s[0] / s[-1]), rel=1e-4)


@pytest.mark.parametrize("when", ["gradient", "update"])
@pytest.mark.parametrize(("shape", "rank"), [((16, 32), 4), ((64, 64), 16), ((256, 64), 32)])
def test_the_rounding_of_the_weights_is_neither_executed_nor_recorded(shape, rank, when):
    layer = nn.Linear(*reversed(shape), bias=False)
    model = nn.Sequential(layer)
    with torch.no_grad():
        layer.weight.copy_(seeded(shape, 4, torch.float32) / shape[1] ** 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    nog = NearestOrthogonalGradient("0", when=when, record_every=1)
    handle = attach(model, optimizer, ConditionMonitor("0"), nog)
    layer.weight.grad = from_spectrum([1.0] * rank, *shape).float()
    optimizer.step()
    (record,) = (r for r in handle.records if r["method"] == "nearest_orthogonal_gradient")
    monitor = {r["what"]: r for r in handle.records if r["method"] == "condition_monitor"}
    assert record["gradient_rank"] == record["update_rank"] == rank
    assert monitor["update"]["rank"] == rank
    # Both are of the same numbers, and both routes are right to float32.
    assert record["update_condition"] == pytest.approx(monitor["update"]["condition_range"])
    assert record["update_condition"] == pytest.approx(1, abs=1e-3)
    assert record["update_rtol"] == pytest.approx(monitor["update"]["rtol"])


def test_the_executed_update_is_measured_after_every_other_method():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    handle = attach(
        model,
        optimizer,
        OptimalLearningRate("0", record_every=1),
        NearestOrthogonalGradient("0", when="update", record_every=1),
    )
    before = model[0].weight.detach().clone()
    plain(model, optimizer)()
    moved = float((model[0].weight.detach() - before).norm())
    kinds = {record["method"]: record for record in handle.records}
    assert kinds["optimal_learning_rate"]["used"]
    assert kinds["nearest_orthogonal_gradient"]["update_norm"] == pytest.approx(moved, rel=1e-6)


def test_record_every_thins_the_records_and_nothing_else():
    weights, handle = train(
        plain, methods=[NearestOrthogonalGradient("0", record_every=3)], steps=7
    )
    expected, _ = train(plain, methods=[NearestOrthogonalGradient("0")], steps=7)
    assert [record["step"] for record in handle.records] == [3, 6]
    assert same(weights, expected)


def test_a_record_comes_every_hundred_steps_unless_told_otherwise():
    methods = [NearestOrthogonalGradient("0"), OptimalLearningRate("0")]
    _, handle = train(plain, methods=methods, steps=201)
    assert [r["step"] for r in handle.records if r["method"] == methods[0].name] == [100, 200]
    assert [r["step"] for r in handle.records if r["method"] == methods[1].name] == [100, 200]


def test_seconds_are_counted_for_each_method():
    _, handle = train(plain, methods=METHODS["with a learning rate"])
    assert list(handle.seconds) == ["nearest_orthogonal_gradient", "optimal_learning_rate"]
    assert all(0 < seconds < 10 for seconds in handle.seconds.values())
