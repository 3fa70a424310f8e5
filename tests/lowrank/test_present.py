"""Layers that come, go, are replaced, frozen and unfrozen after ``attach``."""

from __future__ import annotations

import copy
import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as pruning

import orthotrain
from lowrank.nets import as_published, batch, filled, through_file
from orthotrain import AdaptiveLowRank, attach
from orthotrain.errors import ConfigError, OrthotrainWarning
from orthotrain.layers import LowRankLinear
from orthotrain.lowrank import compress
from orthotrain.lowrank.no_form import TIED_HEAD

WIDTH = 8
importances = pytest.mark.parametrize("importance", ["weight", "loss"])


def net(width=WIDTH):
    return filled(
        nn.Sequential(nn.Linear(WIDTH, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
                      nn.Linear(width, WIDTH))
    )  # fmt: skip


def run(model, *, importance="weight", delay=2, every=2, optimizer=None, **settings):
    """Attached, updates after steps 2, 4, ... that halve every layer."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=0.01)
    method = AdaptiveLowRank(
        delay_steps=delay, every_steps=every, importance=importance, energy=0.7, dense_last=False,
        only_if_cheaper=False, spread=False, **settings,
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


NO_FORM = "has no low-rank form"
EXPECTED = {
    "lstm": "LSTM is cut on request", "gru": "GRU is cut on request",
    "cell": "GRUCell is cut on request", "bilinear": f"Bilinear {NO_FORM}",
    "words": "Embedding is cut on request", "bag": f"EmbeddingBag {NO_FORM}",
    "up": "ConvTranspose2d is cut on request",
}  # fmt: skip


@pytest.mark.bad_input
def test_layers_without_a_form_are_named_once_in_the_error_of_compress():
    with pytest.raises(ConfigError) as caught:
        compress(zoo(), rank_rtol=0.5)
    message = str(caught.value)
    for name, reason in EXPECTED.items():
        assert message.count(f"{name}: {reason}: ") == 1
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
    for name, reason in EXPECTED.items():
        assert note(handle, name).startswith(f"{name}: {reason}: ")
    assert note(handle, "head") == f"head: tied to tied (Embedding): {TIED_HEAD}"
    assert note(handle, "tied") == f"tied: tied to head: {TIED_HEAD}"


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
BY_NAME: dict[str, torch.Tensor | float] = {}


class Masking(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", MASK.clone())

    def forward(self, g):
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
    g[3] = 0
    return g


def upper(g):
    return g.triu()


def running_mean(g):
    if "mean" in BY_NAME:
        BY_NAME["mean"].lerp_(g, 0.1)
    else:
        BY_NAME["mean"] = g.clone()


def on_parameter(p):
    p.grad.mul_(MASK)


SHAPED = {
    "global": lambda g: g * MASK,
    "closure": by_closure(MASK.clone()),
    "default": lambda g, mask=MASK: g * mask,
    "partial": functools.partial(torch.mul, MASK),
    "module": Masking(),
    "bound method": Masking().bound,
    "in a list": lambda g, masks=(MASK,): g * masks[0],
    "calls another": lambda g: helper(g),
    "made inside": lambda g: g * torch.ones(WIDTH, WIDTH, dtype=g.dtype),
    "flat": lambda g: (g.flatten() * torch.ones(WIDTH * WIDTH)).view_as(g),
    "product": lambda g: torch.eye(WIDTH, dtype=g.dtype) @ g,
    "its own": lambda g: torch.zeros(WIDTH, WIDTH, dtype=g.dtype),
    "running mean": running_mean,
    "slice": first_rows,
    "row": one_row,
    "triangle": upper,
    "method by place": lambda g: g.index_fill(0, torch.tensor(0), 0.0),
    "sizes": lambda g: g.view(2, -1).clone().view(g.shape),
}


class Log:
    def __init__(self):
        self.entries = {}

    def __call__(self, g):
        self.entries["norm"] = float(g.norm())


def log_in_a_mapping(g):
    BY_NAME["0"] = g.norm().item()


def halve(g):
    g.data.mul_(0.5)


def largest(g):
    flat = g.flatten()
    places = flat.abs().topk(3).indices
    kept = torch.zeros_like(flat)
    kept[places] = flat[places]
    return kept.view_as(g)


kept = [torch.ones(WIDTH, WIDTH)]
SHAPELESS = {
    "clip": lambda g: g.clamp(-1, 1),
    "scale": lambda g: g * 0.5,
    "log": lambda g: SEEN.append(g.norm().item()),
    "log by name": lambda g: BY_NAME.__setitem__("0", g.norm().item()),
    "log in a mapping": log_in_a_mapping,
    "log in an object": Log(),
    "log as text": lambda g: SEEN.append(len(repr(g))),
    "log quantiles": lambda g: SEEN.append(
        g.quantile(torch.tensor([0.1, 0.5, 0.9]).to(g)).tolist()
    ),
    "one number": by_closure(torch.ones(())),
    "builtin": torch.nan_to_num,
    "in place": halve,
    "keeps what it saw": lambda g: kept.append(g.detach().clone()),
    "flattens": lambda g: g * (g.view(-1).norm() / g.reshape(-1).norm()),
    "all of it": lambda g: g[:] * g[...],
    "where it says itself": lambda g: g.masked_fill(g.abs() > 1, 0.0),
    "largest": largest,
    "noise": lambda g: g + 1e-3 * torch.zeros_like(g),
}


def hooked(hook, **settings):
    """A model with a hook on the gradient of layer 2, attached."""
    model = net()
    model[2].weight.register_hook(hook)
    return model, *run(model, **settings)


@pytest.mark.parametrize("hook", SHAPED.values(), ids=SHAPED)
def test_a_layer_whose_hook_needs_its_shape_stays_dense(hook):
    BY_NAME.clear()
    model, optimizer, handle = hooked(hook)
    assert "did not run yet" in note(handle, "2")
    steps(model, optimizer, 4)
    assert "so it needs the dense shape" in note(handle, "2")
    assert type(model[2]) is nn.Linear
    assert list(rows(handle)) == ["0", "4"]


def test_a_hook_that_came_after_attach():
    model = net()
    optimizer, handle = run(model)
    model[2].weight.register_hook(by_closure(MASK))
    assert "did not run yet" in note(handle, "2")
    steps(model, optimizer, 4)
    assert "by_closure.<locals>.<lambda>, that holds a tensor of shape (8, 1)" in note(handle, "2")
    assert type(model[2]) is nn.Linear


def test_a_hook_after_the_gradient_that_needs_the_shape():
    model = net()
    model[2].weight.register_post_accumulate_grad_hook(on_parameter)
    optimizer, handle = run(model)
    steps(model, optimizer, 3)
    assert "on_parameter, that holds a tensor of shape (8, 1)" in note(handle, "2")
    assert type(model[2]) is nn.Linear


def test_a_layer_whose_hook_never_ran_stays_dense_at_an_update():
    model, optimizer, handle = hooked(by_closure(torch.ones(())), delay=0)
    assert [type(layer) for layer in model[::2]] == [LowRankLinear, nn.Linear, LowRankLinear]
    assert list(rows(handle)) == ["0", "4"]
    steps(model, optimizer, 2)
    assert type(model[2]) is LowRankLinear
    assert list(rows(handle)) == ["0", "2", "4"]


@pytest.mark.parametrize("hook", SHAPELESS.values(), ids=SHAPELESS)
def test_a_layer_whose_hook_does_not_mind_is_converted(hook):
    model, optimizer, handle = hooked(hook)
    steps(model, optimizer, 4)
    assert type(model[2]) is LowRankLinear
    assert not note(handle, "2")


def test_a_hook_is_called_as_before_and_given_back():
    seen = []
    model, optimizer, handle = hooked(seen.append)
    steps(model, optimizer, 3)
    assert [tuple(g.shape) for g in seen] == [(WIDTH, WIDTH)] * 2 + [(model[2].rank, 2 * WIDTH)]
    handle.detach()
    assert list(model[2].pair._backward_hooks.values()) == [seen.append]


def test_a_hook_can_be_removed():
    model = net()
    mine = model[2].weight.register_hook(by_closure(MASK))
    optimizer, handle = run(model)
    steps(model, optimizer, 1)
    mine.remove()
    steps(model, optimizer, 3)
    assert type(model[2]) is LowRankLinear
    assert not note(handle, "2")


def asserts_the_shape(g):
    assert g.shape == (WIDTH, WIDTH)


def later_of_another_shape(g):
    return g if g.shape == (WIDTH, WIDTH) else g.sum()


@pytest.mark.bad_input
@pytest.mark.parametrize("hook", [asserts_the_shape, later_of_another_shape])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_hook_that_fails_in_a_low_rank_layer_is_named(hook, compressed):
    model = net()
    model[2].weight.register_hook(hook)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    if compressed:
        compress(model, energy=0.5, only_if_cheaper=False)
    else:
        run(model, optimizer=optimizer)
    words = rf"2 became low-rank, so its hook {hook.__name__} is given .* leave the layer out"
    with pytest.raises(ConfigError, match=words):
        steps(model, optimizer, 4)


def test_an_optimizer_that_steps_inside_the_backward_pass_is_no_such_hook():
    model = net()
    optimizer = torch.optim.AdamW([model[2].weight], lr=0.01)
    optimizers = {model[2].weight: optimizer}

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    model[2].weight.register_post_accumulate_grad_hook(step)
    _, handle = run(model, optimizer=optimizer)
    for i in range(4):
        (model(batch(i, 16, WIDTH)) - 1).square().mean().backward()
    assert list(rows(handle)) == ["2"]
    assert type(model[2]) is LowRankLinear


def test_a_hook_that_holds_the_weight_itself_follows_it():
    model = net()
    weight = model[2].weight
    weight.register_hook(lambda g: g + 0.1 * weight.detach())
    optimizer, _ = run(model)
    steps(model, optimizer, 4)
    assert type(model[2]) is LowRankLinear


# --- weights that changed inside their layer ------------------------------------------------------


def prune(layer):
    pruning.l1_unstructured(layer, "weight", 0.5)


def normalize(layer):
    torch.nn.utils.parametrizations.weight_norm(layer)


def halve_rows(layer):
    for parameter in (layer.weight, layer.bias):
        parameter.data = parameter.data[: WIDTH // 2].clone()


def halve_layer(layer):
    halve_rows(layer)
    layer.out_features = WIDTH // 2


def changed(change, *, after, importance):
    """A run in which the last layer is changed by hand after so many steps."""
    model = net()
    optimizer, handle = run(model, importance=importance)
    steps(model, optimizer, after)
    change(model[4])
    for parameter in model[4].parameters():
        optimizer.state.pop(parameter, None)
    for i in range(after, 5):
        optimizer.zero_grad()
        model(batch(i, 16, WIDTH)).square().mean().backward()
        optimizer.step()
    return model, handle


@importances
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (prune, "its weight is computed from other parameters"),
        (normalize, "its weight is computed from other parameters"),
        (halve_rows, "its weight is (4, 8), the layer says (8, 8)"),
    ],
)
def test_a_weight_that_changed_inside_its_layer_is_named(change, words, after, importance):
    model, handle = changed(change, after=after, importance=importance)
    assert list(rows(handle)) == ["0", "2"]
    assert words in note(handle, "4")
    assert type(model[2]) is LowRankLinear


def test_a_layer_that_was_made_smaller_is_converted_in_its_size():
    model, handle = changed(halve_layer, after=1, importance="weight")
    assert rows(handle)["4"][0] == (4, 8)
    assert type(model[4]) is LowRankLinear


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
