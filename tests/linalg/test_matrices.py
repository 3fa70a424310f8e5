"""A weight is read as matrices in one way, by everything that looks at weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from orthotrain.diagnostics.stability import _matrices
from orthotrain.linalg.matrices import WeightLayout, stored_layout, weight_layout
from orthotrain.linalg.orthonormality import gram_deviation, with_fewer_rows
from orthotrain.lowrank.sites import Selection, find_sites
from orthotrain.lowrank.state_dicts import StoredModel
from orthotrain.lowrank.state_dicts.survey import surveyed
from orthotrain.methods import Run, find_targets
from reference.matrices import from_spectrum

KINDS = {
    "linear": (nn.Linear(5, 3), "3x5"),
    "conv": (nn.Conv2d(6, 4, 3), "4x54"),
    "grouped": (nn.Conv2d(32, 32, 3, groups=4), "4 of 8x72"),
    "depthwise": (nn.Conv1d(6, 6, 4, groups=6), "6 of 1x4"),
    "transposed": (nn.ConvTranspose2d(16, 48, 3), "48x144"),
    "transposed, grouped": (nn.ConvTranspose1d(8, 12, 3, groups=4), "4 of 3x6"),
}
kinds = pytest.mark.parametrize(("layer", "said"), KINDS.values(), ids=KINDS)


def numbered(shape):
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)


def of_outputs_by_inputs(layer: nn.Module) -> torch.Tensor:
    """``(blocks, m, n)`` entry by entry, from what the weight does to one tap of one input."""
    w = numbered(layer.weight.shape)
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return w[None]
    groups = layer.groups
    outputs, inputs = layer.out_channels // groups, layer.in_channels // groups
    taps = w[0, 0].numel()
    matrices = torch.empty(groups, outputs, inputs * taps, dtype=torch.float64)
    for g in range(groups):
        for o in range(outputs):
            for i in range(inputs):
                a, b = g * outputs + o, i
                if layer.transposed:
                    a, b = g * inputs + i, o
                matrices[g, o, i * taps : (i + 1) * taps] = w[a, b].flatten()
    return matrices


@kinds
def test_a_layout_gathers_what_goes_into_one_output(layer, said):
    layout = weight_layout(layer, "weight", layer.weight.shape)
    weight = numbered(layer.weight.shape)
    assert str(layout) == said
    assert torch.equal(layout.matrices(weight), of_outputs_by_inputs(layer))
    assert layout.full_rank == min(layout.m, layout.n)


@kinds
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_way_there_and_back_keeps_every_number(layer, said, channels_last):
    layout = weight_layout(layer, "weight", layer.weight.shape)
    weight = numbered(layer.weight.shape)
    if channels_last and weight.ndim == 4:
        weight = weight.to(memory_format=torch.channels_last)
    assert torch.equal(layout.tensor(layout.matrices(weight)), weight)
    assert torch.equal(layout.tensor(layout.matrix(weight)), weight)
    assert layout.matrix(weight).ndim == (3 if layout.blocks > 1 else 2)


def test_a_core_is_what_it_is_and_packed_attention_three_matrices():
    attention = nn.MultiheadAttention(6, 2)
    assert str(weight_layout(attention, "in_proj_weight", (18, 6))) == "3 of 6x6"
    assert str(weight_layout(attention, "in_proj_core", (3, 2, 2))) == "3 of 2x2"
    assert str(weight_layout(nn.Linear(3, 3), "core", (2, 2))) == "2x2"


@pytest.mark.parametrize(
    ("key", "shape", "bias", "said"),
    [
        ("a.weight", (48, 16, 3, 3), 48, "48x144"),
        ("a.weight", (16, 48, 3, 3), 48, "48x144"),
        ("a.weight", (8, 3, 3), 12, "4 of 3x6"),
        ("a.weight", (8, 5), 5, "8x5"),
        ("a.weight", (8, 5, 3), None, "8x15"),
        ("a.weight", (8, 5, 3), 7, "8x15"),
        ("a.in_proj_weight", (18, 6), None, "3 of 6x6"),
        ("in_proj_weight", (17, 6), None, "17x6"),
    ],
)
def test_a_state_dict_is_read_as_far_as_names_and_shapes_tell(key, shape, bias, said):
    assert str(stored_layout(key, shape, None if bias is None else torch.empty(bias))) == said


class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Linear(8, 6)
        self.grouped = nn.Conv2d(32, 32, 3, groups=4)
        self.up = nn.ConvTranspose2d(16, 48, 3)
        self.attention = nn.MultiheadAttention(24, 2)


def sizes(layout: WeightLayout):
    return layout.blocks, layout.m, layout.n


def test_methods_diagnostics_low_rank_and_inspect_read_one_weight_alike():
    model = Zoo()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Run(model, optimizer)
    names = ("plain", "grouped", "up", "attention.in_proj_weight", "attention.out_proj.weight")
    targets = find_targets("test", run, names, reads_gradient=False)
    expected = {target.name: sizes(target.layout) for target in targets}
    assert expected == {
        "plain": (1, 6, 8), "grouped": (4, 8, 72), "up": (1, 48, 144),
        "attention.in_proj_weight": (3, 24, 24), "attention.out_proj": (1, 24, 24),
    }  # fmt: skip

    sites, _ = find_sites(model, Selection(max_aspect=math.inf))
    held = {site.name: sizes(site.layout) for site in sites}
    assert held == {name: expected[name] for name in expected if name != "up"}

    watched = {
        name: torch.Size(w.shape)
        for at, module in model.named_modules()
        for name, _, w in _matrices(at, module)
    }
    assert watched.pop("attention.q") == watched.pop("attention.k") == (24, 24)
    assert watched.pop("attention.v") == (24, 24)
    for name, shape in watched.items():
        assert (*((1,) if len(shape) == 2 else ()), *shape) == expected[name], name

    stored, owners = StoredModel(model.state_dict()), dict(model.named_modules())
    shown = {weight.name: weight.shape for weight in surveyed(stored).weights}
    assert shown["attention.in_proj"] == "3 of 24x24"
    assert shown["up"] == "48x144"
    assert shown["grouped"] == "32x72"  # a state dict does not say
    known = {weight.name: weight.shape for weight in surveyed(stored, owners=owners).weights}
    assert known["grouped"] == "4 of 8x72"
    assert known["up"] == "48x144"


def test_a_parametrized_weight_is_read_as_its_layer_is():
    model = nn.Sequential(parametrizations.weight_norm(nn.ConvTranspose2d(16, 48, 3), dim=None))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Run(model, optimizer)
    name = "0.parametrizations.weight.original1"
    (target,) = find_targets("test", run, name, reads_gradient=False)
    assert str(target.layout) == "48x144"


def test_gram_deviation_is_what_orthonormal_rows_lack():
    w = from_spectrum([3.0, 2.0, 1.0], 3, 7)
    # The singular values of W W^T - 1 are s^2 - 1.
    assert float(gram_deviation(w).norm()) == pytest.approx((64 + 9) ** 0.5)
    assert gram_deviation(w.mT).shape == (7, 7)
    assert with_fewer_rows(w) is w
    assert torch.equal(with_fewer_rows(w.mT), w)
    assert with_fewer_rows(torch.zeros(2, 4, 4)).shape == (2, 4, 4)
