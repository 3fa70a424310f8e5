"""Layers that come, go, are replaced, frozen and unfrozen after ``attach``."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from torch import nn

import orthotrain
from lowrank.nets import as_published, batch, filled, mlp, through_file
from orthotrain import AdaptiveLowRank, attach
from orthotrain.errors import ConfigError, OrthotrainWarning
from orthotrain.layers import LowRankLinear
from orthotrain.lowrank import compress

WIDTH = 8
importances = pytest.mark.parametrize("importance", ["weight", "loss"])


def net(width=WIDTH):
    return filled(
        nn.Sequential(nn.Linear(WIDTH, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
                      nn.Linear(width, WIDTH))
    )  # fmt: skip


def run(model, *, importance="weight", every=2, optimizer=None, **settings):
    """Attached, updates after steps 2, 4, ... that halve every layer."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.01)
    method = AdaptiveLowRank(
        delay_steps=2, every_steps=every, importance=importance, energy=0.7, dense_last=False,
        only_if_cheaper=False, **settings,
    )  # fmt: skip
    return optimizer, attach(model, optimizer, method)


def steps(model, optimizer, count, *, handle=None):
    for i in range(count):
        optimizer.zero_grad()
        loss = (model(batch(i, 16, WIDTH)) - 1).square().mean()
        loss.backward()
        if handle is not None:
            handle.observe(loss)
        optimizer.step()


def rows(handle):
    return {row.name: (row.shape, row.rank) for row in handle.summary().rows}


def note(handle, name):
    found = [text for text in handle.summary().notes if text.startswith(f"{name}:")]
    assert len(found) <= 1, found
    return found[0] if found else ""


@importances
def test_a_replaced_layer_leaves_and_the_new_one_is_converted(importance):
    model = net()
    optimizer, handle = run(model, importance=importance)
    steps(model, optimizer, 1)
    old = model[4]
    model[4] = filled(nn.Linear(WIDTH, WIDTH + 4), seed=5)
    model.append(filled(nn.Linear(WIDTH + 4, WIDTH), seed=6))
    optimizer.add_param_group({"params": [*model[4].parameters(), *model[5].parameters()]})
    assert "4" not in rows(handle)
    assert "a later one takes it" in note(handle, "4")
    assert "a later one takes it" in note(handle, "5")
    steps(model, optimizer, 5)
    assert type(old) is nn.Linear
    assert {type(model[i]) for i in (0, 2, 4, 5)} == {LowRankLinear}
    assert list(rows(handle)) == ["0", "2", "4", "5"]
    assert rows(handle)["4"][0] == (WIDTH + 4, WIDTH)
    assert not note(handle, "4")
    assert handle.summary().total.dense == sum(
        m.in_features * m.out_features + m.out_features for m in model if hasattr(m, "in_features")
    )
    assert optimizer.state[model[4].pair]["exp_avg"].shape == model[4].pair.shape


def test_a_layer_that_comes_after_the_only_update_is_named():
    model = net()
    optimizer, handle = run(model, every=10**6)
    handle._bound["adaptive_low_rank"]._schedule = type(
        handle._bound["adaptive_low_rank"]._schedule
    )(2, None, False, 0)
    steps(model, optimizer, 3)
    model[0] = filled(nn.Linear(WIDTH, WIDTH), seed=5)
    optimizer.add_param_group({"params": model[0].parameters()})
    assert "no later one is due" in note(handle, "0")


def test_a_new_layer_outside_the_optimizer_is_named():
    model = net()
    optimizer, handle = run(model)
    model[4] = filled(nn.Linear(WIDTH, WIDTH))
    steps(model, optimizer, 3)
    assert "no parameter group" in note(handle, "4")
    assert "4" not in rows(handle)


@importances
def test_a_layer_that_is_unfrozen_is_converted(importance):
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([*model[2].parameters(), *model[4].parameters()], lr=0.01)
    _, handle = run(model, importance=importance, optimizer=optimizer)
    assert "frozen" in note(handle, "0")
    steps(model, optimizer, 2)
    model[0].requires_grad_(True)
    optimizer.add_param_group({"params": model[0].parameters()})
    assert "frozen" not in note(handle, "0")
    steps(model, optimizer, 5)  # where data decide, the next window is the first to see it
    assert type(model[0]) is LowRankLinear
    assert list(rows(handle)) == ["0", "2", "4"]


@importances
def test_a_layer_that_is_frozen_stays_as_it_is(importance):
    model = net()
    optimizer, handle = run(model, importance=importance)
    steps(model, optimizer, 1)
    model[0].requires_grad_(False)
    steps(model, optimizer, 4)
    assert type(model[0]) is nn.Linear
    assert [row.note for row in handle.summary().rows if row.name == "0"] == ["frozen"]
    model[0].requires_grad_(True)
    steps(model, optimizer, 3)
    assert type(model[0]) is LowRankLinear


def test_a_run_goes_on_where_no_layer_is_left():
    model = net()
    optimizer, handle = run(model, importance="loss")
    for i in (0, 2, 4):
        model[i] = filled(nn.Linear(WIDTH, WIDTH), seed=i)
    extra = torch.optim.SGD(model.parameters(), lr=0.1)
    steps(model, optimizer, 3)
    steps(model, extra, 1)
    assert not rows(handle)
    assert note(handle, "0")


def test_a_pattern_whose_layer_is_gone_is_no_error():
    model = nn.Sequential(net(), filled(nn.Linear(WIDTH, WIDTH)))
    optimizer, handle = run(model, skip=["1"])
    del model[1]
    steps(model, optimizer, 3)
    assert type(model[0][0]) is LowRankLinear
    only = nn.Sequential(net(), filled(nn.Linear(WIDTH, WIDTH)))
    optimizer, handle = run(only, only=["1"])
    del only[1]
    steps(only, optimizer, 3)
    assert type(only[0][0]) is nn.Linear
    assert not rows(handle)


def test_a_copy_follows_what_is_new_and_is_named_where_it_cannot():
    model = net()
    optimizer, handle = run(model)
    twin = copy.deepcopy(model)
    handle.track(twin)
    for m in (model, twin):
        m[0] = filled(nn.Linear(WIDTH, WIDTH), seed=4)
    model[4] = filled(nn.Linear(WIDTH, WIDTH + 1), seed=5)
    model.append(nn.Linear(WIDTH + 1, WIDTH).double())
    optimizer.add_param_group({"params": [*model[0].parameters(), *model[4].parameters()]})
    with pytest.warns(OrthotrainWarning, match="4 is not followed"):
        steps(model, optimizer, 2)
    assert [type(m) is LowRankLinear for m in twin] == [True, False, True, False, False]
    assert twin[0].rank == model[0].rank


def test_a_run_resumes_whose_layer_is_unfrozen_later():
    def start():
        model = net()
        model[0].requires_grad_(False)
        optimizer = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], lr=0.01)
        return model, *run(model, optimizer=optimizer)

    def unfreeze(model, optimizer):
        model[0].requires_grad_(True)
        optimizer.add_param_group({"params": model[0].parameters()})

    model, optimizer, handle = start()
    steps(model, optimizer, 2)
    unfreeze(model, optimizer)
    steps(model, optimizer, 3)
    state = through_file({"m": model.state_dict(), "o": optimizer.state_dict(),
                          "h": handle.state_dict()})  # fmt: skip
    other, again, its_handle = start()
    its_handle.load_state_dict(state["h"])
    other.load_state_dict(state["m"])
    unfreeze(other, again)
    again.load_state_dict(state["o"])
    for m, o in ((model, optimizer), (other, again)):
        steps(m, o, 3)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_that_does_not_change_is_trained_as_before(monkeypatch):
    def trained():
        model = net()
        optimizer, _ = run(model, importance="loss")
        steps(model, optimizer, 7)
        return [p.detach().clone() for p in model.parameters()]

    looked = trained()
    monkeypatch.setattr(
        "orthotrain.lowrank.training.LowRankTraining._look_again", lambda *_, **__: None
    )
    assert all(torch.equal(a, b) for a, b in zip(looked, trained(), strict=True))


# --- layers without a low-rank form ---------------------------------------------------------------


def zoo():
    return nn.ModuleDict(
        {
            "lstm": nn.LSTM(4, 4), "gru": nn.GRU(4, 4), "cell": nn.GRUCell(4, 4),
            "bilinear": nn.Bilinear(4, 4, 4), "words": nn.Embedding(9, 4),
            "bag": nn.EmbeddingBag(9, 4), "up": nn.ConvTranspose2d(4, 4, 3),
            "norm": nn.LayerNorm(4),
        }
    )  # fmt: skip


EXPECTED = {
    "lstm": "LSTM", "gru": "GRU", "cell": "GRUCell", "bilinear": "Bilinear", "words": "Embedding",
    "bag": "EmbeddingBag", "up": "ConvTranspose2d",
}  # fmt: skip


@pytest.mark.bad_input
def test_layers_without_a_form_are_named_once_in_the_error_of_compress():
    with pytest.raises(ConfigError) as caught:
        compress(zoo(), rank_rtol=0.5)
    message = str(caught.value)
    for name, kind in EXPECTED.items():
        assert message.count(f"{name}: {kind} has no low-rank form") == 1
    assert "norm" not in message
    many = nn.Sequential(*(nn.Embedding(9, 4) for _ in range(10)))
    with pytest.raises(ConfigError, match=r"0: Embedding .*also 1, 2, 3, 4, 5, 6, 7 and 2 more\)"):
        compress(many, rank_rtol=0.5)


def test_layers_without_a_form_are_named_once_in_the_notes():
    model = zoo()
    model["linear"] = nn.Linear(4, 4)
    model["head"] = nn.Linear(4, 9, bias=False)
    model["tied"] = nn.Embedding(9, 4)
    model["head"].weight = model["tied"].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = attach(model, optimizer, as_published(delay_steps=1, every_steps=1, dense_last=False))
    for name, kind in EXPECTED.items():
        assert note(handle, name).startswith(f"{name}: {kind} has no low-rank form: ") or (
            name == "up" and note(handle, name)
        )
    assert note(handle, "head") == "head: tied to tied (Embedding)"
    assert not note(handle, "tied")


def test_quantized_layers_are_named_once():
    dense = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = torch.ao.quantization.quantize_dynamic(dense, {nn.Linear, nn.LSTM})
        except (RuntimeError, ImportError) as error:
            pytest.skip(f"no quantized kernels here: {error}")
    with pytest.raises(ConfigError) as caught:
        compress(model, rank_rtol=0.5)
    assert str(caught.value).count("its weight is quantized") == 2
    assert "0: Linear has no low-rank form" in str(caught.value)
    assert "1: LSTM has no low-rank form" in str(caught.value)


# --- hooks on gradients ---------------------------------------------------------------------------

MASK = torch.ones(WIDTH, 1, dtype=torch.float64)
SEEN: list[float] = []
BY_NAME: dict[str, float] = {}
ROW = 3


NOISE = torch.ones(3)


class Masking:
    def __init__(self):
        self.mask = MASK

    def __call__(self, g):
        return g * self.mask

    def bound(self, g):
        return g * self.mask


def by_closure(mask):
    return lambda g: g * mask


def helper(g):
    return g * MASK


def first_rows(g):
    g = g.clone()
    g[:2] = 0
    return g


def one_row(g):
    g = g.clone()
    g[ROW] = 0
    return g


def on_parameter(p):
    p.grad.mul_(MASK)


SHAPED = {
    "global": lambda g: g * MASK,
    "closure": by_closure(MASK.clone()),
    "default": lambda g, mask=MASK: g * mask,
    "partial": functools.partial(torch.mul, MASK),
    "object": Masking(),
    "bound method": Masking().bound,
    "in a list": lambda g, masks=(MASK,): g * masks[0],
    "calls another": lambda g: helper(g),
    "slice": first_rows,
    "row": one_row,
    "method by place": lambda g: g.index_fill(0, torch.tensor(0), 0.0),
}
SHAPELESS = {
    "clip": lambda g: g.clamp(-1, 1),
    "scale": lambda g: g * 0.5,
    "log": lambda g: SEEN.append(g.norm().item()),
    "log by name": lambda g: BY_NAME.__setitem__("0", g.norm().item()),
    "one number": by_closure(torch.ones(())),
    "builtin": torch.nan_to_num,
}


def log_in_a_mapping(g):
    BY_NAME["0"] = g.norm().item()


class Log:
    def __init__(self):
        self.entries = {}

    def __call__(self, g):
        self.entries["norm"] = float(g.norm())


data = torch.ones(8, 8)  # called like an attribute that hooks use


def halve(g):
    g.data.mul_(0.5)


kept = [torch.ones(8, 8)]

SHAPELESS |= {
    "log in a mapping": log_in_a_mapping,
    "log in an object": Log(),
    "an attribute called like a global": halve,
    "keeps what it saw": lambda g: kept.append(g.detach().clone()),
    "flattens": lambda g: g * (g.view(-1).norm() / g.reshape(-1).norm()),
    "a tensor of another size": lambda g: g * NOISE.mean(),
}


@pytest.mark.parametrize("hook", SHAPED.values(), ids=SHAPED)
@pytest.mark.parametrize("late", [False, True], ids=["before attach", "after attach"])
def test_a_layer_whose_hook_needs_its_shape_stays_dense(hook, late):
    model = net()
    if not late:
        model[2].weight.register_hook(hook)
    optimizer, handle = run(model)
    if late:
        model[2].weight.register_hook(hook)
    assert "so it needs the dense shape" in note(handle, "2")
    steps(model, optimizer, 3)
    assert type(model[2]) is nn.Linear
    assert list(rows(handle)) == ["0", "4"]


def test_a_hook_after_the_gradient_that_needs_the_shape():
    model = net()
    model[2].weight.register_post_accumulate_grad_hook(on_parameter)
    optimizer, handle = run(model)
    assert "on_parameter, that holds a tensor of shape (8, 1)" in note(handle, "2")
    steps(model, optimizer, 3)
    assert type(model[2]) is nn.Linear


@pytest.mark.parametrize("hook", SHAPELESS.values(), ids=SHAPELESS)
def test_a_layer_whose_hook_does_not_mind_is_converted(hook):
    model = net()
    model[2].weight.register_hook(hook)
    optimizer, handle = run(model)
    steps(model, optimizer, 4)
    assert type(model[2]) is LowRankLinear
    assert not note(handle, "2")


def test_an_optimizer_that_steps_inside_the_backward_pass_is_no_such_hook():
    model = net()
    optimizer = torch.optim.SGD([model[2].weight], lr=0.01)
    optimizers = {model[2].weight: optimizer}

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    model[2].weight.register_post_accumulate_grad_hook(step)
    _, handle = run(model, optimizer=optimizer)
    assert list(rows(handle)) == ["2"]


def test_a_hook_that_holds_the_weight_itself_follows_it():
    model = net()
    weight = model[2].weight
    weight.register_hook(lambda g: g + 0.1 * weight.detach())
    optimizer, _ = run(model)
    steps(model, optimizer, 4)
    assert type(model[2]) is LowRankLinear


@pytest.mark.bad_input
def test_attach_names_the_hook_where_no_layer_is_left():
    model = mlp(WIDTH, depth=1)
    model[0].weight.register_hook(SHAPED["global"])
    with pytest.raises(ConfigError, match=r"0: its gradient has a hook, <lambda>, that holds a"):
        run(model)


# --- methods that act on named weights ------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        orthotrain.NearestOrthogonalGradient("2"),
        orthotrain.OptimalLearningRate("2"),
        orthotrain.OrthogonalPenalty("2", weight=0.1),
        orthotrain.SpectralNormalization("2"),
        orthotrain.Retraction("2"),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_weight_that_left_the_model_is_named(method):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle = attach(model, optimizer, method)
    steps(model, optimizer, 2)
    assert not [text for text in handle.summary().notes if "left the model" in text]
    model[2] = filled(nn.Linear(WIDTH, WIDTH), seed=3)
    optimizer.add_param_group({"params": model[2].parameters()})
    steps(model, optimizer, 2)
    named = [text for text in handle.summary().notes if "left the model" in text]
    assert len(named) == 1
    assert f"{method.name}: 2 left the model" in named[0]
