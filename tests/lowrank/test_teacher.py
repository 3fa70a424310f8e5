"""``teacher_loss`` against its definition, where its gradient goes, and the frozen copy."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lowrank.nets import attached, batch, filled, mlp, train
from methods.doubles import hook_counts
from orthotrain import (
    AdaptiveLowRank,
    BasisStability,
    ConditionMonitor,
    NearestOrthogonalGradient,
    attach,
    frozen_copy,
    teacher_loss,
)
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.methods.weak_hook import WeakHook


def by_hand(logits, teacher, loss, *, weight, temperature, mask=None):
    """The definition, one number at a time, classes last."""
    total, count = 0.0, 0
    rows, targets = (t.reshape(-1, logits.shape[-1]) for t in (logits, teacher))
    kept = [True] * len(rows) if mask is None else mask.flatten().tolist()
    for row, target, counts in zip(rows, targets, kept, strict=True):
        if not counts:
            continue
        count += 1
        q, p = ([math.exp(float(v) / temperature) for v in r] for r in (row, target))
        total -= sum(a / sum(p) * math.log(b / sum(q)) for a, b in zip(p, q, strict=True))
    return (1 - weight) * loss + weight * temperature**2 * total / count


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_the_definition(weight, temperature, shape, masked):
    logits, teacher = batch(0, *shape), batch(1, *shape)
    mask = batch(2, *shape)[..., 0] > 0 if masked and len(shape) > 1 else None
    settings = {"weight": weight, "temperature": temperature, "mask": mask}
    got = teacher_loss(logits, teacher, torch.tensor(1.7, dtype=torch.float64), **settings)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(by_hand(logits, teacher, 1.7, **settings), rel=1e-13)


def test_the_classes_may_lie_along_another_dimension():
    logits, teacher = batch(0, 2, 5, 3, 4), batch(1, 2, 5, 3, 4)
    mask = batch(2, 2, 3, 4) > 0
    got = teacher_loss(logits, teacher, 0.0, dim=1, mask=mask)
    last = teacher_loss(logits.movedim(1, -1), teacher.movedim(1, -1), 0.0, mask=mask)
    torch.testing.assert_close(got, last, rtol=1e-14, atol=0)


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False, True])])
def test_its_derivative_is_right_and_stops_at_the_teacher(mask):
    logits = batch(0, 3, 5).requires_grad_()
    teacher = batch(1, 3, 5).requires_grad_()
    loss = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def value(logits, loss):
        return teacher_loss(logits, teacher, loss, weight=0.3, temperature=1.7, mask=mask)

    assert torch.autograd.gradcheck(value, (logits, loss))
    value(logits, loss).backward()
    assert teacher.grad is None
    assert float(loss.grad) == pytest.approx(0.7)
    if mask is not None:
        assert bool((logits.grad[1] == 0).all())
        assert bool((logits.grad[0] != 0).all())


def test_a_student_that_is_its_teacher_has_no_gradient_from_it():
    logits = batch(0, 4, 6).requires_grad_()
    teacher_loss(logits, logits.detach(), 0.0, weight=1.0, temperature=3.0).backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype):
    logits, teacher = (batch(i, 64, 32, dtype=torch.float32).to(dtype) for i in range(2))
    exact = teacher_loss(logits.double(), teacher.double(), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        got = teacher_loss(logits, teacher, torch.tensor(0.5, dtype=torch.bfloat16))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=0)


def test_excluded_classes_and_excluded_positions_add_nothing():
    logits, teacher = batch(0, 3, 5), batch(1, 3, 5)
    wanted = teacher_loss(logits[:, :4], teacher[:, :4], 0.0)
    for each in (logits, teacher):
        each[:, 4] = -torch.inf
    logits.requires_grad_()
    got = teacher_loss(logits, teacher, 0.0)
    torch.testing.assert_close(got.detach(), wanted, rtol=1e-14, atol=0)
    got.backward()
    assert bool(logits.grad.isfinite().all())
    none = teacher_loss(logits, teacher, 2.0, weight=0.25, mask=torch.zeros(3, dtype=torch.bool))
    assert float(none.detach()) == pytest.approx(1.5)
    none.backward()


X = torch.zeros(3, 5)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"teacher_logits": torch.zeros(3, 4)},
            ShapeError,
            r"one shape, got \(3, 5\) and \(3, 4\)",
        ),
        ({"logits": X.long()}, ConfigError, "floating-point tensor, got logits of dtype"),
        ({"teacher_logits": X.long()}, ConfigError, "got teacher_logits of dtype"),
        ({"loss": torch.zeros(3)}, ShapeError, r"one number, got shape \(3,\)"),
        ({"weight": 1.5}, ConfigError, "weight to be a share"),
        ({"weight": -0.1}, ConfigError, "weight to be a share"),
        ({"temperature": 0.0}, ConfigError, "needs temperature"),
        ({"temperature": math.nan}, ConfigError, "needs temperature"),
        ({"mask": torch.ones(3)}, ConfigError, "torch.bool tensor, got mask"),
        ({"mask": torch.ones(3, 5).bool()}, ShapeError, r"mask of shape \(3,\)"),
    ],
)
def test_what_cannot_work_is_refused(given, error, message):
    call = {"logits": X, "teacher_logits": X, "loss": 0.0} | given
    first = [call.pop(name) for name in ("logits", "teacher_logits", "loss")]
    with pytest.raises(error, match=message):
        teacher_loss(*first, **call)


# --- the frozen copy ------------------------------------------------------------------------------


def test_a_frozen_copy_stays_as_it_was_and_takes_no_gradient():
    model = filled(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)))
    x = batch(0, 4, 8)
    teacher = frozen_copy(model.train())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    wanted = model.eval()(x).detach()
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(teacher(x), wanted)
    assert not teacher(x).requires_grad


@pytest.mark.parametrize("low_rank", [False, True])
def test_a_copy_of_an_attached_model_does_nothing_to_the_run(low_rank):
    model = mlp(8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    handle = attach(
        model, optimizer,
        AdaptiveLowRank(
            delay_steps=2, every_steps=1, rank_rtol=0.1, only_if_cheaper=False
        ),
        NearestOrthogonalGradient("0", record_every=1), BasisStability(every_steps=1),
        ConditionMonitor("0", every_steps=1),
    )  # fmt: skip
    train(model, optimizer, range(4 if low_rank else 1), handle=handle)
    before, wanted = hook_counts(model, optimizer), model(batch(0, 4, 8)).detach()
    teacher, records = frozen_copy(model), len(handle.records)
    assert hook_counts(model, optimizer) == before
    hooks = [
        hook
        for module in teacher.modules()
        for held in (module._forward_hooks, module._forward_pre_hooks,
                     module._load_state_dict_post_hooks)
        for hook in held.values()
    ]  # fmt: skip
    assert not any(isinstance(hook, WeakHook) for hook in hooks)
    shapes = [p.shape for p in teacher.parameters()]
    assert torch.equal(teacher(batch(0, 4, 8)), wanted)
    teacher.train()(batch(0, 4, 8))
    teacher.load_state_dict(teacher.state_dict())
    assert (handle.run.step, len(handle.records)) == (4 if low_rank else 1, records)
    train(model, optimizer, range(4, 7))
    assert [p.shape for p in teacher.parameters()] == shapes


def test_the_inner_model_is_copied_out_of_its_wrappers():
    model = mlp(8)
    for wrapper in (torch.compile(model), nn.DataParallel(model)):
        assert type(frozen_copy(wrapper)) is type(model)


def test_a_low_rank_model_may_be_the_teacher():
    model = mlp(8)
    optimizer, _ = attached(model, delay_steps=0, rank_rtol=0.3)
    train(model, optimizer, range(2))
    x = batch(0, 4, 8)
    assert torch.equal(frozen_copy(model)(x), model(x))


def test_hooks_of_a_users_own_come_along():
    model = mlp(8)
    model[0].register_forward_hook(lambda module, args, output: 2 * output)
    x = batch(0, 4, 8)
    assert torch.equal(frozen_copy(model)(x), model(x))
