"""Which weights can be held low-rank, and that every other one is named with its reason."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lowrank.nets import attached, filled, mlp, train
from orthotrain.errors import ConfigError
from orthotrain.layers import LowRankLinear
from orthotrain.lowrank.no_form import TIED_HEAD
from orthotrain.lowrank.sites import Selection, find_sites


def found(model, **options):
    trained = options.pop("trained", None)
    sites, refusals = find_sites(model, Selection(**options), trained=trained)
    return [site.name for site in sites], {r.name: r.reason for r in refusals}


class OwnForward(nn.Linear):
    def forward(self, x):
        return super().forward(x).relu()


def test_weights_are_eligible_by_their_shape():
    model = nn.Sequential(
        nn.Linear(100, 10), nn.Linear(10, 100), nn.Linear(99, 10), nn.Linear(10, 10),
        nn.Conv2d(3, 30, 3), nn.Conv2d(1, 40, 2),
    )  # fmt: skip
    names, refused = found(model)
    assert names == ["2", "3", "4"]
    assert refused == {
        "0": "too thin: 10 x 100, max_aspect=10 leaves it out",
        "1": "too thin: 100 x 10, max_aspect=10 leaves it out",
        "5": "too thin: 40 x 4, max_aspect=10 leaves it out",
    }  # fmt: skip
    assert found(model, max_aspect=math.inf)[0] == ["0", "1", "2", "3", "4", "5"]


def test_every_kind_of_layer_has_its_layout():
    model = nn.ModuleDict(
        {
            "conv1d": nn.Conv1d(4, 6, 5),
            "grouped": nn.Conv2d(8, 12, 3, groups=4),
            "conv3d": nn.Conv3d(2, 6, 2),
            "packed": nn.MultiheadAttention(8, 2),
            "separate": nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
        }
    )
    sites, _ = find_sites(model, Selection())
    layouts = {s.name: (s.layout.blocks, s.layout.m, s.layout.n, s.multiple) for s in sites}
    assert layouts == {
        "conv1d": (1, 6, 20, 16),
        "grouped": (4, 3, 18, 16),
        "conv3d": (1, 6, 16, 16),
        "packed.in_proj_weight": (3, 8, 8, 1),
        "packed.out_proj": (1, 8, 8, 1),
        "separate.q_proj_weight": (1, 8, 8, 1),
        "separate.k_proj_weight": (1, 8, 6, 1),
        "separate.v_proj_weight": (1, 8, 4, 1),
        "separate.out_proj": (1, 8, 8, 1),
    }
    shared, _ = find_sites(model, Selection(shared_attention_basis=True))
    assert {s.name: (s.layout.blocks, s.layout.m) for s in shared}["packed.in_proj_weight"] == (
        1, 24,
    )  # fmt: skip


def test_first_and_last_go_by_position_in_the_model():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6, 6), nn.Linear(6, 6), OwnForward(6, 6)
    )
    names, refused = found(model, dense_first=True, dense_last=True)
    assert names == ["2", "3"]  # the last layer has a forward of its own, and is still the last
    assert "first or last" in refused["0"]
    assert "OwnForward" in refused["4"]
    assert found(model, dense_last=True)[0] == ["0", "2", "3"]
    attention = nn.Sequential(nn.MultiheadAttention(8, 2, kdim=6, vdim=4), nn.Linear(8, 8))
    names, _ = found(attention, dense_first=True)
    assert names == ["0.out_proj", "1"]


def test_skip_patterns_name_modules_with_fnmatch():
    model = nn.ModuleDict({"block": mlp(6), "head": nn.Linear(6, 6)})
    assert found(model, skip=["head"])[0] == ["block.0", "block.2", "block.4"]
    names, refused = found(model, skip=["block.*", "head"])
    assert names == []
    assert set(refused.values()) == {"skipped by pattern"}
    assert found(model, skip=["*.[02]"])[0] == ["block.4", "head"]
    # As everywhere, wrapper prefixes in a pattern do not matter.
    assert found(model, skip=["module.head"])[0] == ["block.0", "block.2", "block.4"]


@pytest.mark.bad_input
def test_a_skip_pattern_must_match_a_module_with_a_weight():
    model = nn.ModuleDict({"block": mlp(6), "head": nn.Linear(6, 6)})
    with pytest.raises(ConfigError, match=r"'hed'.*head"):
        found(model, skip=["hed"])
    with pytest.raises(ConfigError, match=r"block\.\*"):
        found(model, skip=["head", "block"])


def test_a_shared_module_is_one_site_and_skipped_under_any_of_its_names():
    shared = nn.Linear(6, 6)
    model = nn.ModuleDict({"a": shared, "b": nn.Linear(6, 6), "c": shared})
    sites, _ = find_sites(model, Selection())
    assert [site.name for site in sites] == ["a", "b"]
    assert len(sites[0].owners) == 1
    names, refused = found(model, skip=["c"])
    assert names == ["b"]
    assert refused == {"a": "skipped by pattern"}


def test_tied_linear_layers_are_one_site_and_stay_tied():
    model = mlp(8)
    model[4].weight = model[0].weight
    weight = model[0].weight
    optimizer, handle = attached(model, rank_rtol=0.3)
    assert [row.name for row in handle.summary().rows] == ["0", "2"]
    for _ in range(3):
        train(model, optimizer, range(2))
        first, second = model[0], model[4]
        assert isinstance(first, LowRankLinear)
        assert first.core is second.core is weight
        assert first.u is second.u
        assert first.vh is second.vh
        assert first.bias is not second.bias
        for name in ("u", "core", "vh"):
            assert model.state_dict()[f"0.{name}"] is not None
    assert first.rank < 8


@pytest.mark.parametrize("embedding_first", [True, False])
def test_an_embedding_tied_to_a_linear_layer_keeps_both_dense(embedding_first):
    layers = {"embed": nn.Embedding(8, 8), "head": nn.Linear(8, 8)}
    order = ["embed", "head"] if embedding_first else ["head", "embed"]
    model = nn.ModuleDict({name: layers[name] for name in order} | {"other": nn.Linear(8, 8)})
    model["head"].weight = model["embed"].weight
    names, refused = found(model)
    assert names == ["other"]
    assert refused == {
        "head": f"tied to embed (Embedding): {TIED_HEAD}", "embed": f"tied to head: {TIED_HEAD}",
    }  # fmt: skip
    names, refused = found(model, also=["embedding"])
    assert names == ["other"]
    assert refused == {
        "head": f"tied to embed: {TIED_HEAD}", "embed": f"tied to head: {TIED_HEAD}",
    }  # fmt: skip


def test_a_tie_to_a_layer_that_stays_dense_is_named():
    model = mlp(8)
    model[4].weight = model[0].weight
    names, refused = found(model, dense_last=True)
    assert names == ["2"]
    assert "first or last" in refused["4"]
    assert refused["0"].startswith("tied to a weight that stays dense (first or last")
    transposed = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Conv2d(6, 6, 1)})
    transposed["b"].weight = nn.Parameter(torch.zeros(6, 6, 1, 1))
    transposed["a"].weight = transposed["b"].weight
    assert found(transposed)[1]["a"] == "tied to b, which reads it in another way"


def test_what_cannot_be_converted_is_named_with_its_reason():
    model = nn.ModuleDict(
        {
            "frozen": nn.Linear(6, 6),
            "foreign": nn.Linear(6, 6),
            "depthwise": nn.Conv2d(6, 6, 3, groups=6),
            "own": OwnForward(6, 6),
            "parametrized": parametrizations.orthogonal(nn.Linear(6, 6)),
            "lazy": nn.LazyLinear(6),
            "complex": nn.Linear(6, 6, dtype=torch.complex64),
            "meta": nn.Linear(6, 6, device="meta"),
            "bilinear": nn.Bilinear(6, 6, 6),
            "normed": nn.Linear(6, 6),
            "good": nn.Linear(6, 6),
        }
    )
    model["frozen"].weight.requires_grad_(False)
    weight = model["normed"].weight
    del model["normed"]._parameters["weight"]  # as weight_norm and pruning do
    model["normed"].weight_v = weight
    model["normed"].weight = weight * 1
    trained = {id(p) for name, child in model.items() for p in child.parameters()}
    trained -= {id(model["foreign"].weight)}
    names, refused = found(model, trained=trained)
    assert names == ["good"]
    for name, part in {
        "frozen": "requires no gradient",
        "foreign": "no parameter group",
        "depthwise": "depthwise",
        "own": "OwnForward has no low-rank form: a subclass of Linear",
        "parametrized": "computed from other parameters",
        "lazy": "LazyLinear has no weight yet",
        "complex": "complex64",
        "meta": "on the meta device",
        "bilinear": "Bilinear has no low-rank form",
        "normed": "computed from other parameters",
    }.items():
        assert part in refused.pop(name), name
    assert not refused


def test_refusals_appear_in_the_notes_of_the_summary():
    model = filled(nn.Sequential(*mlp(8), OwnForward(8, 8)))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p is not model[2].weight], lr=0.1)
    _, handle = attached(model, optimizer, dense_first=True)
    notes = handle.summary().notes
    assert any(note.startswith("0: first or last") for note in notes)
    assert any(note.startswith("2: its weight belongs to no parameter group") for note in notes)
    assert any(note.startswith("5: OwnForward") for note in notes)
    train(model, optimizer, range(4))
    assert type(model[2]) is nn.Linear
    assert type(model[4]) is LowRankLinear


@pytest.mark.bad_input
def test_a_model_without_an_eligible_layer_is_refused_with_reasons():
    model = filled(nn.Sequential(nn.LayerNorm(4), nn.Linear(40, 4)))
    with pytest.raises(ConfigError, match=r"1: too thin: 4 x 40, max_aspect=10 leaves it out"):
        attached(model)
    with pytest.raises(ConfigError, match="eligible layer"):
        attached(filled(nn.Sequential(nn.LayerNorm(4))))
