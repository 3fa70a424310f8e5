"""Names of saved weights: what wrappers put in does not matter, what is a model's own stays."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lowrank.nets import Everything, filled
from orthotrain.errors import CheckpointError
from orthotrain.lowrank import compress, load, restore_structure, save
from orthotrain.lowrank.names import as_names_of, clean_keys
from orthotrain.lowrank.storage import read_saved
from orthotrain.methods.select import named_parameters_clean, unwrap

WIDTH = 8


def block(*names):
    return nn.Sequential(OrderedDict((name, nn.Linear(WIDTH, WIDTH)) for name in names))


def plain():
    return nn.Sequential(OrderedDict(a=block("x", "y"), b=nn.LayerNorm(WIDTH), c=block("x")))


class Odd(nn.Module):
    """Children that are called what wrappers call theirs, beside others of the same names."""

    def __init__(self):
        super().__init__()
        self.module = block("x", "_orig_mod")
        self._orig_mod = block("module", "x")
        self.x = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.x(self._orig_mod(self.module(x)))


class OnlyModule(nn.Module):
    """Every name begins like one of DDP."""

    def __init__(self):
        super().__init__()
        self.module = block("module", "x")

    def forward(self, x):
        return self.module(x)


class Named(nn.Module):
    """Dense parameters that are called like factors."""

    def __init__(self):
        super().__init__()
        self.core = nn.Parameter(torch.zeros(WIDTH, WIDTH))
        self.in_pair = nn.Parameter(torch.zeros(WIDTH, WIDTH))
        self.u = nn.Parameter(torch.zeros(WIDTH, WIDTH))
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.layer(x @ self.core @ self.in_pair @ self.u)


def compiled(module):
    return torch.compile(module, backend="eager")


def blocks(wrap):
    """Each child wrapped, and a child of a child."""

    def wrapped(model):
        for name, child in list(model.named_children()):
            for inner, deep in list(child.named_children())[:1]:
                setattr(child, inner, wrap(deep))
            setattr(model, name, wrap(child))
        return model

    return wrapped


WRAPPINGS = {
    "bare": lambda model: model,
    "parallel": nn.DataParallel,
    "compiled": compiled,
    "parallel of compiled": lambda model: nn.DataParallel(compiled(model)),
    "blocks compiled": blocks(compiled),
    "blocks parallel": blocks(nn.DataParallel),
    "blocks checkpointed": blocks(checkpoint_wrapper),
    "parallel of blocks compiled": lambda model: nn.DataParallel(blocks(compiled)(model)),
    "twice": lambda model: nn.DataParallel(nn.DataParallel(model)),
}
FORMS = {
    "dense": lambda model: model,
    "low-rank": lambda model: compress(model, rank_rtol=0.4, only_if_cheaper=False),
    "two factors": lambda model: compress(
        model, rank_rtol=0.4, only_if_cheaper=False, bases="trained"
    ),
}
MODELS = {"plain": plain, "odd": Odd, "only module": OnlyModule, "named like factors": Named}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
every_wrapping = pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS)


def values(model):
    return dict(named_parameters_clean(model))


def same(model, other):
    ours, theirs = values(model), values(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@every_model
@every_form
@every_wrapping
def test_saved_wrapped_loads_plain_and_saved_plain_loads_wrapped(tmp_path, make, form, wrap):
    model = form(filled(make()))
    save(model, tmp_path / "plain")
    save(wrap(form(filled(make()))), tmp_path / "wrapped")
    names = [read_saved(tmp_path / file).tensors.keys() for file in ("plain", "wrapped")]
    assert names[0] == names[1] == model.state_dict().keys()
    for file in ("plain", "wrapped"):
        into = wrap(filled(make(), seed=3))
        assert load(into, tmp_path / file) is into
        same(into, model)
        same(load(filled(make(), seed=3), tmp_path / file), model)


@every_model
@every_form
@every_wrapping
def test_a_state_dict_of_a_wrapped_model_gives_a_plain_one_its_structure(make, form, wrap):
    model = form(filled(make()))
    state = wrap(form(filled(make()))).state_dict()
    fresh = restore_structure(filled(make(), seed=3), state)
    assert {name: p.shape for name, p in values(fresh).items()} == {
        name: p.shape for name, p in values(model).items()
    }
    fresh.load_state_dict(as_names_of(fresh, state))
    same(fresh, model)
    wrapped = restore_structure(wrap(filled(make(), seed=3)), model.state_dict())
    assert list(values(wrapped)) == list(values(model))


def test_names_are_read_in_one_way():
    """``module.x`` of a file is not the model's own where all names of the file have one more."""
    state = {f"module.{name}": value for name, value in Odd().state_dict().items()}
    assert list(as_names_of(Odd(), state)) == list(Odd().state_dict())
    part = {name: value for name, value in state.items() if name.startswith("module.module")}
    assert list(as_names_of(Odd(), part)) == [name.removeprefix("module.") for name in part]


def test_a_child_that_is_called_like_a_wrappers_is_none():
    model = Odd()
    assert unwrap(model) is model
    assert unwrap(model._orig_mod) is model._orig_mod
    assert list(clean_keys(model).items()) == [(name, name) for name in model.state_dict()]
    wrapped = torch.compile(nn.DataParallel(model), backend="eager")
    assert unwrap(wrapped) is model
    assert list(clean_keys(wrapped)) == list(model.state_dict())


@pytest.mark.bad_input
def test_a_factor_that_no_layer_has_is_refused_beside_a_parameter_of_that_name():
    state = {**Named().state_dict(), "other.core": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match=r"other\.core has no layer"):
        restore_structure(Named(), state)


# --- the meta device ------------------------------------------------------------------------------


class WithBuffers(Everything):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.ones(3))


@every_form
@pytest.mark.parametrize("make", [plain, WithBuffers], ids=["plain", "everything"])
def test_a_model_on_the_meta_device_gets_values(tmp_path, make, form):
    model = form(filled(make()))
    save(model, tmp_path / "m")
    with torch.device("meta"):
        into = make().double()
    load(into, tmp_path / "m")
    same(into, model)
    assert not any(t.is_meta for t in (*into.parameters(), *into.buffers()))
    assert all(p.requires_grad for p in into.parameters())
    if make is WithBuffers:
        ours = [into.tied[i]._parameters for i in (0, 1)]
        assert all(ours[0][name] is ours[1][name] for name in ours[0] if name != "bias")
        x = Everything.batch(0)
        assert torch.equal(into.eval()(x), model.eval()(x))


def test_a_state_dict_is_assigned_to_a_model_on_the_meta_device():
    model = FORMS["low-rank"](filled(plain()))
    with torch.device("meta"):
        into = plain().double()
    restore_structure(into, model.state_dict())
    into.load_state_dict(model.state_dict(), assign=True)
    same(into, model)


@pytest.mark.bad_input
def test_what_no_file_holds_and_is_on_the_meta_device_is_named(tmp_path):
    def make():
        model = plain()
        model.register_buffer("angles", torch.ones(4), persistent=False)
        return model

    save(make(), tmp_path / "m")
    load(make(), tmp_path / "m")
    with torch.device("meta"):
        into = make()
    with pytest.raises(CheckpointError, match="no value for angles"):
        load(into, tmp_path / "m")


@pytest.mark.bad_input
def test_a_file_without_a_value_leaves_an_error(tmp_path):
    save(block("x"), tmp_path / "m")
    with torch.device("meta"):
        into = block("x", "y")
    with pytest.raises(CheckpointError, match=r"y\.weight"):
        load(into, tmp_path / "m")
