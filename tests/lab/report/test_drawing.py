"""Names at the ends of lines, and numbers on logarithmic axes."""

import numpy as np
import pytest

from orthotrain.lab.report.drawing import power_of_ten, spread_out


def test_names_are_pushed_apart_and_stay_beside_the_axes():
    places = spread_out([0.1, 0.11, 0.12, 0.9], 0.1)
    assert min(np.diff(places)) >= 0.1 - 1e-5
    assert places[3] == 0.9
    assert np.mean(places[:3]) == pytest.approx(0.11, abs=1e-4)
    top = spread_out([1.0, 1.0, 1.0], 0.1)
    assert max(top) <= 1.021
    assert min(spread_out([0.0, 0.0, 0.0], 0.1)) >= -0.021
    assert spread_out([], 0.1) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1e6, "1e6"), (2e5, "2e5"), (1000, "1000"), (0.05, "0.05"), (5e-3, "5e-3"), (1.0, "1")],
)
def test_powers_of_ten_are_short(value, shown):
    assert power_of_ten(value) == shown
