"""The schedule of OIALR without any module: spectra and history in, ranks out."""

from __future__ import annotations

import math

import pytest
import torch

from orthotrain.errors import ConfigError
from orthotrain.lowrank import Candidate, Energy, Relative, StoredBudget
from orthotrain.lowrank.decide import (
    decided_ranks,
    factored_pays,
    tail_length,
    updates_to_reach_all,
)
from orthotrain.lowrank.guard import LossGuard, loss_jumped
from orthotrain.lowrank.history import has_settled
from orthotrain.lowrank.rank_rule import Limits
from reference.matrices import generator

OPEN = Limits(max_drop=1.0, min_rank_fraction=0.0)
# Mean stability at epochs 5, 10, ..., 100 of dense ImageNet training, from the paper's figures.
VIT = [.867, .755, .778, .823, .855, .878, .897, .912, .925, .936, .946, .955, .963, .971, .977,
       .983, .987, .991, .994, .996]  # fmt: skip
RESNET = [.937, .889, .898, .917, .929, .939, .947, .954, .959, .965, .969, .973, .977, .981,
          .984, .986, .989, .991, .993, .995]  # fmt: skip


def candidate(*spectra, ceiling=None, m=None, n=None, **options):
    s = torch.tensor(spectra, dtype=torch.float64)
    rank = s.shape[-1]
    defaults = dict(cut_energy=(), may_stay_dense=False, within_reach=True)
    return Candidate(
        spectrum=s, ceiling=ceiling or rank, m=m or rank, n=n or rank, **defaults | options
    )


def decide(*candidates, rule=None, limits=OPEN, other_numbers=0):
    rule = rule or Relative(0.1)
    return decided_ranks(candidates, rule=rule, limits=limits, other_numbers=other_numbers)


# --- which layers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layers", "fraction", "expected"),
    [
        (20, 0.1, [1, 2, 3, 4]),  # int(0.1 * 19) = 1
        (41, 0.1, [4, 8, 12, 16]),
        (5, 0.1, [1, 2, 3, 4, 5, 5]),  # published code: all of ten layers or fewer at once
        (1, 0.5, [1, 1]),
        (7, 1.0, [7, 7, 7]),
    ],
)
def test_the_tail_grows_by_a_share_of_the_layers(layers, fraction, expected):
    updates = range(1, len(expected) + 1)
    assert [tail_length(u, layers=layers, layer_fraction=fraction) for u in updates] == expected
    first = updates_to_reach_all(layers=layers, layer_fraction=fraction)
    assert tail_length(first, layers=layers, layer_fraction=fraction) == layers
    if first > 1:
        assert tail_length(first - 1, layers=layers, layer_fraction=fraction) < layers


def test_a_layer_out_of_reach_keeps_its_rank():
    near = candidate([1.0, 0.5, 0.01])
    far = candidate([1.0, 0.5, 0.01], within_reach=False)
    planned = candidate([1.0, 0.5, 0.01], within_reach=False, ceiling=2, may_stay_dense=True)
    assert decide(near, far, planned) == [2, 3, 2]


# --- which rank -----------------------------------------------------------------------------------


def test_the_threshold_is_relative_to_the_largest_value_and_zero_keeps_all():
    spectrum = [10.0, 5.0, 1.0, 0.99, 0.0]
    assert decide(candidate(spectrum)) == [3]
    assert decide(candidate(spectrum), rule=Relative(0.0)) == [5]
    assert decide(candidate([0.0, 0.0])) == [1]


@pytest.mark.parametrize(
    ("ceiling", "max_drop", "expected"),
    [(10, 0.5, 5), (9, 0.5, 5), (10, 0.7, 3), (10, 0.1, 9), (1, 0.5, 1), (100, 0.29, 71)],
)
def test_one_update_takes_at_most_a_share_of_the_rank(ceiling, max_drop, expected):
    spectrum = [1.0] + [0.0] * (ceiling - 1)
    limits = Limits(max_drop=max_drop, min_rank_fraction=0.0)
    assert decide(candidate(spectrum), limits=limits) == [expected]


def test_the_floor_is_a_share_of_the_full_rank_and_at_least_one():
    limits = Limits(max_drop=1.0, min_rank_fraction=0.1)
    assert limits.floor(64) == 6
    assert limits.floor(5) == 1
    spectrum = [1.0] + [0.0] * 9
    assert decide(candidate(spectrum, m=64, n=80), limits=limits) == [6]
    # A rank that is already below the floor is not raised.
    assert decide(candidate([1.0, 0.0, 0.0], m=64, n=80), limits=limits) == [3]


def test_a_convolution_rank_is_rounded_up_to_a_multiple_but_not_beyond_what_it_has():
    def ranks(kept, ceiling):
        spectrum = [1.0] * kept + [0.0] * (ceiling - kept)
        return decide(candidate(spectrum, multiple=16))

    assert [ranks(kept, 64)[0] for kept in (1, 16, 17, 48, 49)] == [16, 16, 32, 48, 64]
    assert ranks(20, 27) == [27]
    assert ranks(10, 27) == [16]
    assert ranks(3, 8) == [8]


def test_blocks_share_the_largest_rank_that_one_of_them_needs():
    assert decide(candidate([1.0, 0.01, 0.0], [1.0, 0.5, 0.0])) == [2]
    # One block lies far below the other: the threshold is relative to its own largest value.
    assert decide(candidate([100.0, 0.0, 0.0], [1e-3, 1e-3, 1e-3])) == [3]
    rule = Energy(0.9)
    assert decide(candidate([100.0, 0.0, 0.0], [1e-3, 1e-3, 1e-5]), rule=rule) == [2]


def test_the_energy_rule_does_not_compound():
    rule = Energy(0.9)
    s = torch.logspace(0, -1, 32, dtype=torch.float64)
    first = decide(candidate(s.tolist()), rule=rule)[0]
    lost = s[first:].square().sum().item()
    assert first < 32
    again = candidate(s[:first].tolist(), cut_energy=[lost], m=32, n=32)
    assert decide(again, rule=rule) == [first]
    # Forgetting what was cut would cut on and on.
    forgetful = candidate(s[:first].tolist(), m=32, n=32)
    assert decide(forgetful, rule=rule)[0] < first


def test_energy_cut_from_one_block_is_not_charged_to_another():
    rule = Energy(0.75)
    worn, whole = [1.0, 0.3, 0.2], [1.0, 1.0, 0.1]
    assert decide(candidate(worn, whole, cut_energy=[0.4, 0.0]), rule=rule) == [3]
    assert decide(candidate(worn, whole, cut_energy=[0.0, 0.0]), rule=rule) == [2]
    assert decide(candidate(worn, whole, cut_energy=[0.0, 0.01]), rule=rule) == [2]


# --- a budget for the whole model -----------------------------------------------------------------


def stored(ranks, sizes):
    return sum(r * (m + n + r) for r, (m, n) in zip(ranks, sizes, strict=True))


def test_a_budget_is_met_where_least_energy_is_lost():
    steep = candidate((torch.arange(20, 0, -1.0) ** 3).tolist(), m=20, n=20, may_stay_dense=True)
    flat = candidate([1.0] * 20, m=20, n=20, may_stay_dense=True)
    rule = StoredBudget(0.75)
    ranks = decide(steep, flat, rule=rule)
    assert ranks[0] < ranks[1]
    assert ranks[1] == 20  # dense numbers, not 20 * (20 + 20 + 20)
    assert stored(ranks[:1], [(20, 20)]) + 400 <= 0.75 * 800


def test_a_budget_without_dense_layers_counts_factors_at_every_rank():
    layers = [candidate([1.0] * 20, m=20, n=20, may_stay_dense=False) for _ in range(2)]
    ranks = decide(*layers, rule=StoredBudget(1.0))
    assert stored(ranks, [(20, 20)] * 2) <= 800
    assert max(ranks) < 20


def test_a_budget_counts_the_rest_of_the_model():
    layer = candidate((torch.arange(20, 0, -1.0) ** 3).tolist(), m=20, n=20, may_stay_dense=True)
    rule = StoredBudget(0.75)
    alone = decide(layer, rule=rule)[0]
    beside = decide(layer, rule=rule, other_numbers=200)[0]
    assert beside < alone
    assert stored([beside], [(20, 20)]) + 200 <= 0.75 * 600


def test_a_budget_counts_convolutions_at_the_ranks_they_are_rounded_up_to():
    steep, flat = [10.0 * 0.8**i for i in range(40)], [1.0] * 40
    options = dict(m=40, n=360, may_stay_dense=True, multiple=16)
    rule = StoredBudget(0.6)
    ranks = decide(candidate(steep, **options), candidate(flat, **options), rule=rule)
    assert ranks == [16, 16]  # 17 of one would fit, but 32 do not
    assert stored(ranks, [(40, 360)] * 2) <= 0.6 * 2 * 40 * 360


@pytest.mark.bad_input
def test_a_budget_out_of_reach_says_what_the_smallest_ranks_take():
    layer = candidate([1.0] * 20, m=20, n=20, may_stay_dense=True)
    with pytest.raises(ConfigError, match=r"stored_budget=0\.05 .*smallest ranks they hold 41"):
        decide(layer, rule=StoredBudget(0.05))


@pytest.mark.parametrize(("m", "n", "share"), [(768, 768, 0.535), (3072, 768, 0.937)])
def test_a_factored_layer_pays_below_the_break_even_rank(m, n, share):
    highest = max(rank for rank in range(1, min(m, n) + 1) if factored_pays(m, n, rank))
    assert highest == math.floor(share * min(m, n)) or highest / min(m, n) == pytest.approx(
        share, abs=1e-3
    )


# --- has a basis settled --------------------------------------------------------------------------


@pytest.mark.parametrize(("curve", "epoch"), [(VIT, 60), (RESNET, 35)])
def test_published_curves_settle_after_their_rise(curve, epoch):
    settled = [has_settled(curve[:count]) for count in range(len(curve) + 1)]
    assert settled.index(True) * 5 == epoch
    assert all(settled[settled.index(True) :])


def test_too_few_points_or_a_falling_curve_are_not_settled():
    assert not has_settled([])
    assert not has_settled([0.99, 0.99])
    assert not has_settled([0.99, 0.985, 0.98])
    assert not has_settled([0.9, 0.93, 0.95])
    assert has_settled([0.99, 0.99, 0.99])


# --- did a cut hurt -------------------------------------------------------------------------------


def noise(count, *, seed, mean=1.0, spread=0.1):
    return (mean + spread * torch.randn(count, generator=generator(seed))).tolist()


def test_a_jump_beyond_the_noise_is_seen():
    before = noise(10, seed=1)
    assert loss_jumped(before, noise(10, seed=2, mean=1.5))
    assert not loss_jumped(before, noise(10, seed=2, mean=0.5))
    assert loss_jumped(before, [1.0, math.nan])
    assert loss_jumped([], [math.inf])


def test_without_a_jump_there_is_an_alarm_about_once_in_a_thousand_cuts():
    alarms = {10: 0, 5: 0}
    for count in alarms:
        for seed in range(2000):
            losses = noise(2 * count, seed=seed)
            alarms[count] += loss_jumped(losses[:count], losses[count:])
    assert alarms[10] <= 8  # 2 expected
    assert alarms[5] <= 28  # 13 expected


def test_few_losses_give_no_verdict():
    assert not loss_jumped([1.0, 1.1, 0.9, 1.0], [9.0] * 10)
    assert not loss_jumped(noise(10, seed=1), [9.0] * 4)
    assert loss_jumped(noise(10, seed=1), [9.0] * 5)


def test_the_verdict_comes_with_the_tenth_loss_or_when_time_is_up():
    guard = LossGuard()
    for loss in noise(10, seed=1):
        guard.observe(loss)
    guard.cut_happened(["a"])
    for _ in range(9):
        guard.observe(9.0)
        assert guard.verdict() == []
    guard.observe(9.0)
    assert guard.verdict() == ["a"]
    assert guard.verdict() == []
    guard.cut_happened(["b"])
    for _ in range(5):
        guard.observe(math.inf)
    assert guard.verdict() == []
    assert guard.verdict(final=True) == ["b"]


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize(
    "settings", [{"max_drop": 0.0}, {"max_drop": 1.5}, {"min_rank_fraction": 1.0}]
)
def test_limits_out_of_range_are_refused_by_name(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        Limits(**settings)
