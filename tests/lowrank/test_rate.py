"""The learning rate after a cut: the measured points, its limits, what it refuses."""

from __future__ import annotations

import math

import pytest

from orthotrain import rate_after_cut
from orthotrain.errors import ConfigError

DENSE = {"peak": 6e-3, "dense_steps": 6000}


def rate(steps, lost=None, *, before=1.937, scale=1.0):
    losses = {} if lost is None else {"loss_before": before, "loss_after": before + lost}
    losses = {name: scale * value for name, value in losses.items()}
    return rate_after_cut(DENSE["peak"], steps=steps, dense_steps=6000, **losses)


@pytest.mark.parametrize(
    ("steps", "lost", "best"),
    # Parts of the peak on a grid of factors of two.
    [(300, 0.002, 1 / 16), (300, 0.056, 1 / 8), (1200, 0.056, 1 / 4), (2280, 0.6, 1 / 2)],
)
def test_it_is_near_the_measured_points(steps, lost, best):
    assert abs(math.log2(rate(steps, lost) / DENSE["peak"] / best)) <= 1.3


def test_the_formula_by_hand():
    # A sixteenth by the length; a quarter of the loss that counts as felt, so half by its root.
    assert rate(300, 0.0005 * 1.937) == pytest.approx(6e-3 / 16 / 2)
    assert rate(300, 0.002 * 1.937) == pytest.approx(6e-3 / 16)
    assert rate(4799) < rate(4800) == 6e-3


def test_a_cut_that_lost_nothing_takes_no_step_and_a_small_loss_small_ones():
    assert rate(300, 0.0) == rate(300, -0.01) == 0.0
    rates = [rate(300, lost) for lost in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)]
    assert rates == sorted(rates)
    assert rates[0] < 0.02 * rates[-1]


def test_it_never_exceeds_the_peak_and_does_not_depend_on_the_unit_of_the_loss():
    assert rate(60_000, 5.0) == rate(60_000) == DENSE["peak"]
    assert rate(300, 0.001) == pytest.approx(rate(300, 0.001, scale=math.log(2)))
    assert rate(300, 0.5) == rate(300)


def test_a_loss_of_zero_before_the_cut():
    assert rate(300, 0.1, before=0.0) == rate(300)
    assert rate(300, 0.0, before=0.0) == 0.0


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"peak": 0.0}, "needs peak"),
        ({"peak": float("inf")}, "needs peak"),
        ({"peak": "1e-3"}, "needs peak"),
        ({"steps": 0}, "steps to be a whole number"),
        ({"steps": 0.5}, "steps to be a whole number"),
        ({"dense_steps": 0}, "dense_steps to be a whole number"),
        ({"loss_before": 1.0}, "both losses"),
        ({"loss_after": 1.0}, "both losses"),
        ({"loss_before": 1.0, "loss_after": float("nan")}, "needs loss_after"),
    ],
)
def test_what_cannot_work_is_refused(given, message):
    settings = {"peak": 3e-3, "steps": 300, "dense_steps": 6000} | given
    peak = settings.pop("peak")
    with pytest.raises(ConfigError, match=message):
        rate_after_cut(peak, **settings)
