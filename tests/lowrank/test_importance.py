"""What a run's own passes tell: gathered before an update, the same however it is trained."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import orthotrain
from lowrank.nets import Everything, attached, batch, events, filled, mlp, through_file, train
from methods.doubles import same
from orthotrain import AdaptiveLowRank, StoredBudget, attach, frozen_copy
from orthotrain.errors import ConfigError, NonFiniteError, OrthotrainWarning
from orthotrain.linalg import metric_svd, truncated
from orthotrain.lowrank import Energy
from orthotrain.lowrank.history import LayerHistory
from orthotrain.lowrank.look import candidate_of
from orthotrain.lowrank.sites import Selection, find_sites

METRIC = {"importance": "loss", "stored_budget": 0.6, "max_drop": 1.0}


class Plain(nn.Module):
    """Two layers in a row, whose gradients are easy to have by hand."""

    def __init__(self, width=10):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        filled(self)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def loss_of(model, step, *, rows=32):
    x = batch(step, rows, 10)
    return F.mse_loss(model(x), x.flip(1).sin())


def moments_by_hand(model, steps):
    """``A`` and ``B`` of both layers over steps, each step's gradients over their total."""
    found = {}
    for step in steps:
        x = batch(step, 32, 10)
        hidden = model.a(x)
        inputs = {"a": x, "b": torch.tanh(hidden)}
        outputs = {"a": hidden, "b": model.b(inputs["b"])}
        loss = F.mse_loss(outputs["b"], x.flip(1).sin())
        gradients = torch.autograd.grad(loss, list(outputs.values()))
        total = sum(float(g.square().sum()) for g in gradients)
        for (name, x), g in zip(inputs.items(), gradients, strict=True):
            a, b = found.get(name, (0.0, 0.0))
            x = x.detach()
            found[name] = (a + x.mT @ x / len(x), b + g.mT @ g / total)
    return {name: (a / len(steps), b) for name, (a, b) in found.items()}


def test_a_cut_is_that_of_the_metric_of_the_last_eight_steps():
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)  # so that the weights stay
    before = copy.deepcopy(model)
    attach(
        model, optimizer,
        AdaptiveLowRank(spread=False, delay_steps=11, stored_budget=0.6, dense_last=False),
        total_steps=20,
    )  # fmt: skip
    train(model, optimizer, range(11), loss_of=loss_of)
    for name, (a, b) in moments_by_hand(before, range(3, 11)).items():
        layer = getattr(model, name)
        w = getattr(before, name).weight.detach()
        u, s, vh = truncated(metric_svd(w, a=a, b=b), layer.rank)
        torch.testing.assert_close(layer.weight.detach(), u * s @ vh)
        assert 1 <= layer.rank < 5


def test_ranks_follow_one_threshold_on_the_estimated_loss():
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    before = copy.deepcopy(model)
    method = AdaptiveLowRank(spread=False, delay_steps=8, stored_budget=0.5, dense_last=False)
    attach(model, optimizer, method)
    train(model, optimizer, range(8), loss_of=loss_of)
    values = sorted(
        (float(s) ** 2, name)
        for name, (a, b) in moments_by_hand(before, range(8)).items()
        for s in metric_svd(getattr(before, name).weight, a=a, b=b).s
    )
    kept = model.a.rank + model.b.rank
    for name in ("a", "b"):
        assert getattr(model, name).rank == sum(n == name for _, n in values[-kept:])


def trained(**options):
    """A network after its cut, trained in one of several ways that must not matter."""
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    method = AdaptiveLowRank(delay_steps=9, stored_budget=0.5, dense_last=False)
    handle = attach(model, optimizer, method, total_steps=20)
    scale = options.get("scale", 1.0)
    for step in range(12):
        optimizer.zero_grad()
        if options.get("accumulate"):
            x = batch(step, 32, 10)
            for part in x.chunk(4):
                (F.mse_loss(model(part), part.flip(1).sin()) / 4 * scale).backward()
        elif options.get("checkpoint"):
            x = batch(step, 32, 10)
            y = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
            (F.mse_loss(y, x.flip(1).sin()) * scale).backward()
        else:
            (loss_of(model, step) * scale).backward()
        if options.get("look"):
            with torch.no_grad():
                loss_of(model, 100 + step)
        for p in model.parameters():
            p.grad /= scale
        optimizer.step()
    return model, handle


@pytest.mark.parametrize(
    "options",
    [{"scale": 1024.0}, {"accumulate": True}, {"checkpoint": True}, {"look": True}],
    ids=lambda options: next(iter(options)),
)
def test_loss_scale_accumulation_checkpointing_and_evaluation_change_nothing(options):
    plain, other = trained()[0], trained(**options)[0]
    assert (plain.a.rank, plain.b.rank) == (other.a.rank, other.b.rank)
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_step_that_is_not_finite_is_left_out():
    """``GradScaler`` skips such a step; its passes must not count."""
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = AdaptiveLowRank(spread=False, delay_steps=8, stored_budget=0.5, dense_last=False)
    attach(model, optimizer, method)
    for step in range(8):
        optimizer.zero_grad()
        factor = math.inf if step == 4 else 1.0
        (loss_of(model, step) * factor).backward()
        optimizer.zero_grad()
        optimizer.step()
    assert model.a.rank < 10
    broken = Plain()
    optimizer = torch.optim.SGD(broken.parameters(), lr=0.1)
    attach(broken, optimizer, method)
    for step in range(8):
        (loss_of(broken, step) * math.inf).backward()
        optimizer.zero_grad()
        if step < 7:
            optimizer.step()
    with pytest.raises(NonFiniteError, match="each of the last 8 steps"):
        optimizer.step()


def test_grad_scaler_on_a_run():
    """Skipped steps and a scale that moves; on the CPU, in float32."""
    model = Plain().float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    method = AdaptiveLowRank(delay_steps=9, stored_budget=0.5, dense_last=False)
    handle = attach(model, optimizer, method)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
    for step in range(14):
        x = batch(step, 32, 10).float()
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), x.flip(1).sin())
        scaler.scale(loss * (math.inf if step == 5 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert handle.run.step == 13
    assert model.a.rank < 10
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_without_a_backward_pass_the_update_says_so():
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, AdaptiveLowRank(delay_steps=2, energy=0.9, every_steps=5))
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(ConfigError, match=r"saw none.*loss.backward\(\).*importance=\"weight\""):
        optimizer.step()


class Unused(Plain):
    """With a layer that no loss reaches."""

    def __init__(self):
        super().__init__()
        self.spare = filled(nn.Linear(10, 10), seed=3)


def test_a_layer_without_data_falls_back_to_its_energy_and_is_named():
    model = Unused()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    method = AdaptiveLowRank(spread=False, delay_steps=4, stored_budget=0.5, dense_last=False)
    handle = attach(model, optimizer, method)
    train(model, optimizer, range(5), loss_of=loss_of)
    assert model.spare.rank < 10
    notes = "\n".join(handle.summary().notes)
    assert "spare: no gradient reached it" in notes
    assert "a: no gradient" not in notes


def test_nothing_stays_on_the_model_outside_the_window():
    model = filled(Everything())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    method = AdaptiveLowRank(delay_steps=10, every_steps=99, energy=0.8)
    handle = attach(model, optimizer, method)
    hooks = lambda: sum(len(m._forward_hooks) for m in model.modules())  # noqa: E731
    quiet, kinds = hooks(), [type(m) for m in model.modules()]
    seen = []
    for step in range(12):
        seen.append(hooks() > quiet)
        optimizer.zero_grad()
        model(Everything.batch(step)).square().mean().backward()
        optimizer.step()
    assert seen == [2 <= step < 10 for step in range(12)]
    assert hooks() == quiet
    assert not any("Observed" in type(m).__name__ for m in model.modules()), kinds
    handle.detach()


def test_detached_in_the_window_nothing_stays():
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle = attach(model, optimizer, AdaptiveLowRank(delay_steps=4, energy=0.8))
    train(model, optimizer, range(2), loss_of=loss_of)
    handle.detach()
    assert not any(m._forward_hooks for m in model.modules())


def test_a_copy_made_in_the_window_feeds_nothing():
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    method = AdaptiveLowRank(delay_steps=8, stored_budget=0.5, dense_last=False)
    attach(model, optimizer, method)
    twin = Plain()
    other = torch.optim.SGD(twin.parameters(), lr=0.0)
    attach(twin, other, method)
    for step in range(8):
        train(model, optimizer, [step], loss_of=loss_of)
        loss_of(copy.deepcopy(twin), 50 + step).backward()
        train(twin, other, [step], loss_of=loss_of)
    assert torch.equal(model.a.weight, twin.a.weight)


@pytest.mark.parametrize("importance", ["loss", "input"])
@pytest.mark.parametrize("bases", ["trained", pytest.param("frozen", marks=pytest.mark.slow)])
def test_saved_in_the_window_a_run_goes_on_bit_for_bit(importance, bases):
    settings = {
        "delay_steps": 9, "every_steps": 9, "energy": 0.7, "max_drop": 0.3,
        "importance": importance, "bases": bases,
    }  # fmt: skip
    steps = 19

    def start():
        model = filled(Everything()) if importance == "loss" else mlp(10)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return (model, *attached(model, optimizer, **settings))

    def objective(model, step):
        if isinstance(model, Everything):
            return model(Everything.batch(step)).square().mean()
        return loss_of(model, step)

    parts = start()
    states = []
    for step in range(steps):
        states.append(through_file({i: part.state_dict() for i, part in enumerate(parts)}))
        train(parts[0], parts[1], [step], loss_of=objective, handle=parts[2])
    states.append(through_file({i: part.state_dict() for i, part in enumerate(parts)}))
    assert events(parts[2], "switch")
    watched = [bool(state[2]["methods"]["adaptive_low_rank"]["statistics"]) for state in states]
    assert watched == [step % 9 > 0 for step in range(steps + 1)]
    # What is watched does not depend on the form, so each form is saved at every second place.
    places = (0, 2, 9, 11, 17) if bases == "trained" else (1, 8, 10, 14, 18)
    for step in places:
        again = start()
        for i, part in enumerate(again):
            part.load_state_dict(through_file(states[step])[i])
        train(again[0], again[1], range(step, steps), loss_of=objective, handle=again[2])
        found = through_file({i: part.state_dict() for i, part in enumerate(again)})
        assert same(found, states[-1]), step


def test_energy_that_was_cut_counts_in_the_next_metric():
    """Energies of two metrics do not add up; shares of what was kept do."""
    layer = LayerHistory()
    assert layer.energy_was_cut([8.0], [2.0], in_metric=True) == pytest.approx(0.8)
    # What was 8 is 80 in the next metric, of 100 that would be there without the first cut.
    assert layer.energy_was_cut([70.0], [10.0], in_metric=True) == pytest.approx(0.7)
    assert layer.energy_was_cut([0.7], [0.0], in_metric=True) == pytest.approx(0.7)
    site = find_sites(mlp(10, depth=2), Selection())[0][0]
    layer = LayerHistory(cut_energy=[0.25])
    spectrum = torch.full((1, 10), 2.0)
    settings = AdaptiveLowRank(energy=0.8)
    candidate = candidate_of(site, spectrum, layer, within_reach=True, settings=settings)
    assert candidate.cut_energy == [pytest.approx(10.0)]
    assert Energy(0.8).rank(candidate) == 10


# --- what can be set ------------------------------------------------------------------------------


def test_bare_it_halves_the_stored_numbers_at_half_of_the_run():
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)))
    filled(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    handle = attach(model, optimizer, AdaptiveLowRank(), total_steps=40)
    dense = sum(p.numel() for p in model.parameters())

    def objective(model, step):
        return model(batch(step, 64, 32)).square().mean()

    train(model, optimizer, range(19), loss_of=objective)
    assert sum(p.numel() for p in model.parameters()) == dense
    per_step = []
    for step in range(19, 26):
        train(model, optimizer, [step], loss_of=objective)
        per_step.append(handle.summary().total.stored)
    assert per_step == sorted(per_step, reverse=True)
    assert len(set(per_step)) == 4  # three layers, one per step
    stored = handle.summary().total.stored
    assert 0.45 * dense < stored <= 0.5 * dense
    assert f"then at most {dense // 2:,} of {dense:,} numbers are stored" in handle.plan
    train(model, optimizer, range(26, 40), loss_of=objective)
    assert handle.summary().total.stored == stored
    assert [r["step"] for r in events(handle, "update")] == [25]
    assert {row.form for row in handle.summary().rows} == {"two factors"}


def test_a_trained_model_is_cut_after_a_few_steps():
    model = Plain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    method = AdaptiveLowRank(rank=StoredBudget(0.5), delay_steps=0, dense_last=False)
    handle = attach(model, optimizer, method, total_steps=20)
    train(model, optimizer, range(20), loss_of=loss_of)
    assert [r["step"] for r in events(handle, "switch")] == [10, 11]  # after two looks


def test_shares_without_a_known_length_settle_and_say_so():
    model = Plain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with pytest.warns(OrthotrainWarning, match="pass total_steps to attach"):
        handle = attach(model, optimizer, AdaptiveLowRank(dense_last=False))
    plan, dense = handle.plan, sum(p.numel() for p in model.parameters())
    assert "each layer switches once its basis settles, checked every 100 steps" in plan
    assert "at the earliest after step 400" in plan
    assert "that is the peak" in plan
    assert f"the goal once updates allow it: then at most {dense // 2:,} of {dense:,}" in plan
    assert any("no basis has settled yet" in note for note in handle.summary().notes)


def test_a_goal_that_the_updates_of_the_run_cannot_reach_is_not_promised():
    model = Plain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    method = AdaptiveLowRank(max_drop=0.1, every_steps=20, dense_last=False)
    plan = attach(model, optimizer, method, total_steps=100).plan.splitlines()
    assert not any(line.startswith("then at most") for line in plan)
    assert any(line.startswith("the goal once updates allow it: then at most") for line in plan)
    assert "the 3 updates of the run leave at least 72.9 % of a rank" in plan


def test_a_model_that_is_small_already_is_told_so_and_one_cut_has_no_guard():
    model = Plain()
    orthotrain.compress(model, stored_budget=0.4, bases="trained")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    handle = attach(model, optimizer, AdaptiveLowRank(dense_last=False), total_steps=20)
    assert "are stored already: nothing is left to cut" in handle.plan
    train(model, optimizer, range(20), loss_of=loss_of)
    assert not any("handle.observe" in note for note in handle.summary().notes)


def test_the_only_cut_of_a_run_tells_when_it_made_the_loss_jump():
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    handle = attach(model, optimizer, AdaptiveLowRank(dense_last=False), total_steps=60)
    for step in range(60):
        # Of two layers one is cut before this step and one after it.
        between = 50.0 if step == 32 else 0.0
        handle.observe(1.0 + 0.01 * (step % 3) + (step >= 32) + between)
        train(model, optimizer, [step], loss_of=loss_of)
    assert [r["step"] for r in events(handle, "switch")] == [32, 33]
    assert sum("the cut made the training loss jump" in n for n in handle.summary().notes) == 1
    assert not any("delayed" in note for note in handle.summary().notes)


def test_shares_become_counts():
    model = Plain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    method = AdaptiveLowRank(delay_steps=0.25, every_steps=0.1, energy=0.9, importance="weight")
    handle = attach(model, optimizer, method, total_steps=40)
    train(model, optimizer, range(40), loss_of=loss_of)
    assert [r["step"] for r in events(handle, "update")] == list(range(10, 41, 4))


def test_published_is_the_papers_method():
    paper = AdaptiveLowRank.published(delay_steps=10, every_steps=5, rank_rtol=0.2)
    assert paper == AdaptiveLowRank(
        delay_steps=10, every_steps=5, rank_rtol=0.2, importance="weight", bases="frozen",
        layer_fraction=0.1, max_drop=0.5, only_if_cheaper=False, core_step=1.0, spread=False,
    )  # fmt: skip
    assert replace(paper, spread=True).spread
    with pytest.raises(ConfigError, match="published has no bases, energy"):
        AdaptiveLowRank.published(delay_steps=1, every_steps=1, energy=0.9, bases="trained")


def test_a_budget_out_of_reach_is_told_when_attached():
    model = nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rest = r"stored_budget=0.3 .*Largest of the rest: 0.*: 1,600, 2 \(first or last .*: 272, 1: 16"
    with pytest.raises(ConfigError, match=rest):
        attach(model, optimizer, AdaptiveLowRank(rank=StoredBudget(0.3)), total_steps=100)
    assert not model[1]._forward_hooks


def test_only_and_max_aspect():
    model = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 16), nn.Linear(16, 16))
    filled(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {"importance": "weight", "rank_rtol": 0.9, "delay_steps": 0, "every_steps": 9}
    method = AdaptiveLowRank(**settings, only=["0", "2"], max_aspect=4, dense_last=False)
    handle = attach(model, optimizer, method)
    assert [row.name for row in handle.summary().rows] == ["2"]
    assert "0: too thin: 64 x 16, max_aspect=4 leaves it out" in handle.summary().notes


BAD = {
    "delay_steps": [1.5, 0.0, -1, "late", math.nan, True],
    "every_steps": [1.5, 0, "often"],
    "importance": ["gradient"],
    "only": ["block.*"],
    "max_aspect": [1.0, 0, "wide"],
    "factor_step": [0.0, -1.0, "auto", math.inf],
    "core_step": [0.0, "on", math.nan],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ConfigError, match=name):
        AdaptiveLowRank(**{name: value})


# --- the steps of factors -------------------------------------------------------------------------


def stepped(optimizer_of, **settings):
    """A factored network one step later, and what the same step would have been unscaled."""
    found = []
    for scaled in (True, False):
        model = mlp(12, depth=2)
        optimizer = optimizer_of(model.parameters())
        options = settings if scaled else {"core_step": 1.0, "factor_step": 1.0}
        keep = {k: v for k, v in settings.items() if k == "bases"}
        attached(model, optimizer, delay_steps=0, every_steps=50, rank_rtol=0.5, **keep | options)
        before = [p.detach().clone() for p in model.parameters()]
        x = batch(0, 16, 12)
        (model(x) - x.sin()).square().mean().backward()
        optimizer.step()
        found.append([p.detach() - b for p, b in zip(model.parameters(), before, strict=True)])
    return model, *found


def test_adam_moves_a_core_as_far_as_the_dense_weight():
    model, scaled, plain = stepped(lambda p: torch.optim.Adam(p, lr=1e-2), core_step="auto")
    names = [name for name, _ in model.named_parameters()]
    for name, one, other in zip(names, scaled, plain, strict=True):
        core = name.endswith("core")
        factor = 12 / other.shape[0] if core else 1.0
        assert not core or factor > 1
        torch.testing.assert_close(one, factor * other)


@pytest.mark.parametrize("kind", ["SGD", "Adafactor"])
def test_steps_in_proportion_stay_as_they_are(kind):
    make = getattr(torch.optim, kind)
    _, scaled, plain = stepped(lambda p: make(p, lr=1e-2), core_step="auto")
    assert all(torch.equal(a, b) for a, b in zip(scaled, plain, strict=True))


def test_decoupled_decay_is_not_scaled():
    make = lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5)  # noqa: E731
    none = lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.0)  # noqa: E731
    for settings in ({"core_step": 3.0}, {"bases": "trained", "factor_step": 3.0}):
        _, with_decay, unscaled = stepped(make, **settings)
        _, without, unscaled_without = stepped(none, **settings)
        for a, b, c, d in zip(with_decay, without, unscaled, unscaled_without, strict=True):
            torch.testing.assert_close(a - b, c - d)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's own look at a tensor
@pytest.mark.parametrize("importance", ["loss", "input"])
def test_a_compiled_model_is_seen(importance):
    model = Plain()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loss_of(compiled, 0).backward()
    method = AdaptiveLowRank(
        delay_steps=9, stored_budget=0.5, dense_last=False, importance=importance
    )
    handle = attach(compiled, optimizer, method)
    plain = Plain()
    other = torch.optim.SGD(plain.parameters(), lr=0.05)
    attach(plain, other, method)
    for step in range(11):
        for net, opt in ((compiled, optimizer), (plain, other)):
            opt.zero_grad()
            loss_of(net, step).backward()
            opt.step()
    assert not any("no gradient" in note for note in handle.summary().notes)
    assert model.a.rank == plain.a.rank < 10


def test_two_devices_are_refused():
    model = Plain()
    model.b = nn.Linear(10, 10, device="meta")
    optimizer = torch.optim.SGD(model.a.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ConfigError, match=r"importance='loss' needs the model on one device"):
            orthotrain.attach(model, optimizer, AdaptiveLowRank(), total_steps=10)


# --- other ways to step ---------------------------------------------------------------------------


@pytest.mark.parametrize("bases", ["trained", "frozen"])
def test_a_closure_and_steps_called_by_hand_do_the_same(bases):
    settings = {"energy": 0.7, "delay_steps": 3, "every_steps": 4, "bases": bases}
    settings["dense_last"] = False
    ended = []
    for way in ("plain", "closure", "by hand"):
        model = Plain()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        method = AdaptiveLowRank(**settings)
        handle = attach(model, optimizer, method, auto=way != "by hand")

        def gradients(step, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            return loss

        for step in range(9):
            if way == "closure":
                optimizer.step(lambda step=step, gradients=gradients: gradients(step))
                continue
            gradients(step)
            if way == "by hand":
                handle.before_step()
            optimizer.step()
            if way == "by hand":
                handle.step()
        assert [r["step"] for r in events(handle, "update")] == [3, 7]
        ended.append(through_file([model.state_dict(), optimizer.state_dict()]))
    assert same(ended[0], ended[1])
    assert same(ended[0], ended[2])


def test_by_hand_the_bare_method_needs_one_call_per_step():
    model = Plain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    method = AdaptiveLowRank(dense_last=False)
    handle = attach(model, optimizer, method, auto=False, total_steps=20)
    for step in range(20):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        handle.step()
    assert model.a.rank < 10


def test_by_hand_scaled_steps_have_to_be_seen_to_begin():
    model = Plain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    method = AdaptiveLowRank(
        spread=False, delay_steps=2, energy=0.8, dense_last=False, bases="frozen"
    )
    handle = attach(model, optimizer, method, auto=False)
    for step in range(2):
        loss_of(model, step).backward()
        optimizer.step()
        handle.step()
    loss_of(model, 2).backward()
    optimizer.step()
    with pytest.raises(ConfigError, match=r"handle.before_step\(\) before optimizer.step\(\)"):
        handle.step()


@pytest.mark.parametrize("at", [3, 8, 10])
def test_attention_saved_and_loaded_in_any_order(at):
    def start():
        model = filled(Everything())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        return (model, *attached(model, optimizer, **settings))

    settings = {"delay_steps": 0, "every_steps": 40, "energy": 0.8, "importance": "loss"}
    settings |= {"bases": "trained", "max_drop": 1.0}

    def objective(model, step):
        return model(Everything.batch(step)).square().mean()

    parts = start()
    train(parts[0], parts[1], range(at), loss_of=objective, handle=parts[2])
    states = through_file([part.state_dict() for part in parts])
    train(parts[0], parts[1], range(at, 12), loss_of=objective, handle=parts[2])
    ended = through_file([part.state_dict() for part in parts])
    for order in itertools.permutations(range(3)):
        again = start()
        for i in order:
            again[i].load_state_dict(through_file(states)[i])
        train(again[0], again[1], range(at, 12), loss_of=objective, handle=again[2])
        assert same(ended, through_file([part.state_dict() for part in again])), order


def test_copies_of_attention_made_in_the_window_are_plain():
    model = filled(Everything())
    kinds = [type(m) for m in model.modules()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    fast = torch.backends.mha.get_fastpath_enabled()
    handle = attach(model, optimizer, AdaptiveLowRank(delay_steps=0, energy=0.8))
    twin = filled(Everything())
    other = attach(
        twin, torch.optim.AdamW(twin.parameters()), AdaptiveLowRank(delay_steps=0, energy=0.8)
    )
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), frozen_copy(model)]
    for one in copies:
        assert [type(m) for m in one.modules()] == kinds
        with torch.no_grad():
            torch.testing.assert_close(one(Everything.batch(0)), model(Everything.batch(0)))
    handle.detach()
    other.detach()
    assert [type(m) for m in model.modules()] == kinds
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("total", "remedy"), [(6, "delay_steps=1 to 5 watches fewer steps"), (1, 'importance="weight"')]
)
def test_a_run_too_short_to_be_watched_is_told_what_to_do(total, remedy):
    model = Plain()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=f"after step 8 at the earliest.*{remedy}"):
        attach(model, optimizer, AdaptiveLowRank(delay_steps=0), total_steps=total)
