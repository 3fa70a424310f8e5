"""A model with nothing attached takes the structure of the state dict it loads."""

import copy
import pickle

import pytest
import torch
from torch import nn

import orthotrain
from lowrank.nets import Everything, attached, everything_loss, filled, mlp, mlp_loss, train
from orthotrain.errors import ConfigError
from orthotrain.layers import LowRankLinear

NETS = {
    "mlp": (lambda seed: mlp(10, seed=seed), mlp_loss),
    "everything": (lambda seed: filled(Everything(), seed=seed), everything_loss),
}
CUT = {"delay_steps": 1, "every_steps": 1, "rank_rtol": 0.2, "max_drop": 0.5}


def trained(kind, **settings):
    """A low-rank model that was trained, and how to make and judge another one."""
    make, loss_of = NETS[kind]
    model = make(0)
    optimizer, _ = attached(model, **CUT | settings)
    train(model, optimizer, range(3), loss_of=loss_of)
    return model, make, loss_of


def same(model, other, loss_of):
    return torch.equal(loss_of(model, 7), loss_of(other, 7))


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("bases", ["frozen", "trained"])
def test_a_fresh_model_takes_ranks_and_values_and_goes_back_to_dense(kind, bases):
    model, make, loss_of = trained(kind, bases=bases)
    fresh = make(1)
    dense = copy.deepcopy(fresh.state_dict())
    assert orthotrain.follow(fresh) is fresh
    fresh.load_state_dict(model.state_dict())
    assert same(fresh, model, loss_of)
    assert any(isinstance(m, LowRankLinear) for m in fresh.modules())
    fresh.load_state_dict(dense)
    assert same(fresh, make(1), loss_of)
    assert not any(isinstance(m, LowRankLinear) for m in fresh.modules())


@pytest.mark.parametrize("again", ["before", "twice", "deepcopy", "pickle"])
def test_it_holds_for_copies_and_when_it_is_called_again(again):
    model, make, loss_of = trained("mlp")
    fresh = orthotrain.follow(make(1))
    if again == "before":
        fresh.load_state_dict(model.state_dict())
    elif again == "twice":
        orthotrain.follow(fresh)
    elif again == "deepcopy":
        fresh = copy.deepcopy(fresh)
    else:
        fresh = pickle.loads(pickle.dumps(fresh))
    fresh.load_state_dict(model.state_dict())
    assert same(fresh, model, loss_of)


class Holder(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.module = net

    def forward(self, x):
        return self.module(x)


WRAPPERS = {
    "DataParallel": lambda net: nn.DataParallel(net),
    "averaged": lambda net: torch.optim.swa_utils.AveragedModel(net),
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "a child called module": Holder,
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("outer", [True, False], ids=["whole", "inner"])
def test_wrappers_make_no_difference(wrap, outer):
    model, make, loss_of = trained("mlp")
    wrapped = wrap(make(1))
    fresh = getattr(wrapped, "module", None) or wrapped._orig_mod
    orthotrain.follow(wrapped if outer else fresh)
    wrapped.load_state_dict(wrap(model).state_dict())
    assert same(fresh, model, loss_of)


def test_tied_layers_share_their_factors_again():
    def tied(seed):
        net = mlp(10, seed=seed)
        net[2].weight = net[0].weight
        return net

    model = tied(0)
    optimizer, _ = attached(model, **CUT, bases="frozen")
    train(model, optimizer, range(3))
    fresh = orthotrain.follow(tied(1))
    fresh.load_state_dict(model.state_dict())
    assert fresh[0].core is fresh[2].core
    assert fresh[0].u is fresh[2].u
    assert same(fresh, model, mlp_loss)


@pytest.mark.bad_input
@pytest.mark.parametrize("model", [nn.ReLU(), nn.Bilinear(4, 4, 4), "a name", None])
def test_what_can_follow_nothing_is_refused(model):
    with pytest.raises(ConfigError, match="follow needs"):
        orthotrain.follow(model)


@pytest.mark.bad_input
def test_factors_of_another_model_are_named():
    model, _, _ = trained("mlp")
    with pytest.raises(RuntimeError, match="load it into the model it was saved from"):
        orthotrain.follow(mlp(12)).load_state_dict(model.state_dict())
