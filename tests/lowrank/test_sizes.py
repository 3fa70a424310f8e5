"""``sizes``: branches of one start, which stays as it is; the table; what it refuses."""

from __future__ import annotations

import copy
import re
import warnings

import pytest
import torch
from torch import nn

from contract.test_optimizer_state_contract import OPTIMIZERS, Row
from lowrank.nets import (
    Everything,
    attached,
    batch,
    everything_loss,
    filled,
    mlp,
    mlp_loss,
    train,
    weights,
)
from methods.doubles import same
from orthotrain import AdaptiveLowRank, StoredBudget, attach, compress, rate_after_cut, sizes
from orthotrain.errors import ConfigError, NonFiniteError, OrthotrainWarning
from orthotrain.layers import LowRankLinear
from orthotrain.methods.optimizer_state import check_shapes


def squares(model, x):
    return (model(x) - x.flip(1).sin()).square().mean()


class Last(nn.Module):
    """The output of a recurrent layer, without its state."""

    def forward(self, given):
        return given[0]


def data_of(count=4, width=8):
    return [batch(50 + i, 16, width) for i in range(count)]


def start(width=8, *, steps=4, kind=torch.optim.AdamW):
    """A trained model with the state of its optimizer."""
    model = mlp(width)
    optimizer = kind(model.parameters(), lr=0.01)
    train(model, optimizer, range(steps))
    return model, optimizer


def snapshot(model, optimizer):
    """Everything that must not change, copied."""
    kept = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "modes": [module.training for module in model.modules()],
        "trained": [p.requires_grad for p in model.parameters()],
        "gradients": [p.grad for p in model.parameters()],
    }
    return copy.deepcopy(kept)


def three_steps(branch, *, loss_of=mlp_loss):
    return train(branch.model, branch.optimizer, range(4, 7), loss_of=loss_of)


MEASURED = {"data": data_of(), "loss": squares}


# --- the start stays as it is ---------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"data": data_of()}, MEASURED], ids=["", "data", "loss"])
def test_the_start_is_left_bit_for_bit(given):
    model, optimizer = start()
    squares(model, batch(0, 16, 8)).backward()  # a gradient in flight
    model[1].eval()
    ids = [id(p) for p in model.parameters()]
    before, random = snapshot(model, optimizer), torch.get_rng_state()
    result = sizes(model, optimizer, [0.8, 0.6], train_on=three_steps, **given)
    assert same(snapshot(model, optimizer), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert [id(p) for p in model.parameters()] == ids
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == ids
    assert not any(m._forward_hooks for m in model.modules())
    assert "compression" not in vars(model)
    own = {t.data_ptr() for t in model.state_dict().values()}
    for branch in result.branches:
        assert not own & {t.data_ptr() for t in branch.model.state_dict().values()}
        assert not own & {t.data_ptr() for t in branch.teacher.state_dict().values()}


def test_the_start_goes_on_as_if_nothing_had_happened():
    model, optimizer = start()
    twin, other = start()
    sizes(model, optimizer, [0.6], train_on=three_steps, **MEASURED)
    train(model, optimizer, range(4, 8))
    train(twin, other, range(4, 8))
    assert same(model.state_dict(), twin.state_dict())


def test_the_weights_are_measured_once_for_all_sizes_and_the_table_says_by_what():
    measured = []

    def loss(model, x):
        measured.append(torch.is_grad_enabled())
        return squares(model, x)

    model, optimizer = start()
    data = data_of()
    result = sizes(model, optimizer, [0.8, 0.7, 0.6], train_on=three_steps, data=data, loss=loss)
    assert sum(measured) == len(data)  # the other calls are evaluations
    assert "ranks by" not in str(result)
    by_input = sizes(*start(), [0.7], train_on=three_steps, data=data)
    assert "ranks by input; with a loss" in str(by_input)
    assert "ranks by weight; with data and a loss" in str(
        sizes(*start(), [0.7], train_on=three_steps)
    )


def test_a_step_that_trains_nothing_is_not_counted():
    def train_on(branch):
        branch.optimizer.zero_grad()
        for group in branch.optimizer.param_groups:
            rate, group["lr"] = group["lr"], 0.0
        branch.optimizer.step()  # as torch.distributed.checkpoint does to make the state
        for group in branch.optimizer.param_groups:
            group["lr"] = rate
        return three_steps(branch)

    (branch,) = sizes(*start(), [0.7], train_on=train_on).branches
    assert branch.steps == 3


def test_an_attached_start_with_a_scheduler_keeps_its_own_steps():
    model, optimizer = mlp(8), None
    optimizer, handle = attached(
        model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), delay_steps=50
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, range(2))
    scheduler.step()
    before, records = snapshot(model, optimizer), len(handle.records)

    def train_on(branch):
        assert "step" not in vars(branch.optimizer)
        assert not branch.optimizer._optimizer_step_pre_hooks
        attach(branch.model, branch.optimizer, AdaptiveLowRank(delay_steps=1, every_steps=1))
        return three_steps(branch)

    (branch,) = sizes(model, optimizer, [0.7], train_on=train_on, **MEASURED).branches
    assert branch.steps == 3
    assert same(snapshot(model, optimizer), before)
    assert handle.run.step == 2
    assert len(handle.records) == records
    train(model, optimizer, [2])
    assert handle.run.step == 3


# --- a branch -------------------------------------------------------------------------------------


def switched_by_the_method(model, optimizer, share):
    """What ``AdaptiveLowRank``'s own switch makes of a model and its optimizer, all layers cut."""
    method = AdaptiveLowRank(
        delay_steps=0, rank=StoredBudget(share), importance="weight", dense_last=False
    )
    attach(model, optimizer, method)


@pytest.mark.parametrize(
    "kind", [torch.optim.AdamW, torch.optim.Adagrad, lambda p, lr: torch.optim.SGD(p, lr, 0.9)]
)
def test_a_branch_is_what_the_switch_of_the_method_makes(kind):
    model, optimizer = start(kind=kind)
    seen = []

    def look(branch):
        seen.append(snapshot(branch.model, branch.optimizer))

    sizes(model, optimizer, [0.7], train_on=look)
    switched_by_the_method(model, optimizer, 0.7)
    expected = snapshot(model, optimizer)
    assert any(name.endswith("pair") for name in expected["model"])
    assert seen[0]["optimizer"]["state"]
    assert same(seen[0], expected | {"gradients": [None] * len(expected["gradients"])})


HELD_LBFGS = Row(torch.optim.LBFGS, {"lr": 0.1, "max_iter": 2}, restarts=True, wrapped=True)


@pytest.mark.parametrize("row", [*OPTIMIZERS, HELD_LBFGS], ids=str)
def test_every_optimizer_trains_its_branch_and_not_the_start(row):
    model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(2)))
    model = filled(model, dtype=torch.float32)  # without biases: Muon takes matrices alone
    optimizer = row.build(list(model.parameters()))
    inputs = [batch(i, 16, 8, dtype=torch.float32) for i in range(6)]

    def steps_of(net, stepping, indices):
        for i in indices:

            def closure(x=inputs[i]):
                stepping.zero_grad()
                loss = squares(net, x)
                loss.backward()
                return loss

            stepping.step(closure)

    steps_of(model, optimizer, range(3))
    before = [p.detach().clone() for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict()["state"])

    def train_on(branch):
        check_shapes(branch.optimizer)
        first = [p.detach().clone() for p in branch.model.parameters()]
        steps_of(branch.model, branch.optimizer, range(3, 6))
        assert all(
            bool((p != old).any()) for p, old in zip(branch.model.parameters(), first, strict=True)
        )
        assert all(bool(p.isfinite().all()) for p in branch.model.parameters())
        return squares(branch.model, inputs[0])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if row.restarts else "error")
        (branch,) = sizes(model, optimizer, [0.8], train_on=train_on).branches
    assert type(branch.optimizer) is type(optimizer)
    assert branch.steps == 3
    assert all(map(torch.equal, model.parameters(), before))
    if row.kind.__name__ != "Projected":  # its objects have no equality
        assert same(optimizer.state_dict()["state"], state)


def test_a_branch_is_cut_as_compress_cuts_into_trained_factors():
    model, optimizer = start(12)
    data = data_of(width=12)
    seen = {}

    def look(branch):
        seen[branch.share] = weights(branch.model)

    result = sizes(model, optimizer, [0.8, 0.5], train_on=look, data=data, loss=squares)
    for branch in result.branches:
        twin = compress(
            copy.deepcopy(model), stored_budget=branch.share, bases="trained", data=data,
            loss=squares,
        )  # fmt: skip
        assert twin.compression == branch.compression
        assert branch.model.compression is branch.compression
        assert same(weights(twin), seen[branch.share])
        assert branch.compression.stored == sum(p.numel() for p in branch.model.parameters())
        assert branch.compression.stored <= branch.share * result.dense_stored
        assert branch.compression.importance == "loss"


def test_losses_before_and_after_the_cut_are_those_of_the_data():
    model, optimizer = start()
    seen = []

    def look(branch):
        with torch.no_grad():
            seen.append(float(sum(squares(branch.model, x) for x in data_of()) / 4))

    result = sizes(model, optimizer, [0.8, 0.5], train_on=look, data=iter(data_of()), loss=squares)
    dense = float(sum(squares(model, x).detach() for x in data_of()) / 4)
    assert result.dense_loss == pytest.approx(dense, rel=1e-12)
    assert [b.loss_before for b in result.branches] == [result.dense_loss] * 2
    assert [b.loss_after for b in result.branches] == pytest.approx(seen, rel=1e-12)
    assert 0 < result.branches[0].lost < result.branches[1].lost < 1
    for branch in result.branches:
        length = {"steps": 5, "dense_steps": 100}
        losses = {"loss_before": branch.loss_before, "loss_after": branch.loss_after}
        assert branch.rate(0.1, **length) == rate_after_cut(0.1, **length, **losses)
    without = sizes(model, optimizer, [0.8], train_on=look).branches[0]
    assert without.loss_before is without.loss_after is None
    assert without.rate(0.1, steps=40, dense_steps=100) == pytest.approx(0.05)


def test_losses_are_measured_in_evaluation_mode_and_the_branch_trains_as_the_start_did():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.Dropout(0.5))
    model = filled(model).train()
    model[3].eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def look(branch):
        assert [m.training for m in branch.model.modules()] == [m.training for m in model.modules()]
        branch.model.eval()
        with torch.no_grad():
            return sum(squares(branch.model, x) for x in data_of()) / 4

    (branch,) = sizes(model, optimizer, [0.8], train_on=look, **MEASURED).branches
    assert branch.loss_after == pytest.approx(branch.final_loss, rel=1e-12)


def test_the_teacher_is_the_start_frozen_and_one_for_all():
    model, optimizer = start()
    x = batch(0, 16, 8)
    wanted = model(x).detach()
    result = sizes(model, optimizer, [0.8, 0.6], train_on=three_steps)
    first, second = (branch.teacher for branch in result.branches)
    assert first is second is not model
    assert torch.equal(first(x), wanted)
    assert not first.training
    assert not any(p.requires_grad for p in first.parameters())


def test_layers_of_every_kind_and_tied_ones_are_cut_and_stay_tied():
    model = filled(Everything())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, range(2), loss_of=everything_loss)
    (branch,) = sizes(
        model, optimizer, [0.7], data=[Everything.batch(i) for i in range(3)],
        loss=lambda net, x: net(x).square().mean(),
        train_on=lambda b: three_steps(b, loss_of=everything_loss),
    ).branches  # fmt: skip
    tied = branch.model.tied
    assert type(tied[0]) is LowRankLinear
    assert tied[0].pair is tied[1].pair
    assert tied[0].pair is not getattr(model.tied[0], "pair", None)
    held = [id(p) for group in branch.optimizer.param_groups for p in group["params"]]
    assert held == [id(p) for p in branch.model.parameters()]


def test_kinds_on_request_are_cut_where_they_are_asked_for():
    model = filled(nn.Sequential(nn.LSTM(16, 16), Last(), nn.Linear(16, 16)))
    given = {"data": data_of(width=16), "loss": squares, "train_on": lambda branch: None}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    (branch,) = sizes(model, optimizer, [0.6], also=["lstm"], **given).branches
    assert [layer.name for layer in branch.compression.layers] == [
        "0.weight_ih_l0", "0.weight_hh_l0", "2",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="sizes needs also"):
        sizes(model, optimizer, [0.6], also=["linear"], **given)


def test_a_frozen_weight_stays_dense():
    model, optimizer = start(16)
    model[2].weight.requires_grad_(False)
    (branch,) = sizes(model, optimizer, [0.7], train_on=three_steps, **{
        "data": data_of(width=16), "loss": squares}).branches  # fmt: skip
    assert torch.equal(branch.model[2].weight, model[2].weight)
    assert [layer.name for layer in branch.compression.layers] == ["0", "4"]
    assert not branch.model[2].weight.requires_grad


def test_a_low_rank_start_is_cut_further():
    model, optimizer = start(16)
    switched_by_the_method(model, optimizer, 0.8)
    train(model, optimizer, range(4, 6))
    dense = 3 * (16 * 16 + 16)
    (branch,) = sizes(model, optimizer, [0.5], train_on=three_steps).branches
    assert branch.compression.stored <= 0.5 * dense
    low_rank = [i for i, old in enumerate(model) if hasattr(old, "rank")]
    ranks = [(branch.model[i].rank, model[i].rank) for i in low_rank]
    assert all(new <= old for new, old in ranks)
    assert any(new < old for new, old in ranks)


def test_a_wrapped_start_gives_branches_without_the_wrapper():
    model, optimizer = start()
    (branch,) = sizes(torch.compile(model), optimizer, [0.7], train_on=three_steps).branches
    assert type(branch.model) is type(model)
    assert type(branch.teacher) is type(model)


def test_patterns_choose_the_layers():
    model, optimizer = start(16)
    (branch,) = sizes(model, optimizer, [0.8], train_on=three_steps, skip=["4"]).branches
    assert type(branch.model[4]) is nn.Linear
    assert type(branch.model[0]) is LowRankLinear


# --- the table ------------------------------------------------------------------------------------


def test_the_table_has_a_row_for_the_start_and_for_each_size():
    model, optimizer = start(16)
    data = {"data": data_of(width=16), "loss": squares}
    result = sizes(model, optimizer, [0.5, 0.8], train_on=three_steps, **data)
    lines = str(result).splitlines()
    assert lines[0].split() == [
        *("share", "stored", "of", "start", "after", "cut", "trained", "steps", "seconds")
    ]
    assert lines[1].split()[:4] == ["start", "816", "100.0", "%"]
    assert len({len(line) for line in lines}) == 1
    for line, branch in zip(lines[2:], result.branches, strict=True):
        cells = line.split()
        assert cells[:2] == [f"{branch.share:g}", f"{branch.compression.stored:,}"]
        assert cells[2] == f"{100 * branch.compression.stored / 816:.1f}"
        assert cells[4:7] == [f"{branch.loss_after:.4f}", f"{branch.final_loss:.4f}", "3"]
    assert [branch.share for branch in result.branches] == [0.5, 0.8]


def test_without_data_or_a_loss_returned_the_table_has_gaps():
    model, optimizer = start(16)
    result = sizes(model, optimizer, [0.8], train_on=lambda branch: None)
    assert re.search(r"0\.8 +\d+ +[\d.]+ % +- +- +0 ", str(result))


def test_operations_are_counted_where_asked_for():
    model, optimizer = start(16)
    result = sizes(
        model, optimizer, [0.8, 0.5], train_on=three_steps, skip=["2"], count_operations=True
    )
    for branch in result.branches:
        # Of one pass over 16 rows; the first layer's input needs no gradient.
        kept = [m.rank * 32 if hasattr(m, "rank") else 256 for m in branch.model[::2]]
        least = 3 * 2 * 16 * (3 * sum(kept) - kept[0])
        assert branch.operations == pytest.approx(least, rel=0.1)
    assert "operations" in str(result)
    assert sizes(model, optimizer, [0.8], train_on=three_steps).branches[0].operations is None


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()], ids=repr)
def test_an_error_in_the_second_training_keeps_the_first(error, caplog):
    model, optimizer = start()
    before = snapshot(model, optimizer)

    def train_on(branch):
        if branch.share == 0.6:
            raise error
        return three_steps(branch)

    with caplog.at_level("INFO", "orthotrain"), pytest.raises(type(error)) as caught:
        sizes(model, optimizer, [0.8, 0.6, 0.5], train_on=train_on)
    assert caught.value is error
    assert "1 of 3 sizes are trained" in error.__notes__[0]
    (done,) = error.sizes.branches
    assert (done.share, done.steps) == (0.8, 3)
    assert "0.8" in caplog.text
    assert same(snapshot(model, optimizer), before)
    assert not done.optimizer._optimizer_step_post_hooks


def test_a_result_that_is_no_number_is_told_and_nothing_is_lost():
    model, optimizer = start()
    with pytest.warns(OrthotrainWarning, match="returned a dict for the share 0.8"):
        result = sizes(model, optimizer, [0.8], train_on=lambda branch: {"loss": 1.0})
    assert result.branches[0].final_loss is None
    tensor = sizes(model, optimizer, [0.8], train_on=lambda branch: torch.tensor(2.0))
    assert tensor.branches[0].final_loss == 2.0


def with_criterion(model):
    return torch.optim.SGD([*model.parameters(), nn.Parameter(torch.zeros(3))], lr=0.1)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("shares", "given", "error", "message"),
    [
        ([], {}, ConfigError, "one share or more"),
        (0.5, {}, ConfigError, "shares to be a sequence, each a number"),
        ("0.5", {}, ConfigError, "shares to be a sequence, each a number"),
        ([0.5, 1.0], {}, ConfigError, r"share in \(0, 1\), got 1.0"),
        ([0.5, 1.5], {}, ConfigError, r"share in \(0, 1\), got 1.5"),
        ([0.0], {}, ConfigError, r"share in \(0, 1\), got 0.0"),
        ([float("nan")], {}, ConfigError, r"shares\[0\] to be a number, got nan"),
        (["0.5"], {}, ConfigError, r"shares\[0\] to be a number, got '0.5'"),
        ([0.5, 0.7, 0.5], {}, ConfigError, "each share once"),
        ([0.8, 0.2], {}, ConfigError, r"budget=0.2 .*\(0: 16, 2: 16, 4: 16\).*rest: 0: 8,"),
        ([0.7], {"loss": squares}, ConfigError, "sizes needs data to measure"),
        ([0.7], {"data": [], "loss": squares}, ConfigError, "sizes needs at least one batch"),
        ([0.7], {"only": "0"}, ConfigError, "sizes needs only to be a collection"),
        ([0.7], {"only": ["nothing"]}, ConfigError, "'nothing'"),
        ([0.7], {"data": [torch.full((4, 8), torch.inf).double()]}, NonFiniteError, "inputs of 0"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_trained(shares, given, error, message):
    model, optimizer = start()
    before, calls = snapshot(model, optimizer), []
    with pytest.raises(error, match=message):
        sizes(model, optimizer, shares, train_on=calls.append, **given)
    assert not calls
    assert same(snapshot(model, optimizer), before)


@pytest.mark.bad_input
def test_a_budget_out_of_reach_is_told_before_data_are_used():
    model, optimizer = start()

    def loss(model, x):
        raise AssertionError

    with pytest.raises(ConfigError, match="smallest ranks"):
        sizes(model, optimizer, [0.8, 0.2], train_on=print, data=data_of(), loss=loss)


@pytest.mark.bad_input
def test_a_size_that_is_not_smaller_than_a_low_rank_start_is_refused():
    model, optimizer = start(16)
    switched_by_the_method(model, optimizer, 0.5)
    with pytest.raises(ConfigError, match=r"got 0\.6: it holds \d+ numbers, 0\.4\d+ of its dense"):
        sizes(model, optimizer, [0.4, 0.6], train_on=print)


@pytest.mark.bad_input
def test_model_and_optimizer_that_do_not_fit_are_refused():
    model, optimizer = start()
    with pytest.raises(ConfigError, match=r"sizes needs model to be a Module, got a torch\.optim"):
        sizes(optimizer, model, [0.5], train_on=print)
    with pytest.raises(ConfigError, match=r"sizes: need a torch\.optim.Optimizer, got str"):
        sizes(model, "adam", [0.5], train_on=print)
    with pytest.raises(ConfigError, match=r"holds 1 others, the first of shape \(3,\)"):
        sizes(model, with_criterion(model), [0.5], train_on=print)
    with pytest.raises(ConfigError, match=r"sizes needs at least one eligible layer.*frozen"):
        sizes(model.requires_grad_(False), optimizer, [0.5], train_on=print)


@pytest.mark.bad_input
def test_an_optimizer_that_cannot_train_factors_is_refused_with_the_layer():
    model = nn.Sequential(nn.Conv2d(32, 32, 3, groups=2, bias=False))
    optimizer = torch.optim.Muon([nn.Parameter(torch.zeros(3, 3))])
    optimizer.param_groups[0]["params"] = list(model.parameters())
    with pytest.raises(ConfigError, match="sizes cannot cut 0: Muon"):
        sizes(model, optimizer, [0.5], train_on=print)
