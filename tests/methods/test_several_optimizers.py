"""Several optimizers in one ``attach``: what a step is, who acts when, and what is refused."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from methods.doubles import Diary, EarlyDiary, Idle, backward, hook_counts, same, small_model
from methods.wrappers import SAM, Lookahead, Slotted, Two
from orthotrain import ConditionMonitor
from orthotrain.errors import ConfigError, OrthotrainWarning, StateError
from orthotrain.linalg import polar_factor
from orthotrain.methods import (
    Bound,
    NearestOrthogonalGradient,
    OptimalLearningRate,
    Retraction,
    attach,
)


def two(model, *, lr=(0.1, 0.2), kind=torch.optim.SGD):
    """One optimizer for each linear layer of ``small_model``."""
    return [kind(model[i].parameters(), lr=rate) for i, rate in zip((0, 2), lr, strict=True)]


def make(*methods, **options):
    model = small_model()
    pair = two(model)
    return model, pair, attach(model, pair, *methods, **options)


def step_all(model, optimizers):
    for optimizer in optimizers:
        optimizer.zero_grad()
    backward(model)
    for optimizer in optimizers:
        optimizer.step()


# --- what a step is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "ends"),
    [
        ("010101", [2, 4, 6]),
        ("101010", [2, 4, 6]),
        ("00010001", [4, 8]),  # one steps three times per step of the other
        ("1000100010", [2, 5, 9]),
        ("0111", [2]),
        ("000", []),
    ],
)
def test_a_step_ends_when_each_has_stepped_since_the_last_one_ended(order, ends):
    model, pair, handle = make(Diary())
    counts = [0]
    for place in order:
        backward(model)
        pair[int(place)].step()
        counts.append(handle.run.step)
    assert [i for i in range(1, len(counts)) if counts[i] > counts[i - 1]] == ends


def test_who_acts_when():
    """Up to ``UPDATE`` around the step of each, others after the step of training."""
    early, late = EarlyDiary(label="early"), Diary(label="late")
    model, pair, handle = make(late, early)
    for optimizer in (pair[0], pair[0], pair[1]):
        backward(model)
        optimizer.step()
    assert early.diary == [("early", e, s) for e, s in 3 * [("before", 0), ("after", 1)]]
    assert late.diary == [*3 * [("late", "before", 0)], ("late", "after", 1)]
    assert [r["step"] for r in handle.records] == 4 * [1]
    assert handle.run.step == 1


def test_run_tells_whose_step_it_is():
    seen = []

    class Asking(Bound):
        def before_step(self):
            seen.append((handle.run.optimizer, handle.run.stepping))

    class Asks(EarlyDiary):
        def bind(self, run):
            return Asking()

    model, pair, handle = make(Asks())
    run = handle.run
    step_all(model, pair)
    assert seen == [(each, [each]) for each in pair]
    assert run.optimizers == pair == run.stepping
    assert run.optimizer_of(model[2].weight) is pair[1]
    with pytest.raises(ConfigError, match=r"several optimizers train this model \(SGD, SGD\)"):
        _ = run.optimizer


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_grad_scaler_skips_for_one_of_them_is_made_up_for_by_the_next(fused):
    model = small_model()
    pair = [torch.optim.SGD(model[i].parameters(), lr=0.1, fused=fused) for i in (0, 2)]
    method = EarlyDiary()
    handle = attach(model, pair, method)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    counts = []
    for step in range(4):
        for optimizer in pair:
            optimizer.zero_grad()
        scaler.scale((model(torch.ones(2, 3)) ** 2).mean()).backward()
        if step == 1:
            model[0].weight.grad[0, 0] = float("inf")
        for optimizer in pair:
            scaler.step(optimizer)
        scaler.update()
        counts.append(handle.run.step)
    assert counts == [1, 1, 2, 3]
    assert len(method.diary) == 2 * 7


def test_a_step_without_rate_and_gradient_is_none():
    model, pair, handle = make(Diary())
    step_all(model, pair)
    for optimizer in pair:
        optimizer.zero_grad()
        optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
    assert handle.run.step == 1


def test_a_closure_of_one_of_them_computes_the_gradients_of_both():
    model, twin = small_model(), small_model()
    for each in (model, twin):
        pair = two(each)
        if each is model:
            handle = attach(each, pair, NearestOrthogonalGradient(["0", "2"]))
        for _ in range(3):

            def closure(each=each, pair=pair):
                for optimizer in pair:
                    optimizer.zero_grad()
                loss = backward(each)
                if each is twin:
                    each[0].weight.grad.copy_(polar_factor(each[0].weight.grad))
                return loss

            pair[0].step(closure)
            if each is twin:
                each[2].weight.grad.copy_(polar_factor(each[2].weight.grad))
            pair[1].step()
    assert handle.run.step == 3
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_schedulers_and_learning_rates_are_those_of_the_own_optimizer():
    model = small_model()
    pair = two(model, lr=(0.1, 0.3))
    attach(model, pair, NearestOrthogonalGradient(["0", "2"], when="update"))
    schedules = [torch.optim.lr_scheduler.ExponentialLR(each, 0.5) for each in pair]
    for step in range(3):
        before = [model[i].weight.detach().clone() for i in (0, 2)]
        step_all(model, pair)
        for i, start, lr in zip((0, 2), before, (0.1, 0.3), strict=True):
            moved = torch.linalg.svdvals(model[i].weight.detach() - start)
            torch.testing.assert_close(moved.max().item(), lr * 0.5**step, rtol=1e-4, atol=0)
        for schedule in schedules:
            schedule.step()


def test_methods_act_on_what_the_optimizer_that_steps_holds():
    model, pair, handle = make(
        NearestOrthogonalGradient(["0", "2"]),
        Retraction(["0", "2"], onto="norm"),
        OptimalLearningRate("2"),
        ConditionMonitor(["0", "2"]),
    )
    norms = [model[i].weight.norm().item() for i in (0, 2)]
    backward(model)
    untouched = model[2].weight.grad.clone()
    pair[0].step()
    assert torch.equal(model[2].weight.grad, untouched)
    torch.testing.assert_close(model[0].weight.grad, polar_factor(model[0].weight.grad))
    with torch.no_grad():
        model[0].weight.mul_(2)  # not to be taken back by the step of the other
        model[2].weight.mul_(2)
    pair[1].step()
    assert model[0].weight.norm().item() == pytest.approx(2 * norms[0], rel=1e-5)
    assert model[2].weight.norm().item() == pytest.approx(norms[1], rel=1e-5)
    torch.testing.assert_close(model[2].weight.grad, polar_factor(untouched))
    read = [(r["what"], r["layer"]) for r in handle.records if r["method"] == "condition_monitor"]
    assert sorted(read) == [(w, i) for w in ("gradient", "update", "weight") for i in "02"]


def test_of_several_steps_within_one_the_monitor_records_the_last():
    model, pair, handle = make(ConditionMonitor("0"))
    for _ in range(3):
        before = model[0].weight.detach().clone()
        backward(model)
        pair[0].step()
    moved = (model[0].weight - before).norm().item()
    pair[1].step()
    updates = [r for r in handle.records if r["what"] == "update"]
    assert [r["step"] for r in updates] == [1]
    assert updates[0]["norm"] == pytest.approx(moved, rel=1e-4)


@pytest.mark.parametrize("wrapper", [Lookahead, Slotted])
def test_wrapped_ones_in_a_list(wrapper):
    model = small_model()
    outer = [wrapper(each) for each in two(model)]
    handle = attach(model, outer, Diary())
    for _ in range(3):
        backward(model)
        for each in outer:
            each.step()
    assert handle.run.step == 3


def test_sam_beside_another_one():
    model = small_model()
    sam = SAM(model[0].parameters(), torch.optim.SGD, lr=0.1)
    plain = torch.optim.SGD(model[2].parameters(), lr=0.1)
    handle = attach(model, [sam, plain], Diary())
    for _ in range(4):
        backward(model)
        sam.step(lambda: backward(model))
        plain.step()
    assert handle.run.step == 4


def test_the_state_within_a_step_is_part_of_the_handle_s():
    model, pair, handle = make(Diary())
    backward(model)
    pair[0].step()
    states = [handle.state_dict()]
    backward(model)
    states.append(handle.state_dict())
    assert [state["round"]["untouched"] for state in states] == [[0], []]
    for state, untouched in zip(states, (True, False), strict=True):
        other_model, other_pair, other = make(Diary())
        other.load_state_dict(state)
        assert other.run.may_change_shape(other_model[0].weight) is untouched
        assert not other.run.may_change_shape(other_model[2].weight)
        other_pair[1].step()
        assert other.run.step == 1
        assert other.run.may_change_shape(other_model[2].weight)


@pytest.mark.parametrize("reached", [1, 2])
def test_a_shape_may_change_from_the_own_step_to_the_next_pass(reached):
    """Also where that pass reaches one end of the part alone."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    pair = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[:1], model[1:])]
    run = attach(model, pair, Diary()).run
    step_all(model, pair)
    assert all(run.may_change_shape(p) for p in model.parameters())
    model[reached](torch.ones(1, 3)).sum().backward()
    assert not any(run.may_change_shape(p) for p in model.parameters())
    pair[1].step()
    assert [run.may_change_shape(layer.weight) for layer in model] == [False, True, True]


# --- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", [False, True])
def test_by_hand_all_at_once_or_each_by_itself(each):
    by_itself, by_hand = small_model(), small_model()
    methods = (
        NearestOrthogonalGradient(["0", "2"], when="update"),
        Retraction("0", onto="norm"),
        ConditionMonitor(["0", "2"]),
    )
    first, second = two(by_itself), two(by_hand)
    attach(by_itself, first, *methods)
    handle = attach(by_hand, second, *methods, auto=False)
    for _ in range(3):
        step_all(by_itself, first)
        backward(by_hand)
        if not each:
            handle.before_step()
        for optimizer in second:
            if each:
                handle.before_step(optimizer)
            optimizer.step()
            if each:
                handle.step(optimizer)
        if not each:
            handle.step()
        by_hand.zero_grad()
    assert handle.run.step == 3
    assert len(handle.records) == 3 * 6
    assert same(dict(by_itself.state_dict()), dict(by_hand.state_dict()))


def test_by_hand_another_optimizer_is_refused():
    model, pair, handle = make(Diary(), auto=False)
    with pytest.raises(ConfigError, match=r"none of the optimizers given to attach \(SGD, SGD\)"):
        handle.step(torch.optim.SGD(model.parameters(), lr=0.1))
    handle.step(Slotted(pair[0]))
    handle.step(pair[1])
    assert handle.run.step == 1


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.bad_input
def test_a_parameter_in_two_optimizers_is_named():
    model = small_model()
    pair = two(model)
    pair[1].add_param_group({"params": [model[0].bias]})
    with pytest.raises(ConfigError, match=r"0\.bias is in two of the optimizers \(SGD, SGD\)"):
        attach(model, pair, Diary())
    attach(model, pair[0], Diary())


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (lambda pair: [], "empty list"),
        (lambda pair: [pair[0], pair[0]], "0 and 1 of the list are the same SGD"),
        (lambda pair: [Slotted(pair[0]), pair[1], pair[0]], "0 and 2 of the list are the same"),
        (lambda pair: [pair[0], small_model()], "got Sequential"),
        (lambda pair: {"a": pair[0]}, "got dict"),
        (lambda pair: [pair[0], two(small_model())[0]], "holds none of the parameters"),
        (lambda pair: [pair], "got list"),
        (lambda pair: Two([torch.ones(2)], whole=False), "as a list where they train parts"),
    ],
)
def test_what_is_no_list_of_optimizers(choose, message):
    model = small_model()
    pair = two(model)
    with pytest.raises(ConfigError, match=message):
        attach(model, choose(pair), Diary())


@pytest.mark.bad_input
def test_a_second_optimizer_without_brackets():
    model = small_model()
    with pytest.raises(ConfigError, match=r"SGD as a method; several optimizers go in a list"):
        attach(model, *two(model), Diary())


@pytest.mark.bad_input
def test_a_weight_that_none_of_them_holds_is_named():
    model = small_model()
    pair = [torch.optim.SGD([model[0].weight], lr=0.1), torch.optim.SGD([model[0].bias], lr=0.1)]
    with pytest.raises(ConfigError, match=r"2\.weight is not in the optimizer"):
        attach(model, pair, NearestOrthogonalGradient("2"))


@pytest.mark.bad_input
def test_lbfgs_is_refused_for_what_it_holds_alone():
    model = small_model()
    pair = [torch.optim.LBFGS(model[0].parameters()), torch.optim.SGD(model[2].parameters(), 0.1)]
    with pytest.raises(ConfigError, match="LBFGS computes"):
        attach(model, pair, NearestOrthogonalGradient("0"))
    attach(model, pair, NearestOrthogonalGradient("2"))


def test_a_second_handle_on_other_parameters_is_fine():
    model = small_model()
    pair = two(model)
    first = attach(model, pair[0], Diary())
    second = attach(model, pair[1], Diary())
    for _ in range(2):
        step_all(model, pair)
    pair[0].step()
    assert (first.run.step, second.run.step) == (3, 2)
    with pytest.raises(
        ConfigError, match=r"2\.weight, 2\.bias are .*as a list, or into a call each"
    ):
        attach(model, torch.optim.Adam(model[2].parameters()), Diary())
    second.detach()
    attach(model, torch.optim.Adam(model[2].parameters()), Diary())


# --- lifetimes ------------------------------------------------------------------------------------


def test_detached_nothing_is_left():
    model = small_model()
    pair = two(model)
    before = [hook_counts(model, each) for each in pair]
    handle = attach(model, pair, Diary(), ConditionMonitor("0"))
    handle.detach()
    step_all(model, pair)
    assert handle.run.step == 0
    assert [hook_counts(model, each) for each in pair] == before


def test_model_and_optimizers_are_freed_with_their_last_user():
    model, pair, handle = make(Idle(), ConditionMonitor("0"))
    step_all(model, pair)
    gc.collect()
    alive = [weakref.ref(each) for each in (model, *pair, handle)]
    gc.disable()
    try:
        del model, pair, handle
        assert [each() for each in alive] == 4 * [None]
    finally:
        gc.enable()


def test_one_of_them_that_is_gone_is_told_at_the_next_step():
    model, pair, handle = make(Diary())
    step_all(model, pair)
    del pair[1]
    assert handle.summary().total.state_bytes == 0
    assert "[SGD]" in repr(handle)
    backward(model)
    with pytest.raises(StateError, match=r"one of \(SGD, SGD\) given to attach was deleted"):
        pair[0].step()


def test_one_of_them_that_is_not_stepped_any_more_is_told():
    model, pair, _handle = make(Diary())
    for _ in range(3):
        step_all(model, pair)
    other = torch.optim.AdamW(model[2].parameters())
    for _ in range(10):
        backward(model)
        pair[0].step()
        other.step()
    with pytest.warns(OrthotrainWarning, match="since the last step of SGD, one of the optimizers"):
        backward(model)


@pytest.mark.parametrize("accumulated", [1, 16])
def test_one_of_them_that_never_steps_is_told_after_a_few_steps_of_the_other(accumulated):
    model, pair, _handle = make(Diary())
    backward(model)
    pair[0].step()

    def go_on(steps):
        for _ in range(steps):
            for _ in range(accumulated):
                backward(model)
            pair[0].step()

    told = r"passes and not one optimizer step of SGD.*step this one"
    with pytest.warns(OrthotrainWarning, match=told) as caught:
        go_on(33)
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"{31 * accumulated + 2} backward passes")


def test_one_of_them_that_stops_is_told_by_the_steps_of_the_other():
    model, pair, _handle = make(Diary())
    for _ in range(3):
        step_all(model, pair)

    def go_on(steps):
        for _ in range(steps):
            step_all(model, pair[:1])

    with pytest.warns(OrthotrainWarning, match=r"since the last step of SGD.*other optimizers"):
        go_on(40)


def test_steps_of_the_other_raise_the_limit_to_four_times_as_many_as_were_seen():
    model, (often, seldom), _handle = make(Diary())

    def go_on(steps):
        for _ in range(steps):
            backward(model)
            often.step()

    for _ in range(3):
        go_on(20)
        seldom.step()
    go_on(76)  # 4 * 19: the first pass of each round came before a step of the other
    with pytest.warns(OrthotrainWarning, match=r"^77 backward .* step of SGD.*other optimizers"):
        go_on(10)


@pytest.mark.parametrize("reached", [True, False], ids=["not detached", "detached"])
@pytest.mark.parametrize(("critic", "accumulated"), [(5, 1), (31, 1), (5, 16)])
def test_a_gan_that_steps_one_of_them_more_often_is_no_alarm(reached, critic, accumulated):
    model, (often, seldom), handle = make(Diary())
    for _ in range(4):
        for step in range(critic + 1):
            for _ in range(accumulated):
                model[2].requires_grad_(reached or step == critic)
                backward(model)
            (seldom if step == critic else often).step()
    assert handle.run.step == 4


def test_one_that_starts_later_raises_no_alarm_while_no_gradient_reaches_it():
    model, (first, later), _handle = make(Diary())
    model[2].requires_grad_(False)
    for _ in range(200):
        backward(model)
        first.step()
    model[2].requires_grad_(True)
    step_all(model, [first, later])


def test_summary_plan_and_ranks_of_all():
    model = small_model()
    pair = two(model, kind=torch.optim.Adam)
    handle = attach(model, pair, Diary())
    step_all(model, pair)
    numbers = sum(p.numel() for p in model.parameters())
    assert handle.summary().total.state_bytes == 4 * (2 * numbers + 4)  # and a count for each
    assert handle.plan.startswith("a step of training ends when each of Adam, Adam has stepped\n")
    assert repr(handle).startswith("Handle(model=Sequential, optimizer=[Adam, Adam], step=1")
    assert handle.ranks == {"0": 2}


def test_mismatched_state_of_each_is_noticed():
    model = small_model()
    pair = two(model, kind=torch.optim.Adam)
    attach(model, pair, Idle())
    step_all(model, pair)
    pair[1].state[model[2].weight]["exp_avg"] = torch.zeros(5)
    pair[1].load_state_dict(pair[1].state_dict())
    backward(model)
    pair[0].step()
    with pytest.raises(StateError, match="Adam: state does not fit"):
        pair[1].step()


def test_a_resume_without_the_state_of_the_handle_is_refused_by_each():
    model = small_model()
    pair = two(model, kind=torch.optim.Adam)
    step_all(model, pair)
    state = pair[1].state_dict()
    fresh = small_model()
    others = two(fresh, kind=torch.optim.Adam)
    attach(fresh, others, Retraction("0"))
    others[1].load_state_dict(state)
    backward(fresh)
    others[0].step()
    with pytest.raises(StateError, match="took the state of a run that has begun"):
        others[1].step()


def test_a_module_with_parts_of_its_own():
    """As a GAN: the optimizer of a part, the module around both."""
    model = nn.ModuleDict({"a": small_model(), "b": small_model()})
    pair = [torch.optim.SGD(model[name].parameters(), lr=0.1) for name in "ab"]
    handle = attach(model, pair, NearestOrthogonalGradient("*.0"))
    backward(model["a"])
    pair[0].step()
    backward(model["b"])
    pair[1].step()
    assert handle.run.step == 1
