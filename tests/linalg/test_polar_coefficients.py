"""The polynomials of Polar Express: the recipe makes the table, and what it promises holds."""

import math

import pytest
import torch

from orthotrain.linalg import _coefficients as coefficients
from reference.matrices import generator


def values(quintic: tuple[float, float, float], x: torch.Tensor) -> torch.Tensor:
    a, b, c = quintic
    return a * x + b * x**3 + c * x**5


def grid(low: float, high: float) -> torch.Tensor:
    return torch.linspace(0, 1, 20001, dtype=torch.float64) * (high - low) + low


def test_the_recipe_makes_the_table():
    made = coefficients.greedy_quintics(
        coefficients.POLAR_EXPRESS_LOWER, coefficients.POLAR_EXPRESS_STEPS
    )
    # Equations for narrow intervals amplify rounding: six digits on any machine, here to 1e-14.
    torch.testing.assert_close(
        torch.tensor(made, dtype=torch.float64),
        torch.tensor(coefficients.POLAR_EXPRESS, dtype=torch.float64),
        rtol=1e-6,
        atol=0,
    )


@pytest.mark.parametrize("low", [1e-6, 1e-3, 0.05, 0.5, 0.9])
def test_best_quintic_is_as_far_from_one_at_four_points_in_turn(low: float):
    quintic, distance = coefficients.best_quintic(low, 1.0)
    gap = values(quintic, grid(low, 1.0)) - 1
    assert float(gap.abs().max()) == pytest.approx(distance, rel=1e-6)
    # Chebyshev: four alternating extrema for three coefficients, and nothing is better.
    signs = [int(g) for g in torch.sign(gap[gap.abs() >= distance * (1 - 1e-6)])]
    turns = [s for i, s in enumerate(signs) if i == 0 or s != signs[i - 1]]
    assert turns == [-1, 1, -1, 1]


def test_no_other_quintic_is_nearer_to_one():
    quintic, distance = coefficients.best_quintic(0.05, 1.0)
    x = grid(0.05, 1.0)
    best = torch.tensor(quintic)
    for step in torch.randn(200, 3, generator=generator(0)):
        for size in (1e-3, 1e-1):
            other = (best * (1 + size * step)).tolist()
            assert float((values(other, x) - 1).abs().max()) > distance


@pytest.mark.parametrize("steps", [1, 3, 5, 8, 9, 12, 16, 22, 40])
def test_steps_bring_their_interval_near_to_one(steps: int):
    lower = coefficients.POLAR_EXPRESS_LOWER * 4.0 ** min(0, 8 - steps)
    lower = max(lower, 1e-12)
    x = torch.logspace(math.log10(lower), 0, 20001, dtype=torch.float64)
    for quintic in coefficients.polar_express(steps):
        x = values(quintic, x)
        # Nothing grows beyond two, where the next polynomial is not made for it.
        assert float(x.max()) < 2
    assert len(coefficients.polar_express(steps)) == steps
    if steps >= 8:
        assert float((x - 1).abs().max()) <= 1e-9
    else:
        before = torch.logspace(math.log10(lower), 0, 20001, dtype=torch.float64)
        assert float((x - 1).abs().max()) < float((before - 1).abs().max())


def test_a_step_leaves_nothing_of_its_interval_far_below_the_rest():
    low, high = coefficients.POLAR_EXPRESS_LOWER, 1.0
    for quintic in coefficients.POLAR_EXPRESS:
        above = values(quintic, grid(max(low, coefficients.CUSHION * high), high))
        assert float(above.min() / above.max()) > 0.09
        whole = values(quintic, grid(low, high))
        low, high = float(whole.min()), float(whole.max())


def test_the_limit_agrees_with_one_to_third_order():
    for x in (1e-2, 1e-3):
        gap = float(values(coefficients.LIMIT, torch.tensor(1 - x, dtype=torch.float64))) - 1
        assert gap == pytest.approx(-2.5 * x**3, rel=0.05)
