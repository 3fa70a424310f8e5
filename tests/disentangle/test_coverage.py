"""Precision, recall, density and coverage: by hand, against loops, and their expected values."""

import math

import pytest
import torch

from orthotrain.disentangle import density_coverage, precision_recall
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from reference import generator_metrics as twins
from reference.matrices import generator


def normal(n, d=3, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("sizes", [(12, 12), (9, 20)], ids=str)
def test_agree_with_the_twins(k, sizes):
    real, fake = normal(sizes[0], seed=1), 0.7 * normal(sizes[1], seed=2) + 0.3
    found = precision_recall(real, fake, k=k)
    assert (found.precision, found.recall) == pytest.approx(
        twins.precision_recall(real, fake, k=k), abs=1e-12
    )
    other = density_coverage(real, fake, k=k)
    assert (other.density, other.coverage) == pytest.approx(
        twins.density_coverage(real, fake, k=k), abs=1e-12
    )


def test_on_a_line_by_hand():
    """Real at 0, 1, 3, 7: radii 1, 1, 2, 4 for one neighbour; generated at 2, 2.5, 20, 21."""
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    fake = torch.tensor([[2.0], [2.5], [20.0], [21.0]])
    found = precision_recall(real, fake, k=1)
    # 2 touches the closed ball of 1 and lies in that of 3; 2.5 in that of 3. The radius of 2 and
    # of 2.5 is a half, which reaches the real 3 from 2.5.
    assert (found.precision, found.recall) == (0.5, 0.25)
    other = density_coverage(real, fake, k=1)
    # Open balls: of 3, with 2 and 2.5 in it. That of 7 ends at 3.
    assert (other.density, other.coverage) == (0.5, 0.25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("size", [8, 1100])
def test_of_a_set_with_itself_are_one(dtype, size):
    x = normal(size, 4, dtype=dtype)
    if dtype == torch.float16:
        x = x.unique(dim=0)
    found, other = precision_recall(x, x), density_coverage(x, x)
    assert (found.precision, found.recall) == (1, 1)
    assert other.coverage == 1
    # Equal distances in half precision put the k-th neighbour on the edge of more than one ball.
    assert other.density == pytest.approx(1, abs=0 if dtype == torch.float64 else 2e-2)


def test_order_turn_and_shift_do_not_matter():
    real, fake = normal(40, seed=1), normal(40, seed=2) + 0.5
    q = torch.linalg.qr(normal(3, seed=5)).Q
    order = torch.randperm(40, generator=generator(0))
    moved = (real[order] @ q * 4 + 1, fake @ q * 4 + 1)
    assert precision_recall(*moved) == precision_recall(real, fake)
    assert density_coverage(*moved) == density_coverage(real, fake)


def test_far_sets_have_none():
    real, fake = normal(30), normal(30, seed=1) + 100
    found, other = precision_recall(real, fake), density_coverage(real, fake)
    assert (found.precision, found.recall, other.density, other.coverage) == (0, 0, 0, 0)


def test_one_generated_point_has_precision_and_little_coverage():
    real = normal(200, 2)
    fake = real[:1] + 1e-6 * normal(50, 2, seed=3)
    found, other = precision_recall(real, fake), density_coverage(real, fake)
    assert found.precision == 1
    assert found.recall <= 1 / 200
    assert other.coverage < 0.1


def test_outliers_inflate_recall_but_not_coverage():
    """The fault that density and coverage were made for: a far point has a vast neighbourhood."""
    real = normal(100, 2)
    far = torch.tensor([[500.0, 0.0], [-500.0, 0.0]], dtype=torch.float64)
    fake = torch.cat([1e-3 * normal(4, 2, seed=3), far])
    assert precision_recall(real, fake).recall > 0.95
    assert density_coverage(real, fake).coverage < 0.3


@pytest.mark.parametrize(("n", "m", "k"), [(20, 20, 5), (15, 30, 3)])
def test_expected_values_of_equal_distributions(n, m, k):
    """Mean density 1, and the mean coverage of Naeem et al. (2020), lemma 2."""
    rows = [
        density_coverage(normal(n, 2, seed=2 * s), normal(m, 2, seed=2 * s + 1), k=k)
        for s in range(300)
    ]
    expected = 1 - math.prod((n - j) / (n + m - j) for j in range(1, k + 1))
    for values, mean in (
        ([r.density for r in rows], 1.0),
        ([r.coverage for r in rows], expected),
    ):
        values = torch.tensor(values)
        assert abs(float(values.mean()) - mean) < 4 * float(values.std()) / 300**0.5


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("function", "k"), [(precision_recall, 3), (density_coverage, 5)], ids=["pr", "dc"]
)
def test_wrong_input(function, k):
    name = function.__name__
    for real, fake in (((10,), (10,)), ((10, 3), (10, 4)), ((10, 0), (10, 0)), ((k, 3), (10, 3))):
        with pytest.raises(ShapeError, match=f"{name} needs"):
            function(torch.zeros(real), torch.zeros(fake))
    with pytest.raises(ShapeError, match=f"at least {k + 1} samples.*fake"):
        function(torch.zeros(10, 3), torch.zeros(k, 3))
    with pytest.raises(ConfigError, match=r"torch\.int64"):
        function(torch.zeros(10, 3), torch.zeros(10, 3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="k to be a whole number"):
        function(normal(10), normal(10), k=0)
    bad = normal(10)
    bad[3, 1] = torch.inf
    with pytest.raises(NonFiniteError, match=r"finite numbers.* in real"):
        function(bad, normal(10))
