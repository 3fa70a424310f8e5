"""What ``to_dense`` and ``to_factored`` leave is read where this library is not installed."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import orthotrain
from lowrank.nets import Attention, attached, batch, filled, mlp, mlp_loss, train
from orthotrain.errors import OrthotrainWarning
from orthotrain.layers import LowRankLinear, orthogonal_weight
from orthotrain.lowrank import to_dense, to_factored
from orthotrain.methods.weak_hook import WeakHook
from processes import run_python

CUT = {"delay_steps": 2, "every_steps": 2, "rank_rtol": 0.5}


def compressed(model):
    return orthotrain.compress(model, rank_rtol=0.5, only_if_cheaper=False)


def trained(model, *methods, detach=True):
    optimizer, handle = attached(model, torch.optim.Adam(model.parameters()), **CUT)
    if methods:
        handle.detach()
        handle = orthotrain.attach(model, optimizer, *methods)
    train(model, optimizer, range(5))
    if detach:
        handle.detach()
    else:
        KEPT.append((optimizer, handle))
    return model


KEPT = []  # what keeps a handle attached
WATCHING = (orthotrain.BasisStability(every_steps=2), orthotrain.ConditionMonitor("0"))
HISTORIES = {
    "compressed": compressed,
    "trained": trained,
    "trained, attached still": lambda m: trained(m, detach=False),
    "other methods, attached still": lambda m: trained(
        m, orthotrain.NearestOrthogonalGradient("0"), *WATCHING, detach=False
    ),
    "followed": lambda m: orthotrain.follow(m),
    "followed and loaded": lambda m: loaded(orthotrain.follow(m)),
    "orthogonal weight": lambda m: compressed(parametrized(m)),
}


def loaded(model):
    model.load_state_dict(compressed(mlp(10, seed=1)).state_dict())
    return model


def parametrized(model):
    orthogonal_weight(model[2])
    return model


CASES = [(name, form) for name in HISTORIES for form in (to_dense, to_factored)]


@pytest.fixture(scope="module")
def read_elsewhere(tmp_path_factory):
    """For each case: outputs here, of a copy, and in a process that cannot import the library."""
    folder = tmp_path_factory.mktemp("pickles")
    x, known = batch(0, 3, 10), []
    for name, form in CASES:
        model = form(HISTORIES[name](mlp(10))).eval()
        twin = copy.deepcopy(model)
        torch.save([model, twin], folder / f"{len(known)}.pt")
        known.append([model(x).detach(), twin(x).detach()])
    torch.save(x, folder / "x.pt")
    run_python(
        f"""
import sys, torch
sys.modules["orthotrain"] = None  # an import of it is an error
folder, x = {str(folder)!r}, torch.load({str(folder / "x.pt")!r})
torch.save([
    [model(x).detach() for model in torch.load(f"{{folder}}/{{i}}.pt", weights_only=False)]
    for i in range({len(CASES)})
], f"{{folder}}/outputs.pt")
"""
    )
    there = torch.load(folder / "outputs.pt")
    KEPT.clear()
    return dict(zip(CASES, zip(known, there, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}, {case[1].__name__}")
def test_a_pickled_model_and_its_copy_are_read_without_the_library(read_elsewhere, case):
    here, there = read_elsewhere[case]
    assert all(torch.equal(one, here[0]) for one in (*here, *there))


def test_an_attention_layer_that_is_watched_is_pickled_as_torchs():
    model = filled(nn.Sequential(Attention(8), nn.Linear(8, 8)))
    optimizer, handle = attached(
        model, delay_steps=2, every_steps=8, rank_rtol=0.5, importance="loss", bases="trained"
    )

    def loss_of(model, step):
        return model(batch(step, 2, 4, 8)).square().mean()

    train(model, optimizer, range(1), loss_of=loss_of)
    assert "_observer" in vars(model[0].attention)
    file = io.BytesIO()
    torch.save(to_dense(model), file)
    assert b"orthotrain." not in file.getvalue()
    assert handle.attached


def test_hooks_of_a_handle_that_is_attached_go_on():
    model = mlp(10)
    optimizer, handle = attached(model, torch.optim.Adam(model.parameters()), **CUT)
    train(model, optimizer, range(3))
    to_dense(model)
    with pytest.warns(OrthotrainWarning, match="starts again"):
        train(model, optimizer, range(2))
    assert handle.run.step == 5
    assert any(isinstance(layer, LowRankLinear) for layer in model)  # cut again at its time
    assert any(isinstance(hook, WeakHook) for hook in model._forward_hooks.values())


def test_hooks_out_of_a_pickle_do_nothing_and_go_when_methods_are_attached():
    model = trained(mlp(10), detach=False)
    file = io.BytesIO()
    torch.save(to_dense(model), file)
    file.seek(0)
    twin = torch.load(file, weights_only=False)
    assert len(twin._forward_hooks) == 1
    assert torch.equal(twin(batch(0, 2, 10)), model(batch(0, 2, 10)))
    attached(twin, **CUT)
    assert [type(hook).__name__ for hook in twin._forward_hooks.values()] == ["ForwardHook"]
    KEPT.clear()


def test_a_dense_model_follows_no_more_until_it_is_told():
    state = compressed(mlp(10, seed=1)).state_dict()
    model = to_dense(orthotrain.follow(mlp(10)))
    with pytest.raises(RuntimeError, match="pair"):
        model.load_state_dict(state)
    orthotrain.follow(model).load_state_dict(state)


def test_a_kept_orthogonal_weight_is_a_plain_parameter_of_the_same_object_and_value():
    model = parametrized(mlp(10))
    value, held = model[2].weight.detach().clone(), model[2].parametrizations.weight.original
    nn.utils.parametrizations.weight_norm(model[0])
    to_dense(model)
    assert model[2].weight is held
    assert torch.equal(model[2].weight, value)
    assert type(model[2]) is nn.Linear
    assert "parametrizations" in dict(model[0].named_children())  # it is not ours


@pytest.mark.parametrize("handle", [True, False], ids=["attached", ""])
def test_an_optimizer_of_replaced_weights_says_that_it_trains_others(handle):
    # Every layer pays as two, so nothing is left of a changed shape.
    model = orthotrain.compress(mlp(10), stored_budget=0.6)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    if handle:
        orthotrain.attach(model, optimizer, orthotrain.BasisStability(every_steps=9))
    train(model, optimizer, range(2))
    bias = model[0].bias
    to_factored(model)
    with pytest.warns(
        OrthotrainWarning, match=r"to_factored replaced weights that Adam holds \(3\)"
    ):
        train(model, optimizer, range(1))
    assert optimizer.state[bias]["step"] == 3  # it went with the layer
    fresh = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    before = [p.detach().clone() for p in model.parameters()]
    train(model, fresh, range(1), loss_of=mlp_loss)
    assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
