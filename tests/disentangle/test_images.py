"""Frechet and kernel distance, precision, recall, density, coverage: closed forms and twins."""

import math

import pytest
import torch

from orthotrain.disentangle import (
    Fidelity,
    density_coverage,
    fidelity,
    frechet_distance,
    images,
    kernel_distance,
    precision_recall,
)
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from reference import generator_metrics as twins
from reference.matrices import generator, orthonormal
from reference.spd_root import spd, sqrt


def normal(n, d=3, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=generator(seed), dtype=torch.float64).to(dtype)


def exactly(n, mean, covariance, *, seed):
    """A sample whose mean and unbiased covariance are these to rounding."""
    x = normal(n, len(mean), seed=seed)
    x = x - x.mean(dim=0)
    x = x @ torch.linalg.inv(sqrt(torch.cov(x.T)))
    return x @ sqrt(covariance) + mean


# --- Frechet --------------------------------------------------------------------------------------


def test_of_two_gaussians_with_known_moments():
    """Of covariances that commute it is the distance of means and of standard deviations."""
    q = orthonormal(4, 4, seed=3)
    deviations = torch.tensor([[1.0, 2.0, 3.0, 0.5], [2.0, 1.0, 0.1, 0.5]], dtype=torch.float64)
    means = torch.tensor([[0.0, 1.0, 0.0, 2.0], [1.0, 0.0, 0.0, 2.0]], dtype=torch.float64)
    a, b = (
        exactly(50, mean, (q * s**2) @ q.mT, seed=i)
        for i, (mean, s) in enumerate(zip(means, deviations, strict=True))
    )
    expected = float((means[0] - means[1]).square().sum())
    expected += float((deviations[0] - deviations[1]).square().sum())
    assert float(frechet_distance(a, b)) == pytest.approx(expected, rel=1e-10)


def test_of_gaussians_whose_covariances_do_not_commute():
    """For 2x2 matrices ``tr (A B)^1/2 = sqrt(tr A B + 2 sqrt(det A B))``."""
    a, b = spd([3.0, 1.0], seed=1), spd([2.0, 0.2], seed=5)
    product = a @ b
    cross = float((product.trace() + 2 * product.det().sqrt()).sqrt())
    expected = float(a.trace() + b.trace()) - 2 * cross
    x, y = (exactly(30, torch.zeros(2).double(), c, seed=i) for i, c in enumerate((a, b)))
    assert float(frechet_distance(x, y)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("sizes", [(40, 40), (25, 60)], ids=str)
def test_agrees_with_the_twin(sizes):
    a, b = normal(sizes[0], 6, seed=1), normal(sizes[1], 6, seed=2) * 1.5 + 0.2
    assert float(frechet_distance(a, b)) == pytest.approx(twins.frechet_distance(a, b), rel=1e-9)


@pytest.mark.parametrize("shape", [(50, 8), (5, 40), (2, 3), (300, 64)], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_of_a_set_with_itself_is_zero_up_to_rounding(shape, scale):
    x = scale * (normal(*shape) + 3)
    size = float(torch.cov(x.T).trace()) + float(x.mean(dim=0).square().sum())
    assert 0 <= float(frechet_distance(x, x)) <= 1e-13 * size
    shuffled = x[torch.randperm(len(x), generator=generator(0))]
    assert float(frechet_distance(x, shuffled)) <= 1e-13 * size


def test_of_fewer_samples_than_features():
    """``tr (A B)^1/2`` is the nuclear norm of ``X Y^T`` of the centred samples, singular or not."""
    x, y = normal(6, 50, seed=1), normal(9, 50, seed=2) + 0.1
    a, b = ((z - z.mean(dim=0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    cross = float(torch.linalg.svdvals(a @ b.mT).sum())
    expected = float((x.mean(dim=0) - y.mean(dim=0)).square().sum())
    expected += float(a.square().sum() + b.square().sum()) - 2 * cross
    # The root of a null eigenvalue's rounding, 1e-16, is 1e-8: that is what singular ones cost.
    assert float(frechet_distance(x, y)) == pytest.approx(expected, rel=1e-6)


def test_is_symmetric_scales_and_does_not_see_turns():
    a, b = normal(40, 5, seed=1), normal(40, 5, seed=2) * 2 + 1
    q = orthonormal(5, 5, seed=4)
    expected = float(frechet_distance(a, b))
    assert float(frechet_distance(b, a)) == pytest.approx(expected)
    assert float(frechet_distance(3 * a, 3 * b)) == pytest.approx(9 * expected)
    assert float(frechet_distance(a @ q + 7, b @ q + 7)) == pytest.approx(expected)


def test_float32_is_computed_in_float64():
    a, b = normal(40, 5, seed=1).float(), normal(40, 5, seed=2).float() + 100
    found = frechet_distance(a, b)
    assert found.dtype == torch.float64
    assert float(found) == pytest.approx(float(frechet_distance(a.double(), b.double())), rel=1e-12)
    constant = torch.ones(5, 3)
    assert float(frechet_distance(constant, 2 * constant)) == pytest.approx(3)


# --- kernel distance ------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(12, 12), (2, 15)], ids=str)
def test_kernel_distance_agrees_with_the_twin(sizes):
    a, b = normal(sizes[0], 4, seed=1), normal(sizes[1], 4, seed=2) + 0.5
    assert float(kernel_distance(a, b)) == pytest.approx(twins.kernel_distance(a, b), rel=1e-10)


def test_kernel_distance_is_unbiased():
    """Zero on average for one distribution, at any number of samples; the biased one is not."""
    values = torch.stack(
        [
            kernel_distance(normal(8, 2, seed=2 * s), normal(8, 2, seed=2 * s + 1))
            for s in range(300)
        ]
    )
    error = float(values.std()) / 300**0.5
    assert abs(float(values.mean())) < 4 * error
    # The mean over all pairs, own ones included, would add (1/n) E[k(x,x) - k(x,y)], far more.
    x = normal(5000, 2, seed=1)
    own = float(((x.square().sum(dim=1) / 2 + 1) ** 3).mean())
    other = float((((x @ x.flip(0).mT) / 2 + 1) ** 3).mean())
    assert 2 * (own - other) / 8 > 20 * error


def test_kernel_distance_of_a_set_with_itself_is_the_mean_of_the_mixed_term_alone():
    """Own pairs are in the mixed term and in no other: less than zero by a known amount."""
    x = normal(20, 3)
    kernel = (x @ x.mT / 3 + 1) ** 3
    off = (kernel.sum() - kernel.trace()) / (20 * 19)
    expected = 2 * float(off - kernel.mean())
    assert expected < 0
    assert float(kernel_distance(x, x)) == pytest.approx(expected)


def test_blocks_of_the_kernel_matrix():
    a, b = normal(1500, 2, seed=1), normal(1100, 2, seed=2) + 0.1
    within = [((x @ x.mT / 2 + 1) ** 3).fill_diagonal_(0).sum() / (len(x) * (len(x) - 1))
              for x in (a, b)]  # fmt: skip
    expected = sum(within) - 2 * ((a @ b.mT / 2 + 1) ** 3).mean()
    assert float(kernel_distance(a, b)) == pytest.approx(float(expected), rel=1e-8)


# --- both with their floor ------------------------------------------------------------------------


def test_floor_is_real_against_real_at_the_same_number():
    real, fake = normal(1000, 4, seed=1), normal(800, 4, seed=2) + 1
    rows = {row.name: row for row in fidelity(real, fake, features="mine", seed=0)}
    assert list(rows) == ["FD", "KD", "precision", "recall", "density", "coverage"]
    assert {row.n for row in rows.values()} == {500}
    for name, sign in (("FD", 1), ("KD", 1), ("coverage", -1)):
        row = rows[name]
        assert sign * (row.value - row.floor) > 3 * max(row.spread, row.floor_spread)
    # The shift of the mean is |1|^2 = 4, to four standard errors of 800 and 500 samples; the
    # floor is what 500 samples of one Gaussian differ by, some d (d + 7) / 4 n.
    assert rows["FD"].value == pytest.approx(4, abs=4 * 4 * (1 / 800 + 1 / 500) ** 0.5)
    assert 0.005 < rows["FD"].floor < 0.08


def test_few_generated_samples_set_the_number():
    rows = fidelity(normal(100, 4), normal(20, 4, seed=1), features="mine", seed=0)
    assert {row.n for row in rows} == {20}


def test_fidelity_forms_each_table_of_distances_once(monkeypatch):
    formed = []

    class Counted(images._Distances):
        def __init__(self, a, b):
            formed.append((tuple(a[:, 0].tolist()), tuple(b[:, 0].tolist())))
            super().__init__(a, b)

    monkeypatch.setattr(images, "_Distances", Counted)
    fidelity(normal(40, 4), normal(20, 4, seed=1), features="mine", seed=0, splits=3)
    # Of each split: the two sets apart, real ones apart, and each of three sets among itself.
    assert len(formed) == len(set(formed)) == 15


def test_generated_samples_of_the_real_distribution_reach_the_floor():
    real, fake = normal(400, 3, seed=1), normal(200, 3, seed=2)
    for row in fidelity(real, fake, features="mine", seed=0, splits=10):
        assert abs(row.value - row.floor) < 4 * (row.spread**2 + row.floor_spread**2) ** 0.5


def test_same_seed_same_splits():
    real, fake = normal(60, 3, seed=1), normal(30, 3, seed=2)
    first, again, other = (fidelity(real, fake, features="m", seed=s) for s in (0, 0, 1))
    assert first == again
    assert first != other


def test_it_prints_with_features_number_and_floor():
    row = Fidelity("FD", "random 0", 2000, 12.345, 0.6, 1.25, 0.1)
    assert row.label == "FD[random 0, 2,000]"
    assert str(row) == "FD[random 0, 2,000] = 12.35 +- 0.6 (real against real 1.25 +- 0.1)"


# --- what bad input gets --------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize("function", [frechet_distance, kernel_distance])
def test_wrong_input(function):
    name = function.__name__
    for real, fake in (((10,), (10,)), ((10, 3), (10, 4)), ((10, 0), (10, 0)), ((1, 3), (10, 3))):
        with pytest.raises(ShapeError, match=f"{name} needs"):
            function(torch.zeros(real), torch.zeros(fake))
    with pytest.raises(ConfigError, match=r"torch\.complex64"):
        function(torch.zeros(10, 3, dtype=torch.complex64), torch.zeros(10, 3))
    bad = normal(10)
    bad[3, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="fake"):
        function(normal(10), bad)


@pytest.mark.bad_input
def test_too_few_for_a_floor():
    for real, fake in ((11, 50), (50, 5)):
        with pytest.raises(ShapeError, match=f"got {real} and {fake}"):
            fidelity(normal(real), normal(fake), features="mine", seed=0)
    with pytest.raises(ConfigError, match="splits"):
        fidelity(normal(50), normal(50), features="mine", seed=0, splits=1)


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


@pytest.mark.parametrize("move", [(1, 0), (1, 1e8), (1e-200, 0)], ids=str)
def test_ties_are_ties_wherever_they_lie(move):
    """On a lattice many pairs lie at the radius itself, where the rounding of a product decides."""
    scale, shift = move
    random = generator(4)
    for sizes in ((20, 25), (30, 8), (9, 9)):
        real, fake = (
            torch.randint(-2, 3, (n, 3), generator=random).double() * scale + shift for n in sizes
        )
        found, other = precision_recall(real, fake, k=2), density_coverage(real, fake, k=2)
        expected = twins.precision_recall(real, fake, k=2)
        assert (found.precision, found.recall) == pytest.approx(expected, abs=1e-12)
        expected = twins.density_coverage(real, fake, k=2)
        assert (other.density, other.coverage) == pytest.approx(expected, abs=1e-12)


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
def test_coverage_wrong_input(function, k):
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
