"""No optimizer steps on state of a shape that its parameter has no longer, whoever changed it."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn, optim

from lowrank.nets import attached, batch, filled, mlp, mlp_loss, train
from orthotrain._resized import earlier_shapes
from orthotrain.errors import OrthotrainWarning
from orthotrain.layers import LowRankLinear
from orthotrain.lowrank import compress, restore_structure, to_dense, to_factored

OPTIMIZERS = {
    "fused adam": lambda p: optim.Adam(p, lr=0.01, fused=True),
    "fused adamw, amsgrad": lambda p: optim.AdamW(p, lr=0.01, fused=True, amsgrad=True),
    "fused sgd": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
    "fused adagrad": lambda p: optim.Adagrad(p, lr=0.01, fused=True),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "foreach sgd": lambda p: optim.SGD(p, lr=0.01, momentum=0.9, foreach=True),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
    "adadelta": lambda p: optim.Adadelta(p, lr=0.01),
    "adamax": lambda p: optim.Adamax(p, lr=0.01),
    "asgd": lambda p: optim.ASGD(p, lr=0.01),
    "adafactor": lambda p: optim.Adafactor(p, lr=0.01),
    "lbfgs": lambda p: optim.LBFGS(p, lr=0.01),
}
SCHEDULE = {"delay_steps": 2, "every_steps": 50, "rank_rtol": 0.4}


def low_rank(model, *, rtol=0.4, **settings):
    return compress(model, rank_rtol=rtol, only_if_cheaper=False, **settings)


def loaded(model, other):
    restore_structure(model, other.state_dict()).load_state_dict(other.state_dict())


def followed(model, other):
    """A layer that is loaded by itself, as no method would see it."""
    for layer, theirs in zip(model, other, strict=True):
        if isinstance(layer, nn.Linear):
            layer.load_state_dict(theirs.state_dict())


START = {"dense": lambda: mlp(10), "low-rank": lambda: low_rank(mlp(10))}
CHANGES = {
    "to_dense": ("low-rank", to_dense),
    "to_factored": ("low-rank", to_factored),
    "compress": ("dense", low_rank),
    "compress to pairs": ("dense", lambda m: low_rank(m, bases="trained")),
    "compress again": ("low-rank", lambda m: low_rank(m, rtol=0.7)),
    "restore_structure": ("dense", lambda m: loaded(m, low_rank(mlp(10)))),
    "restore a dense structure": ("low-rank", lambda m: loaded(m, mlp(10))),
    "a layer's load": ("low-rank", lambda m: followed(m, low_rank(mlp(10), rtol=0.7))),
}
CASES = [(name, "to_dense") for name in OPTIMIZERS]
CASES += [(name, change) for name in ("fused adam", "lbfgs") for change in CHANGES]


def steps(model, optimizer, count=1):
    for i in range(count):

        def closure(i=i):
            optimizer.zero_grad()
            loss = mlp_loss(model, i)
            loss.backward()
            return loss

        optimizer.step(closure)


def shapes_fit(optimizer):
    return all(
        value.shape in ((), (1,), p.shape, (*p.shape[:-1], 1), (1, *p.shape[-1:]))
        for p, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, torch.Tensor) and not isinstance(optimizer, optim.LBFGS)
    )


@pytest.mark.filterwarnings("ignore:to_factored replaced")
@pytest.mark.parametrize(("name", "change"), sorted(set(CASES)))
def test_state_of_an_optimizer_that_nobody_attached_starts_again(name, change):
    begin, change = CHANGES[change]
    model = START[begin]()
    optimizer = OPTIMIZERS[name](model.parameters())
    steps(model, optimizer, 2)
    change(model)
    untouched = [p for p in model.parameters() if p.ndim == 1]
    counts = [float(optimizer.state[p].get("step", -1)) for p in untouched]
    had_state = any(optimizer.state[p] for p in optimizer.param_groups[0]["params"])
    changed = [p for p in optimizer.param_groups[0]["params"] if earlier_shapes(p)]
    assert had_state
    assert changed
    before = {p: p.detach().clone() for p in model.parameters()}
    with pytest.warns(OrthotrainWarning, match="starts again: the model changed its form"):
        steps(model, optimizer)
    assert shapes_fit(optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(
        bool(p.isfinite().all()) and not torch.equal(p, old)
        for p, old in before.items()
        if id(p) in held
    )
    for p, count in zip(untouched, counts, strict=True):  # all other state goes on
        assert count < 0 or id(p) not in held or optimizer.state[p]["step"] == count + 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(model, optimizer, 2)


@pytest.mark.parametrize("change", [to_dense, to_factored, lambda m: low_rank(m, rtol=0.7)])
@pytest.mark.parametrize("name", ["fused adam", "fused sgd", "adafactor"])
@pytest.mark.parametrize("detached", [False, True], ids=["attached", "detached"])
def test_state_of_an_attached_optimizer_starts_again(name, change, detached):
    model = mlp(10)
    optimizer, handle = attached(model, OPTIMIZERS[name](model.parameters()), **SCHEDULE)
    train(model, optimizer, range(4))
    if detached:
        handle.detach()
    change(model)
    with pytest.warns(OrthotrainWarning, match="starts again"):
        train(model, optimizer, [4])
    assert shapes_fit(optimizer)
    assert handle.run.step == (4 if detached else 5)


def test_two_optimizers_of_one_model_are_both_looked_at():
    model = low_rank(mlp(10))
    fused = [OPTIMIZERS["fused adam"](layer.parameters()) for layer in (model[0], model[2])]
    for optimizer in fused:
        steps(model, optimizer)
    to_dense(model)
    for optimizer in fused:
        with pytest.warns(OrthotrainWarning):
            steps(model, optimizer)


def test_copies_made_before_the_next_step_are_looked_at_too():
    model = low_rank(mlp(10))
    optimizer = OPTIMIZERS["fused adam"](model.parameters())
    steps(model, optimizer)
    to_dense(model)
    twin, its_optimizer = copy.deepcopy((model, optimizer))
    with pytest.warns(OrthotrainWarning, match="starts again"):
        steps(twin, its_optimizer)
    assert shapes_fit(its_optimizer)


def test_a_training_run_is_neither_warned_nor_changed():
    """Updates of a method, resumed runs and other models' changes leave state alone."""
    model = mlp(10)
    optimizer, _ = attached(
        model, OPTIMIZERS["fused adam"](model.parameters()), **{**SCHEDULE, "every_steps": 2}
    )
    plain = mlp(10, seed=2)
    other = OPTIMIZERS["fused adam"](plain.parameters())
    train(plain, other, range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, range(9))
        state = {p: copy.deepcopy(s) for p, s in other.state.items()}
        train(plain, other, range(3))
    assert all(other.state[p]["step"] == s["step"] + 3 for p, s in state.items())
    # A state that was loaded for the present shape fits.
    twin = restore_structure(mlp(10), model.state_dict())
    again = OPTIMIZERS["fused adam"](twin.parameters())
    again.load_state_dict(optimizer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(twin, again, range(2))


def test_a_form_and_back_keeps_the_state():
    model = mlp(10)
    optimizer = OPTIMIZERS["fused adam"](model.parameters())
    train(model, optimizer, range(2))
    to_dense(low_rank(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, range(2))
    assert optimizer.state[model[0].weight]["step"] == 4


def test_what_is_known_of_shapes_is_not_copied_or_saved(tmp_path):
    model = to_dense(low_rank(mlp(10)))
    torch.save(model.state_dict(), tmp_path / "m")
    assert "_orthotrain" not in repr(torch.load(tmp_path / "m", weights_only=True))
    assert not vars(copy.deepcopy(model)[0].weight)
    layer = LowRankLinear.from_linear(filled(nn.Linear(6, 6)), rank=2)
    torch.utils.swap_tensors(layer.core, nn.Parameter(layer.core.detach().clone()))
    assert layer(batch(0, 2, 6)).shape == (2, 6)
