from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from orthotrain.errors import ConfigError
from orthotrain.methods.select import (
    clean_name,
    named_modules_clean,
    named_parameters_clean,
    select_modules,
    select_parameters,
    unwrap,
    wrappers,
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.gamma = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return x


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(4))
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        return x


def names(selected):
    return [name for name, _ in selected]


WRAPPERS = {
    "bare": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "parallel": nn.DataParallel,
    "parallel of compiled": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
    "compiled parallel": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_same_is_found_through_any_wrapper(wrap):
    model = Model()
    wrapped = wrap(model)
    assert unwrap(wrapped) is model
    assert len(wrappers(wrapped)) == sum(1 for m in wrapped.modules()) - sum(
        1 for m in model.modules()
    )
    assert list(named_parameters_clean(wrapped)) == list(model.named_parameters())
    assert list(named_modules_clean(wrapped)) == list(model.named_modules())
    assert names(select_parameters(wrapped, "conv*")) == ["conv1.weight", "conv2.weight"]
    assert [clean_name(name) for name in wrapped.state_dict()] == list(model.state_dict())


def test_wrappers_inside_the_model_leave_no_trace_in_names():
    model = Model()
    plain = [name for name, _ in model.named_parameters()]
    model.conv2 = torch.compile(model.conv2, backend="eager")
    assert names(named_parameters_clean(model)) == plain
    assert names(select_modules(model, "conv2")) == ["conv2"]
    assert select_modules(model, model.conv2) == [("conv2", unwrap(model.conv2))]


def test_a_child_that_is_called_module_keeps_its_name():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert unwrap(model := Holder()) is model
    assert names(select_parameters(model, "module")) == ["module.weight"]


def test_the_average_of_a_model_is_unwrapped():
    averaged = AveragedModel(Model())
    assert unwrap(averaged) is averaged.module


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("conv1", ["conv1.weight"]),
        ("conv1.bias", ["conv1.bias"]),
        ("conv*", ["conv1.weight", "conv2.weight"]),
        ("module.conv1", ["conv1.weight"]),
        ("_orig_mod.module.conv1.weight", ["conv1.weight"]),
        ("*.bias", [n for n, _ in Model().named_parameters() if n.endswith(".bias")]),
        ("pos*", ["position"]),
        (
            "blocks.0.*",
            [
                "blocks.0.gamma",
                "blocks.0.attn.in_proj_weight",
                "blocks.0.attn.out_proj.weight",
                "blocks.0.norm.weight",
            ],
        ),
        (
            "*",
            [n for n, _ in Model().named_parameters() if "bias" not in n],
        ),
    ],
)
def test_patterns(pattern, expected):
    assert names(select_parameters(Model(), pattern)) == expected


def test_several_patterns_give_each_parameter_once_in_the_order_of_the_model():
    model = Model()
    chosen = select_parameters(
        model, ["head", model.conv2, model.conv1.weight, "conv*", model.position]
    )
    assert names(chosen) == ["position", "conv1.weight", "conv2.weight", "head.weight"]
    assert chosen[0][1] is model.position


def test_a_model_that_is_one_layer():
    model = nn.Linear(2, 2)
    assert names(select_parameters(model, "*")) == ["weight"]
    assert names(select_parameters(model, "bias")) == ["bias"]
    assert select_modules(model, "*") == [("", model)]


def test_tied_weights_and_shared_modules_are_found_once():
    model = Model()
    model.tied = nn.Linear(4, 2)
    model.tied.weight = model.head.weight
    model.again = model.conv1
    assert names(select_parameters(model, ["tied", "again*", "head", "conv1"])) == [
        "conv1.weight",
        "head.weight",
    ]
    assert names(select_parameters(model, "tied.weight")) == ["head.weight"]
    assert names(select_modules(model, "again")) == ["conv1"]
    assert names(select_modules(model, model.head.weight)) == ["head", "tied"]


def test_the_core_of_a_low_rank_layer_stands_for_its_weight():
    model = Model()
    core = model.head.weight
    del model.head.weight
    model.head.core = core
    assert select_parameters(model, "head") == [("head.core", core)]


def test_modules():
    model = Model()
    assert names(select_modules(model, ["head", "blocks.?"])) == ["blocks.0", "blocks.1", "head"]
    assert select_modules(model, model.head) == [("head", model.head)]


@pytest.mark.parametrize("select", [select_parameters, select_modules])
def test_nothing_matched_names_what_is_close(select):
    with pytest.raises(ConfigError, match=r"'haed'.*close to it: head"):
        select(Model(), "haed")
    with pytest.raises(ConfigError, match=r"the model has: .*conv1"):
        select(Model(), ["conv1", "zzzzz*"])


def test_a_container_has_no_weight():
    model = Model()
    with pytest.raises(ConfigError, match=r"'blocks.0.\*'"):
        select_parameters(model, "blocks.0")
    with pytest.raises(ConfigError, match="no weight of its own"):
        select_parameters(model, model.blocks[0])


@pytest.mark.parametrize("select", [select_parameters, select_modules])
@pytest.mark.parametrize("stranger", [nn.Linear(4, 2), nn.Parameter(torch.ones(4, 2))])
def test_objects_of_another_model(select, stranger):
    with pytest.raises(ConfigError, match=r"not part of the model|no module of the model"):
        select(Model(), stranger)


@pytest.mark.bad_input
@pytest.mark.parametrize("select", [select_modules, select_parameters])
def test_an_index_is_no_name(select):
    with pytest.raises(
        ConfigError, match=r"patterns\[0\] to be text or a Module or a tensor, got 2"
    ):
        select(nn.Sequential(nn.Linear(2, 2)), [2])
