"""What every method owes, whatever it does. A new method adds one row to METHODS."""

from __future__ import annotations

import dataclasses
import inspect
import io
import warnings

import pytest
import torch

from documentation import ROOT, python_blocks
from lowrank.nets import as_published
from methods.doubles import backward, hook_counts, same, small_model
from orthotrain.diagnostics import BasisStability, ConditionMonitor
from orthotrain.errors import ConfigError
from orthotrain.lowrank import AdaptiveLowRank
from orthotrain.methods import (
    Method,
    NearestOrthogonalGradient,
    OptimalLearningRate,
    OrthogonalPenalty,
    Retraction,
    SpectralNormalization,
    attach,
)


def from_the_page(name: str) -> type[Method]:
    """The method that docs/write_a_method.md writes."""
    page = ROOT / "docs" / "write_a_method.md"
    namespace: dict = {"__name__": "page"}
    with torch.random.fork_rng(devices=[]):
        exec(compile(python_blocks(page), str(page), "exec", dont_inherit=True), namespace)
    return namespace[name]


# Settings with which something happens within the first few steps on the small model.
METHODS = {
    "basis_stability": BasisStability(every_steps=2),
    "condition_monitor": ConditionMonitor(("0", "2"), every_steps=2),
    "adaptive_low_rank": as_published(
        delay_steps=2, every_steps=2, rank_rtol=0.5, dense_last=False, only_if_cheaper=False
    ),
    "adaptive_low_rank_by_loss": AdaptiveLowRank(
        delay_steps=2, every_steps=2, energy=0.8, dense_last=False, only_if_cheaper=False
    ),
    "adaptive_low_rank_frozen_by_loss": AdaptiveLowRank(
        delay_steps=2,
        every_steps=2,
        energy=0.8,
        dense_last=False,
        only_if_cheaper=False,
        bases="frozen",
    ),
    "nearest_orthogonal_gradient": NearestOrthogonalGradient(("0", "2"), record_every=2),
    "nearest_orthogonal_update": NearestOrthogonalGradient(
        ("0", "2"), when="update", scale="rms", complete=True, record_every=1
    ),
    "optimal_learning_rate": OptimalLearningRate(("0", "2"), floor=0.1, record_every=1),
    "optimal_learning_rate_matrix": OptimalLearningRate(
        "0", target="matrix", direction="update", floor=0.1, record_every=2
    ),
    "orthogonal_penalty": OrthogonalPenalty("0", weight=0.1),
    "spectral_normalization": SpectralNormalization(("0", "2")),
    "retraction": Retraction("0"),
    "retraction_polar": Retraction("0", onto="polar"),
    "retraction_norm": Retraction("0", onto="norm"),
    "spectral_clipping": from_the_page("SpectralClipping")(("0", "2"), most=0.1),
}

rows = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def make(method, *, attached=True):
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    return model, optimizer, attach(model, optimizer, method) if attached else None


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        backward(model)
        optimizer.step()


def untimed(records):
    """Records without what a clock measured."""
    return [{key: r[key] for key in r if key != "seconds"} for r in records]


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@rows
def test_is_a_frozen_description(method):
    assert isinstance(method, Method)
    assert dataclasses.fields(method)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method, dataclasses.fields(method)[0].name, None)
    hash(method)


@rows
def test_settings_are_keyword_only(method):
    # What a method acts on may come first without its name; a setting never may.
    parameters = list(inspect.signature(type(method)).parameters.values())
    if parameters[0].name == "params":
        del parameters[0]
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)


def counts(method):
    """The settings of a method that count steps or looks."""
    known = ("every_steps", "record_every", "lag")
    return [f.name for f in dataclasses.fields(method) if f.name in known]


@pytest.mark.bad_input
@rows
@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, float("nan"), float("inf"), "2", None])
def test_a_count_of_steps_is_a_whole_number(method, value):
    for name in counts(method):
        with pytest.raises(ConfigError, match=name):
            dataclasses.replace(method, **{name: value})


def test_most_methods_count_something():
    assert sum(bool(counts(method)) for method in METHODS.values()) >= 7


@rows
def test_can_serve_two_runs_at_once(method):
    runs = [make(method) for _ in range(2)]
    for model, optimizer, _ in runs:
        train(model, optimizer, 5)
    records = [untimed(handle.records) for _, _, handle in runs]
    assert same(*records)
    assert same(*(handle.state_dict() for _, _, handle in runs))


@rows
@pytest.mark.parametrize("at", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("order", ["model first", "handle first"])
def test_state_round_trip_continues_bit_for_bit(method, at, order):
    model, optimizer, handle = make(method)
    train(model, optimizer, at)
    state = through_file(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "handle": handle.state_dict(),
        }
    )
    records = len(handle.records)
    train(model, optimizer, 6)

    again, again_optimizer, again_handle = make(method)
    loads = [again.load_state_dict, again_optimizer.load_state_dict, again_handle.load_state_dict]
    keys = ["model", "optimizer", "handle"]
    pairs = list(zip(loads, keys, strict=True))
    for load, key in pairs if order == "model first" else pairs[::-1]:
        load(state[key])
    train(again, again_optimizer, 6)
    assert same(dict(again.state_dict()), dict(model.state_dict()))
    assert same(again_handle.state_dict(), handle.state_dict())
    assert same(untimed(again_handle.records), untimed(handle.records[records:]))


@rows
@pytest.mark.parametrize("when", ["before", "after", "after a step"])
def test_attach_before_or_after_the_scheduler_and_the_first_step(method, when):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, optimizer, handle = make(method, attached=when == "before")
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)
        if when == "after a step":
            train(model, optimizer, 1)
        handle = handle or attach(model, optimizer, method)
        for _ in range(5):
            train(model, optimizer, 1)
            scheduler.step()
    assert handle.run.step == 5
    assert handle.records or handle.summary().notes or handle.summary().rows


@rows
def test_detach_leaves_no_hook(method):
    model, optimizer, _ = make(method, attached=False)
    before = hook_counts(model, optimizer)
    handle = attach(model, optimizer, method)
    assert hook_counts(model, optimizer) != before
    train(model, optimizer, 3)
    handle.detach()
    assert hook_counts(model, optimizer) == before
    count = len(handle.records)
    train(model, optimizer, 4)
    assert len(handle.records) == count


@rows
def test_detach_before_the_first_step_leaves_no_hook(method):
    model, optimizer, _ = make(method, attached=False)
    before = hook_counts(model, optimizer)
    attach(model, optimizer, method).detach()
    assert hook_counts(model, optimizer) == before


@rows
@pytest.mark.parametrize("gradient", [None, 0.0])
def test_a_missing_or_zero_gradient_is_no_trouble(method, gradient):
    model, optimizer, handle = make(method)
    for _ in range(5):
        optimizer.zero_grad()
        backward(model)
        for parameter in model[0].parameters():
            parameter.grad = None if gradient is None else torch.zeros_like(parameter)
        optimizer.step()
    assert handle.run.step == 5
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@rows
def test_random_state_is_untouched(method):
    model, optimizer, _ = make(method, attached=False)
    state = torch.get_rng_state()
    handle = attach(model, optimizer, method)
    train(model, optimizer, 5)
    handle.load_state_dict(handle.state_dict())
    str(handle.summary())
    assert torch.equal(torch.get_rng_state(), state)


@rows
def test_says_what_it_will_do_and_what_it_did(method):
    model, optimizer, handle = make(method)
    assert handle.plan
    assert method.name in handle.methods
    assert type(method).__name__ in repr(handle)
    train(model, optimizer, 5)
    assert handle.summary().rows or handle.summary().notes
