"""The counts behind the choice of a contraction, held against torch's own counter."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from orthotrain.layers import (
    LowRankConv2d,
    LowRankLinear,
    LowRankMultiheadAttention,
    _contraction,
    break_even_fraction,
    low_rank,
    low_rank_conv,
    stored_numbers,
)
from orthotrain.layers._cost import (
    cheapest_form,
    dense_cost,
    factored_cost,
    materialized_cost,
)
from orthotrain.layers._factors import factorize_
from orthotrain.lowrank.decide import factored_pays

FORMS = {"factored": factored_cost, "materialized": materialized_cost}
# rows, m, n, k: rows below and above either side, wide, tall and square, low and full rank.
SIZES = ((3, 8, 6, 2), (7, 8, 6, 6), (7, 6, 8, 3), (40, 8, 6, 6), (40, 6, 24, 5), (20, 12, 12, 12))


def multiply_adds(function) -> int:
    """What torch counts while ``function`` runs, its backward pass included."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


def steps(layer, x, *, training):
    """A forward pass, in training with a backward pass to the input and all parameters."""

    def step():
        with torch.set_grad_enabled(training):
            y = layer(x.detach().requires_grad_(training))
        if training:
            y.backward(torch.ones_like(y))

    return step


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(("rows", "m", "n", "k"), SIZES)
def test_linear_counts_are_what_torch_counts(rows, m, n, k, training, form, monkeypatch):
    monkeypatch.setattr(_contraction, "cheapest_form", lambda *_, **__: form)
    monkeypatch.setattr(low_rank, "plain_linear", lambda *_: None)
    layer = LowRankLinear(n, m, rank=k)
    counted = multiply_adds(steps(layer, torch.zeros(rows, n), training=training))
    assert counted == FORMS[form](rows, m, n, k, training=training)
    dense = multiply_adds(steps(nn.Linear(n, m), torch.zeros(rows, n), training=training))
    assert dense == dense_cost(rows, m, n, training=training)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    ("channels", "out", "size", "k"),
    [(2, 6, 5, 3), (2, 6, 5, 6), (3, 30, 2, 10), (4, 10, 3, 2)],
    ids=["many-positions", "full-rank", "few-positions", "between"],
)
def test_convolution_counts_are_what_torch_counts(
    channels, out, size, k, training, form, monkeypatch
):
    monkeypatch.setattr(_contraction, "cheapest_form", lambda *_, **__: form)
    monkeypatch.setattr(low_rank_conv, "plain_conv", lambda *_: None)
    layer = LowRankConv2d(channels, out, 3, padding=1, rank=k)
    x = torch.zeros(2, channels, size, size)
    sizes = 2 * size * size, out, 9 * channels
    counted = multiply_adds(steps(layer, x, training=training))
    assert counted == FORMS[form](*sizes, k, training=training)
    dense = nn.Conv2d(channels, out, 3, padding=1)
    assert multiply_adds(steps(dense, x, training=training)) == dense_cost(
        *sizes, training=training
    )


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("rows", "m", "n"), [(64, 64, 64), (16, 64, 256), (1024, 48, 16), (1, 9, 9)]
)
def test_the_choice_flips_once_where_the_counts_cross(rows, m, n, training):
    forms = [cheapest_form(rows, m, n, k, training=training) for k in range(1, min(m, n) + 1)]
    for k, form in enumerate(forms, start=1):
        costs = {f: cost(rows, m, n, k, training=training) for f, cost in FORMS.items()}
        assert costs[form] == min(costs.values())
    flips = sum(a != b for a, b in pairwise(forms))
    assert forms[0] == "factored"
    assert flips <= 1


def test_both_forms_are_chosen_somewhere():
    sizes = 2, 2, 2, 2
    assert factored_cost(*sizes, training=False) == materialized_cost(*sizes, training=False)
    assert cheapest_form(*sizes, training=False) == "factored"  # a tie keeps fewer numbers
    # Square and full rank: 6 k^2 a row factored, 3 k^2 dense, the weight built for 4 k^3 in all.
    assert cheapest_form(4096, 64, 64, 64) == "materialized"
    assert cheapest_form(4096, 64, 64, 16) == "factored"
    assert cheapest_form(4, 64, 64, 64) == "factored"  # not worth building for four rows


@pytest.mark.parametrize(
    ("aspect", "fraction"), [(1, 0.535), (3, 0.852), (4, 0.937)], ids=["1", "3", "4"]
)
def test_break_even_is_the_derived_number(aspect, fraction):
    m, n = 768 * aspect, 768
    assert round(break_even_fraction(m, n), 3) == fraction
    assert break_even_fraction(n, m) == break_even_fraction(m, n)


@pytest.mark.parametrize(("m", "n"), [(768, 768), (3072, 768), (96, 384), (512, 128)])
def test_break_even_is_where_unfolded_training_costs_what_dense_does(m, n):
    k = break_even_fraction(m, n) * min(m, n)
    assert 2 * k * (m + n) + 3 * k * k == pytest.approx(3 * m * n)
    for rows in (1, 8, 4096):  # folding only makes it cheaper
        below = int(k)
        assert factored_pays(m, n, below)
        assert factored_cost(rows, m, n, below) <= dense_cost(rows, m, n)
    assert not factored_pays(m, n, int(k) + 1)


def test_stored_numbers_are_the_numbers_stored():
    layer = LowRankLinear(11, 7, rank=3, bias=False)
    held = sum(t.numel() for t in layer.state_dict().values())
    assert stored_numbers(7, 11, 3) == held


# --- the counts decide --------------------------------------------------------------------------


def saved_shapes(function) -> set[tuple[int, ...]]:
    shapes = set()

    def pack(t):
        shapes.add(tuple(t.shape))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return shapes


@pytest.mark.parametrize(("rank", "form"), [(8, "factored"), (32, "materialized")])
def test_a_linear_layer_takes_the_form_with_the_lower_count(rank, form):
    rows, width = 500, 32
    assert cheapest_form(rows, width, width, rank) == form
    layer, x = LowRankLinear(width, width, rank=rank), torch.zeros(rows, width)
    saved = saved_shapes(lambda: layer(x.requires_grad_()))
    assert ((width, width) in saved) == (form == "materialized")
    assert ((rows, rank) in saved) == (form == "factored") or rank == width


@pytest.mark.parametrize(("rank", "form"), [(4, "factored"), (16, "materialized")])
def test_a_convolution_takes_the_form_with_the_lower_count(rank, form):
    assert cheapest_form(4 * 100, 16, 16, rank) == form
    layer, x = LowRankConv2d(16, 16, 1, rank=rank), torch.zeros(4, 16, 10, 10)
    saved = saved_shapes(lambda: layer(x.requires_grad_()))
    assert ((16, 16, 1, 1) in saved) == (form == "materialized")


def test_rows_are_all_leading_dimensions_and_positions_all_of_the_output(monkeypatch):
    asked = []

    def spy(rows, m, n, k, *, training):
        asked.append((rows, m, n, k, training))
        return "factored"

    monkeypatch.setattr(_contraction, "cheapest_form", spy)
    LowRankLinear(6, 4, rank=2)(torch.zeros(3, 5, 6))
    LowRankConv2d(6, 8, 3, stride=2, groups=2, rank=2)(torch.zeros(3, 6, 9, 7))
    attention = nn.MultiheadAttention(6, 2, batch_first=True)
    factorize_(attention, "in_proj_weight", LowRankMultiheadAttention, rank=2)
    attention(*(torch.zeros(3, 5, 6),) * 3)
    assert asked == [
        (15, 4, 6, 2, True),
        (3 * 4 * 3, 4, 27, 2, True),
        *[(15, 6, 6, 2, True)] * 3,
    ]
