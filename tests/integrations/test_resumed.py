"""What is asked before Lightning loads a checkpoint into a module, without Lightning."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import orthotrain
from lowrank.nets import filled
from orthotrain.errors import CheckpointError
from orthotrain.integrations._resumed import FittingHook


class Trainer:
    ckpt_path = "the.ckpt"


TRAINER = Trainer()


def asked(model: nn.Module) -> nn.Module:
    model.register_load_state_dict_pre_hook(FittingHook(TRAINER))
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.LazyLinear(16), nn.Linear(16, 4))


def called() -> nn.Module:
    model = lazy()
    model(torch.ones(2, 8))
    return filled(model).float()


@pytest.mark.bad_input
def test_where_names_may_differ_shapes_may_not():
    state = nn.Linear(3, 2).state_dict()
    without = asked(nn.Linear(3, 2, bias=False))
    with pytest.raises(CheckpointError, match="it has bias"):
        without.load_state_dict(state)
    without.strict_loading = False  # as Lightning says it
    without.load_state_dict(state, strict=False)
    model = asked(nn.Linear(4, 2))
    model.strict_loading = False
    model.load_state_dict({"bias": state["bias"]}, strict=False)
    before = model.weight.detach().clone()
    with pytest.raises(CheckpointError, match=r"another shape: weight \(\(2, 3\) there, \(2, 4\)"):
        model.load_state_dict(state, strict=False)
    assert torch.equal(model.weight, before)


@pytest.mark.bad_input
def test_a_module_without_shapes_is_resumed_and_told_to_be_called_where_it_must():
    saved = called()
    model = asked(orthotrain.follow(lazy()))
    model.load_state_dict(saved.state_dict())
    assert torch.equal(model(torch.ones(2, 8)), saved(torch.ones(2, 8)))
    orthotrain.compress(saved, energy=0.5, only_if_cheaper=False)
    with pytest.raises(
        CheckpointError, match=r"1\.pair\. Call the model on a batch first.*1\.weight"
    ):
        asked(orthotrain.follow(lazy())).load_state_dict(saved.state_dict())
    model = lazy()
    model(torch.ones(2, 8))
    asked(orthotrain.follow(model)).load_state_dict(saved.state_dict())
    assert torch.equal(model(torch.ones(2, 8)), saved(torch.ones(2, 8)))
