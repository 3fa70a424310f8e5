from __future__ import annotations

import copy
import dataclasses
import gc
import io
import logging
import math
import pickle
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.optim.swa_utils import AveragedModel

from methods.doubles import Diary, EarlyDiary, Idle, Unfit, backward, hook_counts, same, small_model
from orthotrain.errors import ConfigError, OrthotrainWarning, StateError
from orthotrain.methods import OrthogonalPenalty, Retraction, _optimizer, attach, protocol
from orthotrain.methods import _hooks as hooks
from orthotrain.methods._compat import active_ddp_module


def make(*methods, lr=0.1, **options):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return model, optimizer, attach(model, optimizer, *methods, **options)


# --- order and counting ---------------------------------------------------------------------------


def test_methods_act_by_phase_and_then_in_the_order_given():
    diary: list = []
    late = [Diary("late 1", diary), Diary("late 2", diary)]
    model, optimizer, handle = make(*late, EarlyDiary("early", diary))
    backward(model)
    optimizer.step()
    assert diary == [
        ("early", "before", 0), ("late 1", "before", 0), ("late 2", "before", 0),
        ("early", "after", 1), ("late 1", "after", 1), ("late 2", "after", 1),
    ]  # fmt: skip
    assert list(handle.methods) == ["diary", "diary_2", "diary_3"]


def test_accumulated_backward_passes_and_evaluation_are_no_steps():
    model, optimizer, handle = make(Diary())
    for _ in range(3):
        for _ in range(4):
            backward(model)
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3))
        model.train()
        optimizer.step()
        optimizer.zero_grad()
    assert handle.run.step == 3


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_grad_scaler_skips_is_no_step(fused):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    method = Diary()
    handle = attach(model, optimizer, method)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    seen = []
    for bad in (False, True, False):
        optimizer.zero_grad()
        loss = scaler.scale((model(torch.ones(2, 3)) ** 2).mean())
        loss.backward()
        if bad:
            model[0].weight.grad[0, 0] = float("inf")
        before = model[0].weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        seen.append((handle.run.step, bool((before != model[0].weight).any())))
    assert seen == [(1, True), (1, False), (2, True)]
    assert [event for _, event, _ in method.diary] == ["before", "after"] * 2


def test_a_closure_step_counts_once():
    model = small_model()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    handle = attach(model, optimizer, Diary())

    def closure():
        optimizer.zero_grad()
        return backward(model)

    optimizer.step(closure)
    assert handle.run.step == 1


# --- a step that trains nothing -------------------------------------------------------------------


def of_zeros(model):
    """Gradients as torch.distributed.checkpoint makes them."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


RATES = {"number": 0.0, "tensor": torch.tensor(0.0)}


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("gradients", [of_zeros, lambda model: model.zero_grad()])
def test_without_rate_and_gradient_it_is_no_step(rate, closure, early, gradients):
    method = EarlyDiary() if early else Diary()
    model, optimizer, handle = make(method)
    (group,) = optimizer.param_groups
    group["lr"] = rate
    if closure:
        backward(model)  # what the closure computes counts, not what was there before
        optimizer.step(lambda: gradients(model))
    else:
        gradients(model)
        optimizer.step(closure=None)
    assert handle.run.step == 0
    assert handle.records == []
    assert ("diary", "after", 1) not in method.diary
    group["lr"] = 0.1
    backward(model)
    optimizer.step()
    assert handle.run.step == 1


@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("early", [False, True])
def test_a_rate_of_zero_with_gradients_is_a_step(rate, closure, early):
    method = EarlyDiary() if early else Diary()
    model, optimizer, handle = make(method)
    optimizer.param_groups[0]["lr"] = rate
    if closure:
        optimizer.step(lambda: backward(model))
    else:
        backward(model)
        model[0].weight.grad = None
        optimizer.step()
    assert handle.run.step == 1
    assert [event for _, event, _ in method.diary] == ["before", "after"]


def test_one_group_that_trains_or_a_gradient_that_is_nan_makes_a_step():
    model = small_model()
    groups = [{"params": [p]} for p in model.parameters()]
    optimizer = torch.optim.SGD(groups, lr=0.0)
    handle = attach(model, optimizer, Diary())
    of_zeros(model)
    optimizer.step()
    assert handle.run.step == 0
    optimizer.param_groups[-1]["lr"] = 0.1
    optimizer.step()
    assert handle.run.step == 1
    optimizer.param_groups[-1]["lr"] = 0.0
    model[0].weight.grad[0, 0] = torch.nan
    optimizer.step()
    assert handle.run.step == 2


def test_gradients_are_not_looked_at_where_a_rate_is_not_zero(monkeypatch):
    def looked(gradient):
        raise AssertionError("a gradient was looked at")

    monkeypatch.setattr(_optimizer, "_has_values", looked)
    model, optimizer, handle = make(Diary())
    backward(model)
    optimizer.step()
    assert handle.run.step == 1


def test_a_sparse_gradient_is_looked_at():
    model = nn.Sequential(nn.Embedding(5, 2, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    handle = attach(model, optimizer, Diary())
    for scale, steps in ((0.0, 0), (1.0, 1)):
        optimizer.zero_grad()
        (scale * model(torch.tensor([1, 1]))).sum().backward()
        optimizer.step()
        assert handle.run.step == steps


@pytest.mark.parametrize("make_optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_reading_and_writing_state_with_distributed_checkpoint_is_no_step(make_optimizer):
    model = small_model()
    optimizer = make_optimizer(model.parameters(), lr=0.1, weight_decay=0.5)
    penalty = OrthogonalPenalty("0", weight=0.1)
    handle = attach(model, optimizer, Diary(), penalty, Retraction("0"))
    before = copy.deepcopy(model.state_dict())
    model_state, optimizer_state = get_state_dict(model, optimizer)
    set_state_dict(model, optimizer, model_state_dict=model_state, optim_state_dict=optimizer_state)
    assert handle.run.step == 0
    assert handle.records == []
    assert same(dict(model.state_dict()), dict(before))


def test_the_path_of_training_and_the_random_state_are_untouched():
    plain, watched = small_model(), small_model()
    plain_optimizer = torch.optim.AdamW(plain.parameters())
    optimizer = torch.optim.AdamW(watched.parameters())
    state = torch.get_rng_state()
    attach(watched, optimizer, Diary(), Idle())
    for _ in range(5):
        for model, stepper in ((plain, plain_optimizer), (watched, optimizer)):
            stepper.zero_grad()
            backward(model)
            stepper.step()
    assert torch.equal(torch.get_rng_state(), state)
    for expected, actual in zip(plain.parameters(), watched.parameters(), strict=True):
        assert torch.equal(expected, actual)


def test_by_hand():
    method = Diary()
    model, optimizer, handle = make(method, auto=False)
    backward(model)
    handle.before_step()
    optimizer.step()
    assert handle.run.step == 0
    handle.step()
    assert method.diary == [("diary", "before", 0), ("diary", "after", 1)]


@pytest.mark.parametrize("call", ["step", "before_step"])
def test_by_hand_and_by_itself_at_once_is_refused(call):
    _, _optimizer, handle = make(Diary())
    with pytest.raises(ConfigError, match="auto=False"):
        getattr(handle, call)()


# --- what is refused ------------------------------------------------------------------------------


def test_no_method():
    model = small_model()
    with pytest.raises(ConfigError, match="no method"):
        attach(model, torch.optim.SGD(model.parameters(), lr=1.0))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Diary, "instance"),
        ("diary", "of type str as a method"),
        ([Diary()], "unpack it with a star"),
    ],
)
def test_not_a_method(method, message):
    model = small_model()
    with pytest.raises(ConfigError, match=message):
        attach(model, torch.optim.SGD(model.parameters(), lr=1.0), method)


@pytest.mark.bad_input
def test_not_an_optimizer():
    with pytest.raises(ConfigError, match="Optimizer"):
        attach(small_model(), Diary(), Diary())


def test_an_optimizer_of_other_parameters():
    optimizer = torch.optim.SGD(small_model().parameters(), lr=1.0)
    with pytest.raises(ConfigError, match=r"none of the parameters"):
        attach(small_model(), optimizer, Diary())


@pytest.mark.bad_input
def test_model_and_optimizer_in_the_wrong_order():
    model = small_model()
    with pytest.raises(
        ConfigError, match=r"got SGD; model and optimizer are swapped; the order is attach\(model,"
    ):
        attach(torch.optim.SGD(model.parameters(), lr=1.0), model, Diary())


@pytest.mark.bad_input
@pytest.mark.parametrize("total_steps", [0, 1e3, True])
def test_total_steps_must_be_a_positive_whole_number(total_steps):
    with pytest.raises(ConfigError, match="total_steps"):
        make(Diary(), total_steps=total_steps)


def test_parameters_that_a_handle_acts_on_are_refused_by_name():
    model, optimizer, handle = make(Diary())
    with pytest.raises(ConfigError, match=r"0\.weight, 0\.bias, 2\.weight and 1 more are .*detach"):
        attach(model, torch.optim.SGD(model.parameters(), lr=1.0), Diary())
    other = nn.Linear(2, 2)
    optimizer.add_param_group({"params": other.parameters()})
    with pytest.raises(ConfigError, match=r"shape \(4, 3\).* already; call detach\(\)"):
        attach(other, optimizer, Diary())
    handle.detach()
    attach(model, optimizer, Diary())


def test_a_failed_attach_leaves_nothing():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    first = Diary()
    before = hook_counts(model, optimizer)
    with pytest.raises(ConfigError, match="does not fit"):
        attach(model, optimizer, first, Unfit())
    assert hook_counts(model, optimizer) == before
    assert first.bound[0].detached == 1
    attach(model, optimizer, Diary())


# --- wrappers -------------------------------------------------------------------------------------


def test_an_optimizer_inside_a_wrapper():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    class Prepared(torch.optim.Optimizer):
        """As Accelerate's: an Optimizer by type whose own step has no hooks."""

        def __init__(self):
            self.optimizer = optimizer

        def step(self, closure=None):
            self.optimizer.step(closure)

    handle = attach(model, Prepared(), Diary())
    backward(model)
    Prepared().step()
    assert handle.run.optimizer is optimizer
    assert handle.run.step == 1


@pytest.mark.parametrize("compile_first", [True, False])
def test_a_compiled_model(compile_first):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    handle = attach(compiled if compile_first else model, optimizer, Diary())
    assert handle.run.model is model
    for _ in range(2):
        backward(compiled)
        optimizer.step()
    assert handle.run.step == 2


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("wrap_first", [True, False])
def test_ddp_is_found_whenever_it_is_made(process_group, wrap_first):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if wrap_first:
        wrapped = nn.parallel.DistributedDataParallel(model)
        handle = attach(wrapped, optimizer, Diary())
        assert handle.run.wrapper is wrapped
    else:
        handle = attach(model, optimizer, Diary())
        wrapped = nn.parallel.DistributedDataParallel(model)
        assert handle.run.wrapper is None
    backward(wrapped)
    optimizer.step()
    assert handle.run.model is model
    assert handle.run.wrapper is wrapped
    assert handle.run.step == 1


def test_the_private_name_of_ddp_still_exists(process_group):
    seen = []

    class Asks(nn.Linear):
        def forward(self, x):
            seen.append(active_ddp_module())
            return super().forward(x)

    wrapped = nn.parallel.DistributedDataParallel(Asks(2, 2))
    wrapped(torch.zeros(1, 2))
    assert seen == [wrapped]
    assert active_ddp_module() is None


# --- loss -----------------------------------------------------------------------------------------


class WithLoss(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner = small_model()
        self.kind = kind

    def forward(self, x):
        loss = (self.inner(x) ** 2).mean()
        return {"loss": loss} if self.kind == "dict" else SimpleNamespace(loss=loss)


@pytest.mark.parametrize("kind", ["dict", "attribute"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_loss_in_the_output_is_seen_in_training_only(kind, compiled):
    model = WithLoss(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = Diary()
    outer = torch.compile(model, backend="eager") if compiled else model
    attach(outer, optimizer, method)
    expected = []
    for step in range(2):
        output = outer(torch.ones(2, 3))
        loss = output["loss"] if kind == "dict" else output.loss
        expected.append((step, pytest.approx(loss.item())))
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            outer(torch.ones(2, 3))
        model.eval()
        outer(torch.ones(2, 3))
        model.train()
    assert method.bound[0].losses == expected


def test_a_model_compiled_after_attach_stays_one_graph():
    model = WithLoss("dict")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = Diary()
    attach(model, optimizer, method)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(torch.ones(2, 3))["loss"].backward()
    optimizer.step()
    # As documented: the hook is compiled away, and handle.observe is there for this case.
    assert method.bound[0].losses == []


def test_an_observed_loss_keeps_no_graph_and_later_changes_do_not_reach_it():
    method = Diary()
    _, _optimizer, handle = make(method)
    loss = torch.tensor(2.0, requires_grad=True) * 3
    handle.observe(loss)
    handle.observe(1)
    with torch.no_grad():
        loss /= 2
    assert method.bound[0].losses == [(0, 6.0), (0, 1.0)]


def test_losses_on_a_device_are_read_late_together_and_in_order(monkeypatch):
    monkeypatch.setattr(protocol, "_is_free_to_read", lambda loss: False)
    monkeypatch.setattr(protocol, "_LOSSES_PER_READ", 3)
    method = Diary()
    _model, optimizer, handle = make(method)
    reused = torch.zeros(1)
    for value in (1.0, 2.0, 3.0, 4.0):
        reused.fill_(value)
        handle.observe(reused)
        optimizer.step()
    seen = method.bound[0].losses
    assert seen == [(0, 1.0), (1, 2.0), (2, 3.0)]
    handle.observe(5.0)
    assert seen[3:] == [(3, 4.0), (4, 5.0)]
    handle.observe(torch.tensor(6.0))
    assert handle.state_dict()["methods"]["diary"]["losses"][-1] == [4, 6.0]


@pytest.mark.bad_input
@pytest.mark.parametrize("methods", [[Diary()], [Retraction("*")]])
def test_a_loss_must_be_a_real_scalar(methods):
    """Whether a method wants it or not."""
    _, _optimizer, handle = make(*methods)
    with pytest.raises(ConfigError, match="scalar"):
        handle.observe(torch.ones(2))
    for wrong in ("0.5", None, 1j, True, [0.5], torch.ones((), dtype=torch.complex64)):
        with pytest.raises(ConfigError, match="real number"):
            handle.observe(wrong)
    for right in (math.nan, 3, torch.tensor(0.5), torch.ones(1, 1)):
        handle.observe(right)


@pytest.mark.bad_input
def test_what_is_no_state_of_a_handle_is_refused():
    _, _optimizer, handle = make(Diary())
    state = handle.state_dict()
    for wrong in (None, [], {}, "x", state | {"step": -1}, state | {"step": 1.5}):
        with pytest.raises(StateError, match="entries 'step' and 'methods'"):
            handle.load_state_dict(wrong)


@pytest.mark.bad_input
def test_a_record_is_given_to_what_can_be_called():
    _, _optimizer, handle = make(Diary())
    with pytest.raises(ConfigError, match="on_record needs a function of one record, got 3"):
        handle.on_record(3)


# --- the step that never comes, or no more --------------------------------------------------------


def passes(model, optimizer, count):
    for _ in range(count):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()


@pytest.mark.parametrize(
    ("auto", "keep", "remedy"),
    [(True, True, "another optimizer"), (False, True, "handle.step"), (True, False, "deleted")],
)
def test_warns_once_when_no_step_is_seen(monkeypatch, auto, keep, remedy):
    monkeypatch.setattr(hooks, "_BACKWARDS_BEFORE_WARNING", 3)
    model, optimizer, handle = make(Diary(), auto=auto)
    if not keep:
        del optimizer, handle
    other = torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(2):
        backward(model)
        other.step()
    with pytest.warns(OrthotrainWarning, match=f"3 backward passes and not one.*{remedy}"):
        backward(model)
    for _ in range(5):
        backward(model)
    assert not model[0].weight._post_accumulate_grad_hooks


@pytest.mark.parametrize(
    ("auto", "keep", "remedy"),
    [
        (True, True, "another optimizer .* than the SGD.*Attach to the one that steps"),
        (False, True, "handle.step"),
        (True, False, "the SGD given to attach was deleted"),
    ],
)
def test_warns_once_when_the_optimizer_is_not_stepped_any_more(auto, keep, remedy):
    model, optimizer, handle = make(Diary(), auto=auto)
    for _ in range(3):
        backward(model)
        optimizer.step()
        if not auto:
            handle.step()
    if not keep:
        del optimizer, handle
    other = torch.optim.AdamW(model.parameters())
    with pytest.warns(OrthotrainWarning, match=f"since the last step of SGD.*{remedy}") as caught:
        passes(model, other, 30)
    assert len(caught) == 1
    assert "11 backward passes" in str(caught[0].message)
    assert not model[0].weight._post_accumulate_grad_hooks


def test_warns_after_a_few_passes_when_another_optimizer_steps_from_the_start():
    model, _optimizer, _handle = make(Diary())
    other = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(OrthotrainWarning, match="11 backward passes and not one"):
        passes(model, other, 11)


class Pieces(torch.nn.Module):
    """Three layers, of which it uses some."""

    def __init__(self, *used):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in range(3))
        self.used = used

    def forward(self, x):
        for i in self.used:
            x = self.layers[i](x)
        return x


@pytest.mark.parametrize("used", [(1,), (2,), (0, 2)])
def test_a_missing_step_is_told_whichever_parameters_have_a_gradient(used):
    model = Pieces(*used)
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Diary())
    other = torch.optim.SGD(model.parameters(), lr=0.1)

    def go_on(steps):
        for _ in range(steps):
            model(torch.ones(2, 4)).square().mean().backward()
            other.step()

    with pytest.warns(OrthotrainWarning, match="11 backward passes and not one") as caught:
        go_on(30)
    assert len(caught) == 1


def test_after_two_passes_one_parameter_alone_is_watched():
    model = Pieces(1, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, Diary())
    for _ in range(2):
        model(torch.ones(2, 4)).square().mean().backward()
    watched = [name for name, p in model.named_parameters() if p._post_accumulate_grad_hooks]
    assert watched == ["layers.1.weight"]
    handle.detach()
    assert not model.layers[1].weight._post_accumulate_grad_hooks


def test_a_call_of_handle_step_that_stopped_is_noticed():
    model, optimizer, handle = make(Diary(), auto=False)
    backward(model)
    optimizer.step()
    handle.step()
    with pytest.warns(OrthotrainWarning, match=r"since the last step .* handle.step"):
        passes(model, optimizer, 12)


def test_passes_that_change_nothing_are_accumulation_whatever_their_number(monkeypatch):
    monkeypatch.setattr(hooks, "_BACKWARDS_BEFORE_WARNING", 100)
    model, optimizer, handle = make(Diary())
    for accumulated in (99, 300, 1):  # the limit grows with what was seen: 4 * 99
        for _ in range(accumulated):
            backward(model)
        optimizer.step()
    assert handle.run.step == 3
    for _ in range(1199):
        backward(model)
    with pytest.warns(OrthotrainWarning, match="1200 backward passes since the last step of SGD"):
        backward(model)


def test_changes_between_the_passes_of_one_step_raise_the_limit():
    """As SAM's many-step kin do: uphill several times per step."""
    model, optimizer, handle = make(Diary())
    for changes in (9, 30):
        for _ in range(changes):
            backward(model)
            with torch.no_grad():
                model[0].weight.add_(0.0)
        backward(model)
        optimizer.step()
    assert handle.run.step == 2


@pytest.mark.parametrize("auto", [True, False])
def test_passes_of_a_closure_do_not_count(auto):
    model = small_model()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-3, max_iter=40, tolerance_change=0)
    handle = attach(model, optimizer, Diary(), auto=auto)
    calls = []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        return backward(model)

    for _ in range(3):
        optimizer.step(closure)
        if not auto:
            handle.step()
    assert len(calls) > 60
    assert handle.run.step == 3


def test_steps_that_grad_scaler_skips_are_not_the_end_of_training():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, Diary())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for step in range(40):
        optimizer.zero_grad()
        scaler.scale((model(torch.ones(2, 3)) ** 2).mean()).backward()
        if step:
            model[0].weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
    assert handle.run.step == 1


def test_a_handle_that_was_replaced_by_a_new_one_says_nothing():
    model, optimizer, handle = make(Diary())
    passes(model, optimizer, 2)
    del optimizer, handle
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, Diary())
    passes(model, optimizer, 30)
    assert handle.run.step == 30
    handle.detach()
    passes(model, optimizer, 30)


def test_only_what_the_optimizer_holds_is_looked_at():
    """Another optimizer over the rest of the model may step as often as it likes."""
    model = small_model()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    attach(model, optimizer, Diary())
    other = torch.optim.SGD(model[0].parameters(), lr=0.1)
    backward(model)
    optimizer.step()
    for _ in range(30):
        backward(model)
        other.step()


# --- state ----------------------------------------------------------------------------------------


def test_state_of_other_methods_is_refused_before_anything_is_changed():
    _, _optimizer, handle = make(Diary())
    _, _other_optimizer, other = make(Diary(), Idle())
    state = other.state_dict()
    state["step"] = 7
    with pytest.raises(StateError, match="idle"):
        handle.load_state_dict(state)
    with pytest.raises(StateError, match="'step' and 'methods'"):
        handle.load_state_dict({"model": {}})
    assert handle.run.step == 0


@pytest.mark.parametrize("auto", [True, False])
@pytest.mark.parametrize("loaded", ["model", "optimizer"])
def test_mismatched_optimizer_state_is_noticed_before_torch_steps_on_it(auto, loaded):
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, Idle(), auto=auto)
    backward(model)
    optimizer.step()
    optimizer.state[model[0].weight]["exp_avg"] = torch.zeros(2, 2)
    if loaded == "model":
        model.load_state_dict(model.state_dict())
    else:
        optimizer.load_state_dict(optimizer.state_dict())
    before = model[0].weight.detach().clone()
    for _ in range(2):
        with pytest.raises(StateError, match="exp_avg"):
            optimizer.step()
    assert torch.equal(model[0].weight, before)
    assert handle.run.step == (1 if auto else 0)


def test_state_that_was_loaded_before_attaching_is_checked_at_the_first_step():
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    backward(model)
    optimizer.step()
    optimizer.state[model[0].weight]["exp_avg"] = torch.zeros(2, 2)
    attach(model, optimizer, Idle())
    with pytest.raises(StateError, match="exp_avg"):
        optimizer.step()


# --- copies ---------------------------------------------------------------------------------------


def copies():
    def through_pickle(model):
        return pickle.loads(pickle.dumps(model))

    def through_file(model):
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        return torch.load(file, weights_only=False)

    return [copy.deepcopy, through_pickle, through_file]


@pytest.mark.parametrize("make_copy", copies())
def test_a_copy_of_the_model_is_not_attached(make_copy):
    method = Diary()
    model, _optimizer, handle = make(method)
    twin = make_copy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin.load_state_dict(twin.state_dict())
    backward(twin)
    optimizer.step()
    assert handle.run.step == 0
    # A pickle holds functions of Python's own in their place.
    assert not any(getattr(hook, "owner", None) for hook in twin._forward_hooks.values())
    again = attach(twin, optimizer, Diary())
    assert len(twin._forward_hooks) == 1
    optimizer.step()
    assert (handle.run.step, again.run.step) == (0, 1)


def test_a_copy_of_the_optimizer_is_not_attached():
    model, optimizer, handle = make(Diary())
    backward(model)
    copy.deepcopy(optimizer).step()
    assert handle.run.step == 0


def test_methods_are_told_that_the_model_was_loaded_and_copies_tell_nobody():
    method = Diary()
    model, optimizer, handle = make(method, Idle())
    state = model.state_dict()
    nn.parallel.DataParallel(model).load_state_dict({f"module.{k}": v for k, v in state.items()})
    assert method.diary == [("diary", "loaded", 0)]
    copy.deepcopy(model).load_state_dict(state)
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(method.diary) == 1
    handle.detach()
    model.load_state_dict(state)
    assert len(method.diary) == 1


def test_tracked_copies_are_handed_to_the_methods_once():
    method = Diary()
    model, _optimizer, handle = make(method)

    class ForeignAverage(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = copy.deepcopy(model)

    averaged, foreign = AveragedModel(model), ForeignAverage()
    for _ in range(2):
        handle.track(averaged)
        handle.track(foreign)
    assert method.bound[0].tracked == [averaged.module, foreign.module]
    assert handle.run.tracked == method.bound[0].tracked


def test_tracking_the_model_itself_or_another_one():
    model, _optimizer, handle = make(Diary())
    with pytest.raises(ConfigError, match="itself"):
        handle.track(model)
    with pytest.raises(ConfigError, match="named like"):
        handle.track(nn.Linear(2, 2))


# --- records, plan, repr, end ---------------------------------------------------------------------


def test_records_carry_the_step_and_reach_listeners():
    model, optimizer, handle = make(Diary("a"))
    heard: list = []
    handle.on_record(heard.append)
    for _ in range(2):
        backward(model)
        optimizer.step()
    assert handle.records == [
        {"step": 1, "method": "diary", "label": "a"},
        {"step": 2, "method": "diary", "label": "a"},
    ]
    assert heard == handle.records


@pytest.mark.parametrize(
    ("keep", "steps"), [(3, [3, 4, 5]), (0, []), (5, [1, 2, 3, 4, 5]), (None, [1, 2, 3, 4, 5])]
)
def test_records_keep_the_latest_and_listeners_hear_all(keep, steps):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, Diary(), records=keep)
    heard: list = []
    handle.on_record(heard.append)
    for _ in range(5):
        backward(model)
        optimizer.step()
    assert [record["step"] for record in handle.records] == steps
    assert [record["step"] for record in heard] == [1, 2, 3, 4, 5]
    dropped = [note for note in handle.summary().notes if "records" in note]
    assert len(dropped) == (len(steps) < 5)
    assert all(f"oldest {5 - len(steps)} records were dropped" in note for note in dropped)


def test_ten_thousand_records_are_kept_unless_told_otherwise():
    _, _optimizer, handle = make(Diary())
    for i in range(10_000):
        handle.run.record(i=i)
    with pytest.warns(OrthotrainWarning, match="10,000 latest records"):
        handle.run.record(i=10_000)
    for i in (10_001, 10_002):
        handle.run.record(i=i)
    assert [record["i"] for record in handle.records] == list(range(3, 10_003))


@pytest.mark.bad_input
@pytest.mark.parametrize("records", [-1, 1.5, 2.0, True, float("inf"), float("nan"), "all", []])
def test_a_number_of_records_is_a_whole_number_or_none(records):
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"attach needs records .*None: all"):
        attach(model, optimizer, Diary(), records=records)
    attach(model, optimizer, Diary())  # nothing was left on them


def test_the_plan_is_kept_and_logged(caplog):
    with caplog.at_level(logging.INFO, logger="orthotrain"):
        _, _optimizer, handle = make(Diary("a"), Diary("b"))
    assert handle.plan == "plan of a\nplan of b"
    assert [record.message for record in caplog.records] == ["plan of a", "plan of b"]


def test_repr_says_what_is_attached_to_what():
    _, _optimizer, handle = make(Idle())
    expected = "Handle(model=Sequential, optimizer=SGD, step=0, auto=True, methods=[Idle()]"
    assert repr(handle) == expected + ")"
    handle.detach()
    assert repr(handle) == expected + ", detached)"


def test_after_detach_nothing_acts_and_what_was_recorded_stays():
    method = Diary()
    model, optimizer, handle = make(method)
    backward(model)
    optimizer.step()
    handle.detach()
    handle.detach()
    optimizer.step()
    assert handle.run.step == 1
    assert len(handle.records) == 1
    assert method.bound[0].detached == 1
    assert "note of diary" in str(handle.summary())
    with pytest.raises(StateError, match="detached"):
        handle.track(copy.deepcopy(model))


def test_detaching_inside_a_step_is_refused():
    model, optimizer, handle = make(Diary())
    handle.on_record(lambda _: handle.detach())
    backward(model)
    with pytest.raises(ConfigError, match="in progress"):
        optimizer.step()


def test_the_methods_go_on_when_the_handle_is_dropped():
    method = Diary()
    model, optimizer, handle = make(method)
    del handle
    gc.collect()
    backward(model)
    optimizer.step()
    assert method.diary[-1] == ("diary", "after", 1)


def test_model_and_optimizer_are_freed_with_their_last_user():
    model, optimizer, handle = make(Idle())
    backward(model)
    optimizer.step()
    alive = [weakref.ref(thing) for thing in (model, optimizer, handle)]
    gc.collect()
    gc.disable()
    try:
        del model, optimizer, handle
        assert [ref() for ref in alive] == [None, None, None]
    finally:
        gc.enable()


def test_a_new_optimizer_after_the_first_was_deleted():
    model, optimizer, handle = make(Diary())
    cycle = [optimizer]
    cycle.append(cycle)
    del optimizer, handle, cycle
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1), Diary())


def test_a_handle_whose_optimizer_is_gone_is_detached_first():
    model, optimizer, handle = make(Diary())
    del optimizer
    gc.collect()
    new = torch.optim.SGD(model.parameters(), lr=1.0)
    with pytest.raises(ConfigError, match=r"whose optimizer was deleted; call detach\(\)"):
        attach(model, new, Diary())
    handle.detach()
    attach(model, new, Diary())


def test_using_a_handle_whose_optimizer_is_gone():
    _model, optimizer, handle = make(Idle())
    before = handle.summary().total
    del optimizer
    gc.collect()
    assert "optimizer=deleted" in repr(handle)
    assert handle.summary().total == dataclasses.replace(before, state_bytes=0)
    with pytest.raises(StateError, match="deleted"):
        _ = handle.run.optimizer


def test_printing_a_handle_shows_its_plan():
    _, _, handle = make(Diary(label="first"), Diary(label="second"))
    assert str(handle).splitlines() == [
        repr(handle), "  plan of first", "  plan of second"
    ]  # fmt: skip
    assert "\n" not in repr(handle)
