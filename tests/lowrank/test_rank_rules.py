"""Rank rules as objects: three of them, their short forms and texts, and one more."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
import torch
from torch import nn

import orthotrain
from lowrank.nets import as_published
from orthotrain import AdaptiveLowRank, Energy, Relative, StoredBudget, attach, compress
from orthotrain.errors import ConfigError
from orthotrain.lowrank import RANK_RULES, Candidate, LayerRule, RankRule, read_rule
from reference.matrices import generator

SCHEDULE = {"delay_steps": 1, "every_steps": 1}
RULES = {"rank_rtol": Relative(0.3), "energy": Energy(0.9), "stored_budget": StoredBudget(0.5)}
VALUES = {"rank_rtol": 0.3, "energy": 0.9, "stored_budget": 0.5}
NAMED = r"rank=Relative\(\.\.\.\), rank=Energy\(\.\.\.\), rank=StoredBudget\(\.\.\.\), or"


def by_method(**rule):
    return as_published(**SCHEDULE, **rule)


def by_compress(**rule):
    return compress(net(), **rule)


def net():
    model = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh())
    random = generator(0)
    with torch.no_grad():
        for layer in model[::2]:
            decay = torch.logspace(0, -2, 24)
            u, _, vh = torch.linalg.svd(torch.randn(layer.weight.shape, generator=random))
            layer.weight.copy_(u[:, :24] * decay @ vh[:24])
    return model


def trained_ranks(**rule):
    """Ranks after one update, which reaches the last layer; ``None`` where a layer is dense."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    free = {"layer_fraction": 0.5, "max_drop": 1.0, "dense_last": False}
    handle = attach(model, optimizer, as_published(**SCHEDULE, **free, **rule))
    model(torch.randn(4, 24, generator=generator(1))).sum().backward()
    optimizer.step()
    return [row.rank for row in handle.summary().rows]


def compressed_ranks(**rule):
    return [getattr(layer, "rank", None) for layer in compress(net(), **rule)[::2]]


# --- one rule, three ways to say it ---------------------------------------------------------------


@pytest.mark.parametrize("ranks", [trained_ranks, compressed_ranks])
@pytest.mark.parametrize("name", RULES)
def test_the_short_form_the_object_and_the_text_are_the_same_rule(name, ranks):
    found = ranks(rank=RULES[name])
    assert any(rank is not None and rank < 24 for rank in found)
    assert ranks(**{name: VALUES[name]}) == found
    assert ranks(rank=read_rule(f"{name}={VALUES[name]}")) == found


def test_every_row_of_the_table_is_a_rule_that_a_text_names():
    assert set(RANK_RULES) >= set(RULES)
    for name, rule in RULES.items():
        assert read_rule(f" {name} = {VALUES[name]}") == rule == RANK_RULES[name](VALUES[name])


def test_the_default_is_the_published_threshold():
    assert by_method().rank == Relative(0.1)
    assert by_method() == by_method(rank_rtol=0.1) == by_method(rank=Relative(0.1))
    assert by_method(rank_rtol=None, energy=0.9) == by_method(rank=Energy(0.9))
    assert by_method() != by_method(rank_rtol=0.2)


def test_settings_stay_frozen_comparable_picklable_and_replaceable():
    method = by_method(energy=0.9, skip=["a"])
    assert pickle.loads(pickle.dumps(method)) == method
    assert hash(method) == hash(by_method(rank=Energy(0.9), skip=("a",)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.rank = Energy(0.5)
    later = dataclasses.replace(method, delay_steps=7)
    assert (later.delay_steps, later.rank) == (7, Energy(0.9))
    assert dataclasses.replace(method, rank=StoredBudget(0.5)) == by_method(
        stored_budget=0.5, skip=("a",)
    )
    bare = AdaptiveLowRank()
    assert dataclasses.replace(bare, energy=0.9) == AdaptiveLowRank(energy=0.9)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"rank_rtol": 0.1, "energy": 0.9}, "rank_rtol=0.1, energy=0.9"),
        ({"energy": 0.9, "stored_budget": 0.5}, "energy=0.9, stored_budget=0.5"),
        ({"rank": Energy(0.9), "rank_rtol": 0.5}, "rank=Energy(share=0.9), rank_rtol=0.5"),
        ({"rank": Relative(0.1), "energy": 0.9}, "rank=Relative(rtol=0.1), energy=0.9"),
        ({"rank": 0.1}, "rank=0.1"),
        ({"rank": "energy=0.9"}, "rank='energy=0.9'"),
        ({"rank": Energy}, "rank=<class"),
        ({"rank": None}, "got none"),
    ],
    ids=str,
)
def test_two_rules_or_no_rule_are_refused_alike_by_training_and_compress(given, named):
    messages = []
    for call in (by_method, by_compress):
        with pytest.raises(ConfigError, match=NAMED) as caught:
            call(**given)
        messages.append(str(caught.value))
        assert named in messages[-1]
    assert messages[0] == messages[1]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [
        (Relative, "rank_rtol", 1.0), (Relative, "rank_rtol", -0.1),
        (Relative, "rank_rtol", math.nan), (Energy, "energy", 0.0), (Energy, "energy", 1.1),
        (StoredBudget, "stored_budget", 0.0), (StoredBudget, "stored_budget", 2.0),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_by_name_in_every_form(rule, name, value):
    forms = [
        lambda: rule(value), lambda: by_method(**{name: value}),
        lambda: by_compress(**{name: value}), lambda: read_rule(f"{name}={value}"),
    ]  # fmt: skip
    for form in forms:
        with pytest.raises(
            ConfigError, match=rf"to be a (share in .*|number|number or None), got {value}"
        ):
            form()


@pytest.mark.bad_input
@pytest.mark.parametrize("text", ["", "energy", "energy:0.9", "energy=much", "rank=3", "0.9"])
def test_a_text_that_names_no_rule_says_which_do(text):
    with pytest.raises(ConfigError, match=r"rank_rtol=NUMBER, energy=NUMBER, stored_budget=NUMB"):
        read_rule(text)


# --- a rule of one's own --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Half(LayerRule):
    """Half of the directions, or another share."""

    share: float = 0.5

    def rank(self, layer: Candidate) -> int:
        return int(self.share * layer.spectrum.shape[-1])


@dataclasses.dataclass(frozen=True)
class Alike(RankRule):
    """The same rank everywhere, from all layers together; what it is asked is kept."""

    asked: list

    def ranks(self, layers, *, min_ranks, other_numbers):
        self.asked.append((len(layers), list(min_ranks), other_numbers))
        return [min(layer.ceiling for layer in layers) // 3 for layer in layers]


def test_a_rule_is_one_class_and_a_row_gives_it_a_text(monkeypatch):
    assert trained_ranks(rank=Half()) == [None, 12]
    assert compressed_ranks(rank=Half(), only_if_cheaper=False) == [12, 12]
    monkeypatch.setitem(RANK_RULES, "half", Half)
    assert read_rule("half=.25") == Half(0.25)
    assert compressed_ranks(rank=read_rule("half=.25")) == [6, 6]
    assert by_method(rank=Half()) == by_method(rank=Half())


def test_a_rule_that_sees_all_layers_is_asked_for_all_with_the_rest_of_the_model():
    asked = []
    assert trained_ranks(rank=Alike(asked)) == [None, 8]
    assert asked == [(2, [1, 1], 32 + 24)]  # two biases beside the two weights


def test_guards_hold_whatever_a_rule_says():
    assert trained_ranks(rank=Half(0.0)) == [None, 1]
    assert trained_ranks(rank=Half(9.0), only_if_cheaper=False) == [24, 24]
    assert compressed_ranks(rank=Half(0.0)) == [1, 1]


def test_the_three_rules_are_public_names():
    for name in ("Relative", "Energy", "StoredBudget"):
        assert getattr(orthotrain, name) is getattr(orthotrain.lowrank, name)
        assert name in orthotrain.__all__
