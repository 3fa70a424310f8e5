"""The polar factor: identities, routes, null directions and its derivative."""

import warnings

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from linalg.spies import counted_svds
from orthotrain.errors import ConfigError, NumericalWarning
from orthotrain.linalg import polar_factor
from reference import linalg as twins
from reference.matrices import from_spectrum, generator, log_spectrum, orthonormal

modest = hypothesis.settings(deadline=None, max_examples=40)
EPS = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps

# Those that bring every direction of full rank to one; "polar_express" is in test_polar_methods.
METHODS = ("auto", "svd", "gram", "qdwh", "newton_schulz")


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    """Float64 matrices of full rank with a chosen spectrum, condition up to 1e4."""
    m, n = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    condition = 10.0 ** draw(st.integers(0, 4))
    return from_spectrum(log_spectrum(min(m, n), condition), m, n, seed=draw(st.integers(0, 99)))


def gap(q: torch.Tensor) -> float:
    """Largest entry of ``q^T q - 1`` on the short side, in float64."""
    q = q.double() if q.shape[-2] >= q.shape[-1] else q.double().mT
    return float((q.mT @ q - torch.eye(q.shape[-1], dtype=torch.float64)).abs().max())


@modest
@hypothesis.given(matrices(), st.sampled_from(METHODS))
def test_drawn_matrices_have_the_factor_of_the_twin(a: torch.Tensor, method: str):
    q = polar_factor(a, method=method)
    assert gap(q) <= 32 * EPS
    # Forward error: condition * eps, measured up to 3 times that.
    budget = 32 * EPS * float(torch.linalg.cond(a))
    assert (q - twins.polar_factor(a)).abs().max() <= budget


@hypothesis.settings(deadline=None, max_examples=15)
@hypothesis.given(matrices(), st.integers(-300, 300))
def test_scale_changes_nothing(a: torch.Tensor, exponent: int):
    hypothesis.assume(a.abs().max() * 2.0**exponent < 1e300)
    for method in METHODS:
        torch.testing.assert_close(
            polar_factor(a * 2.0**exponent, method=method),
            polar_factor(a, method=method),
            atol=0,
            rtol=0,
        )


@modest
@hypothesis.given(matrices(), st.sampled_from(METHODS))
def test_transpose_is_taken_along(a: torch.Tensor, method: str):
    turned = polar_factor(a.mT, method=method).mT
    assert torch.equal(turned, polar_factor(a, method=method)) or a.shape[0] == a.shape[1]
    budget = 32 * EPS * float(torch.linalg.cond(a))
    assert (turned - polar_factor(a, method=method)).abs().max() <= budget


@pytest.mark.parametrize("condition", [1.0, 10.0, 1e3])
def test_agrees_with_newtons_iteration(condition: float):
    a = from_spectrum(log_spectrum(8, condition), 8, 8)
    expected = twins.polar_factor_by_newton(a)
    for method in METHODS:
        assert (polar_factor(a, method=method) - expected).abs().max() <= 32 * condition * EPS


# The last two are widened in parts.
@pytest.mark.parametrize(
    "shape", [(64, 27), (96, 96), (48, 300), (6, 32_768), (30_011, 5)], ids=str
)
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6])
def test_float32_result_is_right_to_its_rounding(shape: tuple[int, int], condition: float):
    a = from_spectrum(log_spectrum(min(shape), condition), *shape).float()
    q = polar_factor(a)
    assert q.dtype == torch.float32
    # One rounding of float32 over columns of unit length, and at most 1.4 eps32 of the Gram route.
    assert gap(q) <= 3 * EPS32
    assert (q.double() - twins.polar_factor(a)).abs().max() <= 2 * EPS32


def test_entries_of_a_batch_that_is_widened_in_parts_are_those_alone():
    shape = (24_000, 6)
    spectra = [log_spectrum(6, condition) for condition in (10.0, 1e5, 1e9)]
    alone = [from_spectrum(values, *shape).float() for values in spectra] + [torch.zeros(shape)] * 2
    half = from_spectrum(log_spectrum(3, 10.0), shape[0], 3).float()
    alone[3] = torch.cat([half, torch.zeros_like(half)], dim=1)
    together = polar_factor(torch.stack(alone))
    for entry, q in zip(alone, together, strict=True):
        torch.testing.assert_close(q, polar_factor(entry), atol=2 * EPS32, rtol=0)
    assert (together[3, :, :3].double() - twins.polar_factor(half)).abs().max() <= 2 * EPS32
    assert not together[3, :, 3:].any()
    assert not together[4].any()


def test_asking_for_a_derivative_does_not_change_the_value():
    a = from_spectrum(log_spectrum(6, 100.0), 24_000, 6).float()
    q = polar_factor(a.clone().requires_grad_())
    torch.testing.assert_close(polar_factor(a), q.detach(), atol=EPS32, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "condition", "route"),
    [
        (torch.float32, 1e2, "gram"),
        (torch.float32, 1e5, "gram"),
        (torch.float32, 1e8, "gram"),
        (torch.float64, 1e2, "svd"),
    ],
    ids=str,
)
def test_auto_takes_the_route_its_docstring_names(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, condition: float, route: str
):
    taken = counted_svds(monkeypatch)
    polar_factor(from_spectrum(log_spectrum(8, condition), 12, 8).to(dtype), rtol=0.0)
    assert bool(taken) == (route == "svd")


def repeated_columns(m: int, n: int) -> torch.Tensor:
    """A matrix of exactly half the rank: no Gram matrix has a direction for the rest."""
    half = from_spectrum(log_spectrum(n // 2, 10.0), m, n // 2).float()
    return torch.cat([half, half], dim=1)


def test_auto_sends_only_the_entries_that_need_it_to_the_svd(monkeypatch: pytest.MonkeyPatch):
    taken = counted_svds(monkeypatch)
    deficient = repeated_columns(9, 6)
    a = torch.stack(
        [from_spectrum(log_spectrum(6, c), 9, 6).float() for c in (1e1, 1e7, 1e5, 1e2, 1e3, 1e8)]
    )
    a = torch.stack([a[0], deficient, *a[1:5], deficient, a[5]]).reshape(2, 4, 9, 6)
    q = polar_factor(a, rtol=0.0)
    assert taken == [(2, 9, 6)]
    for i in range(2):
        for j in range(4):
            if a[i, j].equal(deficient):
                assert gap(q[i, j]) <= 3 * EPS32
            else:
                exact = twins.polar_factor(a[i, j], rtol=0)
                assert (q[i, j].double() - exact).abs().max() <= 2 * EPS32


def test_gram_route_warns_where_it_cannot_be_used():
    good, bad = (from_spectrum(log_spectrum(4, c), 6, 4) for c in (10.0, 1e9))
    with pytest.warns(NumericalWarning, match="1 of 2 matrices are too ill-conditioned"):
        q = polar_factor(torch.stack([good, bad]), method="gram")
    assert gap(q[1]) <= 32 * EPS
    assert gap(q[0]) <= 32 * EPS


def test_gram_route_that_does_not_converge_takes_the_svd(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    a = from_spectrum([3.0, 2.0, 1.0], 5, 3).float()
    with pytest.warns(NumericalWarning, match="eigh of the Gram matrix did not converge"):
        q = polar_factor(a)
    assert (q.double() - twins.polar_factor(a)).abs().max() <= 2 * EPS32


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 3, 3)], ids=str)
def test_zero_stays_zero(method: str, dtype: torch.dtype, shape: tuple[int, ...]):
    zeros = torch.zeros(shape, dtype=dtype)
    assert torch.equal(polar_factor(zeros, method=method), zeros)
    # Not even with every direction asked for does a zero matrix have one.
    assert torch.equal(polar_factor(zeros, method=method, rtol=0.0), zeros)


@pytest.mark.parametrize("method", ["auto", "svd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(40, 30), (30, 40), (30, 30)], ids=str)
def test_null_directions_of_a_product_stay_zero(
    method: str, dtype: torch.dtype, shape: tuple[int, int]
):
    m, n = shape
    left = torch.randn(m, 5, generator=generator(0), dtype=dtype)
    right = torch.randn(5, n, generator=generator(1), dtype=dtype)
    a = left @ right
    q = polar_factor(a, method=method).double()
    s = torch.linalg.svdvals(q)
    # Rounding of the product leaves directions of about 1 eps: noise, not signal.
    assert (s[:5] - 1).abs().max() <= 32 * torch.finfo(dtype).eps
    assert s[5:].max() <= 32 * torch.finfo(dtype).eps
    assert (q - twins.polar_factor(a, rtol=1e-4)).abs().max() <= 32 * torch.finfo(dtype).eps


def test_rtol_decides_what_is_null():
    a = from_spectrum([1.0, 1e-2, 1e-4], 5, 3, seed=4)
    for dtype in (torch.float32, torch.float64):
        for rtol, rank in ((0.0, 3), (1e-5, 3), (1e-3, 2), (0.5, 1)):
            for method in ("auto", "svd"):
                q = polar_factor(a.to(dtype), method=method, rtol=rtol)
                assert round(float(q.square().sum()), 3) == rank


def test_half_precision_is_taken_at_face_value():
    # The smallest direction, .005, is below the eps of bfloat16, .0078, and yet it counts.
    a = torch.diag(torch.tensor([1.0, 0.5, 0.005], dtype=torch.bfloat16))
    assert torch.equal(polar_factor(a), torch.eye(3, dtype=torch.bfloat16))


@pytest.mark.parametrize("value", [1.7e308, 1e300, 1e-300, 5e-324])
def test_extreme_float64_numbers_are_no_harm(value: float):
    a = torch.tensor([[0.0, -value], [value, 0.0], [0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, -1.0], [1.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    for method in METHODS:
        torch.testing.assert_close(polar_factor(a, method=method), expected, atol=4 * EPS, rtol=0)


@pytest.mark.bad_input
def test_unknown_method_is_refused():
    names = "auto, svd, gram, qdwh, newton_schulz, polar_express"
    with pytest.raises(ConfigError, match=f"one of {names}, got 'qr'"):
        polar_factor(torch.eye(2), method="qr")


@pytest.mark.parametrize("rtol", [-0.1, 1.0, float("nan")])
def test_rtol_outside_its_range_is_refused(rtol: float):
    with pytest.raises(
        ConfigError,
        match=r"polar_factor needs rtol to be a (share in \[0, 1\)|number or None, got nan)",
    ):
        polar_factor(torch.eye(2), rtol=rtol)


SPECTRA = [
    pytest.param([3.0, 2.0, 1.0], id="simple"),
    pytest.param([2.0, 2.0, 2.0], id="equal"),
    pytest.param([3.0, 1.0, 1.0], id="a pair"),
    pytest.param([1.0, 0.1, 0.1], id="a small pair"),
]


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(3, 3), (4, 3), (3, 4)], ids=str)
def test_derivative_where_singular_values_repeat(
    spectrum: list[float], method: str, shape: tuple[int, int]
):
    a = from_spectrum(spectrum, *shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: polar_factor(x, method=method), (a,))


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4)], ids=str)
@pytest.mark.parametrize("values", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)], ids=str)
def test_second_derivative_of_full_rank(values: tuple[float, ...], shape: tuple[int, int]):
    a = from_spectrum(values[: min(shape)], *shape).requires_grad_()
    assert torch.autograd.gradgradcheck(polar_factor, (a,))


@pytest.mark.parametrize("method", METHODS)
def test_second_derivative_is_the_same_by_every_method(method: str):
    upstream = torch.randn(5, 3, generator=generator(1), dtype=torch.float64)
    found = []
    for each in ("svd", method):
        a = from_spectrum([3.0, 1.0, 0.2], 5, 3).requires_grad_()
        loss = (polar_factor(a, method=each) * upstream).sum()
        (grad,) = torch.autograd.grad(loss, a, create_graph=True)
        grad.square().sum().backward()
        found.append(a.grad)
    # Condition 15, in the third power; measured 30 eps of the largest entry.
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e4 * EPS * found[0].abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_derivative_of_lower_precision_is_finite_at_equal_singular_values(dtype: torch.dtype):
    a = torch.eye(4, 3, dtype=dtype).requires_grad_()
    (polar_factor(a) * torch.arange(12, dtype=dtype).reshape(4, 3)).sum().backward()
    # At the identity the derivative is the skew part above, and the rows below go through.
    upstream = torch.arange(12, dtype=dtype).reshape(4, 3)
    expected = torch.cat([(upstream[:3] - upstream[:3].mT) / 2, upstream[3:]])
    torch.testing.assert_close(a.grad, expected)


@pytest.mark.parametrize("method", ["auto", "svd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(5, 4), (4, 5), (4, 4)], ids=str)
def test_derivative_at_null_directions_is_that_among_equal_ranks(
    method: str, dtype: torch.dtype, shape: tuple[int, int]
):
    m, n = shape
    left, right = orthonormal(m, 2, seed=1), orthonormal(n, 2, seed=2)
    core = torch.tensor([[2.0, 0.3], [-0.4, 1.0]], dtype=torch.float64)
    d_left = torch.randn(m, 2, generator=generator(3), dtype=torch.float64)
    d_core = torch.randn(2, 2, generator=generator(4), dtype=torch.float64)
    upstream = torch.randn(m, n, generator=generator(5), dtype=torch.float64)

    def at(t: float) -> torch.Tensor:
        return (left + t * d_left) @ (core + t * d_core) @ right.mT

    step = 1e-6
    slope = (twins.polar_factor(at(step)) - twins.polar_factor(at(-step))) / (2 * step)
    along = (at(step) - at(-step)) / (2 * step)
    a = at(0).to(dtype).requires_grad_()
    with pytest.warns(NumericalWarning, match="2 of 4 directions are null"):
        polar_factor(a, method=method).backward(upstream.to(dtype))
    predicted = float((a.grad.double() * along).sum())
    assert predicted == pytest.approx(float((upstream * slope).sum()), abs=1e-6, rel=1e-5)


def test_derivative_at_zero_is_zero_and_announced():
    a = torch.zeros(4, 3, requires_grad=True)
    with pytest.warns(NumericalWarning, match="3 of 3 directions are null"):
        polar_factor(a).sum().backward()
    assert torch.equal(a.grad, torch.zeros(4, 3))


@pytest.mark.parametrize("power", [1, 2])
def test_second_derivative_at_null_directions_is_refused_and_not_zero(power: int):
    # With power 1 the upstream gradient is a constant: the dependence on a alone must be seen.
    a = from_spectrum([2.0], 3, 2).requires_grad_()
    weights = torch.arange(6, dtype=torch.float64).reshape(3, 2)
    loss = (weights * polar_factor(a).pow(power)).sum()
    with pytest.warns(NumericalWarning, match="1 of 2 directions are null"):
        (grad,) = torch.autograd.grad(loss, a, create_graph=True)
    with pytest.raises(
        NotImplementedError, match="second derivative only where no direction is null"
    ):
        (grad.square().sum() + a.sum()).backward()


def test_full_rank_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in METHODS:
            a = from_spectrum([2.0, 1.0], 3, 2).requires_grad_()
            polar_factor(a, method=method).sum().backward()
