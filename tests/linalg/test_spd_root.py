"""Matrix roots: identities, methods and their bias, exact gradients, what bad input gets."""

import math
import re
import warnings
from collections.abc import Callable
from fractions import Fraction

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from orthotrain.errors import (
    ConfigError,
    ConvergenceError,
    NotPositiveDefiniteError,
    NumericalWarning,
    ShapeError,
)
from orthotrain.linalg import spd_inv_sqrt, spd_sqrt
from reference import spd_root as twins
from reference.matrices import generator, log_spectrum
from reference.spd_root import spd

modest = hypothesis.settings(deadline=None, max_examples=25)
EPS = torch.finfo(torch.float64).eps
METHODS = ("eigh", "newton_schulz", "polar_express", "mpa", "mtp")
ROOTS = {"sqrt": spd_sqrt, "inv_sqrt": spd_inv_sqrt}
TWINS = {"sqrt": twins.sqrt, "inv_sqrt": twins.inv_sqrt}
GRADIENTS = {"sqrt": twins.sqrt_gradient, "inv_sqrt": twins.inv_sqrt_gradient}

both_roots = pytest.mark.parametrize("name", ROOTS)
every_method = pytest.mark.parametrize("method", METHODS)


@st.composite
def definite(draw: st.DrawFn) -> Tensor:
    """Float64 with a chosen spectrum, condition up to 1e4, some eigenvalues repeated."""
    n = draw(st.integers(1, 8))
    values = log_spectrum(n, 10.0 ** draw(st.integers(0, 4)))
    values[: draw(st.integers(0, n))] = 1.0
    return spd(values, seed=draw(st.integers(0, 99)))


def upstream(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def gradient_of(root: Callable[[Tensor], Tensor], a: Tensor, g: Tensor) -> Tensor:
    x = a.clone().requires_grad_()
    root(x).backward(g)
    assert x.grad is not None
    return x.grad


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def symmetrized(root: Callable[..., Tensor], **settings: object) -> Callable[[Tensor], Tensor]:
    """gradcheck moves single entries, which would not be symmetric."""
    return lambda x: root((x + x.mT) / 2, **settings)


# --- values -----------------------------------------------------------------------------------


@modest
@hypothesis.given(definite())
def test_root_squared_is_the_matrix(a: Tensor):
    s, z = spd_sqrt(a), spd_inv_sqrt(a)
    # Measured up to 18 eps, and up to 14 eps times the condition.
    assert (s @ s - a).abs().max() <= 32 * EPS
    condition = float(torch.linalg.cond(a))
    assert (z @ a @ z - torch.eye(len(a))).abs().max() <= 32 * condition * EPS
    assert (s @ z - torch.eye(len(a))).abs().max() <= 32 * condition * EPS
    for root in (s, z):
        assert torch.equal(root, root.mT)


@modest
@hypothesis.given(definite(), st.integers(-140, 140))
def test_scale_comes_out_as_its_root(a: Tensor, exponent: int):
    c = 4.0**exponent
    assert relative(spd_sqrt(c * a), 2.0**exponent * spd_sqrt(a)) <= 1e-13
    assert relative(spd_inv_sqrt(c * a), 2.0**-exponent * spd_inv_sqrt(a)) <= 1e-11


@both_roots
@pytest.mark.parametrize("n", [6, 40, 64, 160])
@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_float32_is_right_up_to_condition_1e6(name: str, n: int, condition: float):
    a = spd(log_spectrum(n, condition)).float()
    a, g = (a + a.mT) / 2, upstream(n, n).float()
    exact = ROOTS[name](a.double())
    assert relative(ROOTS[name](a), exact) <= 1e-6
    expected = gradient_of(ROOTS[name], a.double(), g.double())
    actual = gradient_of(ROOTS[name], a, g)
    assert relative(actual, expected) <= 1e-6
    if n < 64:
        # One rounding of the result.
        assert torch.equal(ROOTS[name](a), exact.float())
        assert relative(actual, expected) <= 6e-8
    if n == 6:
        assert relative(expected, GRADIENTS[name](a.double(), g.double())) <= 1e-9


@both_roots
def test_gradient_of_a_structured_loss_keeps_its_digits(name: str):
    # The upstream gradient is small where the derivative is large: float32 products would lose it.
    a = spd(log_spectrum(64, 1e6)).float()
    a = (a + a.mT) / 2
    g = a.double()
    expected = GRADIENTS[name](a[:6, :6], g[:6, :6])
    assert relative(gradient_of(ROOTS[name], a[:6, :6], g[:6, :6].float()), expected) <= 1e-6
    for n in (64, 160):
        a = spd(log_spectrum(n, 1e6)).float()
        a = (a + a.mT) / 2
        exact = gradient_of(ROOTS[name], a.double(), a.double())
        assert relative(gradient_of(ROOTS[name], a, a), exact) <= 1e-6


@both_roots
@pytest.mark.parametrize("iterations", [1, 5, 15])
def test_newton_schulz_is_that_of_the_papers(name: str, iterations: int):
    a = spd(log_spectrum(7, 1e3))
    root, inverse = twins.newton_schulz(a, iterations)
    actual = ROOTS[name](a, method="newton_schulz", iterations=iterations)
    expected = inverse if name == "inv_sqrt" else root
    assert relative(actual, (expected + expected.mT) / 2) <= 1e-13


def test_pade_and_taylor_are_those_of_the_paper():
    a = spd(log_spectrum(7, 1e3))
    assert relative(spd_sqrt(a, method="mpa"), twins.pade_root(a)) <= 1e-12
    inverse = torch.linalg.inv(twins.pade_root(a))
    assert relative(spd_inv_sqrt(a, method="mpa"), inverse) <= 1e-12
    for root, power in ((spd_sqrt, Fraction(1, 2)), (spd_inv_sqrt, Fraction(-1, 2))):
        assert relative(root(a, method="mtp"), twins.taylor_root(a, power=power)) <= 1e-12


@pytest.mark.parametrize("x", [0.5, 0.1, 1e-2, 1e-3, 1e-6])
def test_bias_of_pade_is_the_stated_one(x: float):
    # One eigenvalue x of the norm, beside one that makes the norm 1.
    a = torch.diag(torch.tensor([math.sqrt(1 - x * x), x], dtype=torch.float64))
    r, s = float(spd_sqrt(a, method="mpa")[1, 1]), math.sqrt(x)
    assert (r - s) / (r + s) == pytest.approx(((1 - s) / (1 + s)) ** 11, rel=1e-9, abs=1e-13)
    if x == 1e-2:
        assert r / s - 1 == pytest.approx(0.25, abs=0.01)
    if x == 1e-3:
        assert r / s - 1 == pytest.approx(2.0, abs=0.1)


def test_floors_of_pade_and_taylor_are_the_stated_ones():
    a = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    assert float(spd_sqrt(a, method="mpa")[1, 1]) ** -2 == pytest.approx(121, rel=1e-9)
    assert float(spd_sqrt(a, method="mtp")[1, 1]) ** -2 == pytest.approx(32, rel=0.01)


@both_roots
def test_polar_express_reaches_what_its_table_promises(name: str):
    # The table brings singular values from 1e-3 on to one; their squares are eigenvalues.
    a = spd(log_spectrum(16, 2e5))
    assert relative(ROOTS[name](a, method="polar_express"), TWINS[name](a)) <= 1e-6
    poor = ROOTS[name](a, method="polar_express", iterations=2)
    assert relative(poor, TWINS[name](a)) > 0.1


@both_roots
def test_ridges_are_added(name: str):
    a = spd([0.0, 1.0, 2.0, 5.0])
    eye = torch.eye(4, dtype=torch.float64)
    for method in METHODS:
        settings = {"method": method, "ridge": 0.5, "relative_ridge": 0.25}
        shifted = ROOTS[name](a + (0.5 + 0.25 * 2.0) * eye, method=method)
        torch.testing.assert_close(ROOTS[name](a, **settings), shifted, rtol=1e-13, atol=1e-13)


# --- gradients --------------------------------------------------------------------------------

SPECTRA = {
    "simple": [0.3, 0.8, 1.5, 3.0],
    "two ties": [0.5, 0.5, 2.0, 2.0],
    "one value": [0.7, 0.7, 0.7, 0.7],
}
every_spectrum = pytest.mark.parametrize("values", SPECTRA.values(), ids=SPECTRA)


@both_roots
@every_spectrum
def test_first_and_second_derivative(name: str, values: list[float]):
    a = spd(values)
    # Ties exact to the last bit, too.
    exact = torch.diag(torch.tensor(values, dtype=torch.float64))
    for matrix in (a, exact, torch.stack([a, exact])):
        x = matrix.clone().requires_grad_()
        root = symmetrized(ROOTS[name])
        assert torch.autograd.gradcheck(root, (x,), check_batched_grad=True)
        assert torch.autograd.gradgradcheck(root, (x,))


@both_roots
def test_third_derivative(name: str):
    x = spd([0.5, 0.5, 2.0]).requires_grad_()
    root = symmetrized(ROOTS[name])

    def gradient(x: Tensor) -> Tensor:
        (g,) = torch.autograd.grad((root(x) ** 3).sum(), x, create_graph=True)
        return g

    assert torch.autograd.gradgradcheck(gradient, (x,))


@both_roots
def test_derivative_goes_through_the_relative_ridge(name: str):
    x = spd(SPECTRA["two ties"]).requires_grad_()
    for method in METHODS:
        if method not in ("mpa", "mtp"):
            root = symmetrized(ROOTS[name], method=method, ridge=0.1, relative_ridge=0.3)
            assert torch.autograd.gradcheck(root, (x,))
    root = symmetrized(ROOTS[name], relative_ridge=0.3)
    assert torch.autograd.gradgradcheck(root, (x,))


@both_roots
@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_converged_iterations_have_the_exact_derivative(name: str, method: str):
    root = symmetrized(ROOTS[name], method=method)
    for values in SPECTRA.values():
        assert torch.autograd.gradcheck(root, (spd(values).requires_grad_(),))
    x = spd([0.5, 0.5, 2.0]).requires_grad_()
    assert torch.autograd.gradgradcheck(root, (x,))


@both_roots
@every_method
def test_exact_gradient_does_not_depend_on_the_method(name: str, method: str):
    a, g = spd(log_spectrum(8, 1e4)), upstream(8, 8)
    actual = gradient_of(lambda x: ROOTS[name](x, method=method), a, g)
    assert relative(actual, GRADIENTS[name](a, g)) <= 1e-9


def whitening_covariance(dtype: torch.dtype) -> Tensor:
    """64 channels made of 27 inputs, with a ridge: 37 eigenvalues are equal to it."""
    mixing = torch.randn(64, 27, generator=generator(3), dtype=torch.float64) / math.sqrt(27)
    a = mixing @ mixing.mT + 1e-2 * torch.eye(64, dtype=torch.float64)
    return ((a + a.mT) / 2).to(dtype)


@both_roots
def test_gradient_with_37_equal_eigenvalues_out_of_64(name: str):
    a, g = whitening_covariance(torch.float64), upstream(64, 64)
    values = torch.linalg.eigvalsh(a)
    assert int((values < 1.001e-2).sum()) == 37
    x = gradient_of(ROOTS[name], a, g)
    for seed in range(3):
        h = upstream(64, 64, seed=20 + seed)
        h = h + h.mT
        difference = twins.finite_difference(TWINS[name], a, h)
        # Fourth-order differences leave 1e-9 of it.
        torch.testing.assert_close((x * h).sum(), (g * difference).sum(), rtol=1e-7, atol=0)
    single = gradient_of(ROOTS[name], a.float(), g.float())
    double = gradient_of(ROOTS[name], a.float().double(), g.float().double())
    assert relative(single, double) <= 1e-6


@both_roots
def test_torch_autograd_fails_where_this_does_not(name: str):
    # The reason for all this: the composed derivative is not finite at exact ties.
    a = torch.diag(torch.tensor([0.5, 0.5, 2.0], dtype=torch.float64)).requires_grad_()
    values, vectors = torch.linalg.eigh(a)
    power = 0.5 if name == "sqrt" else -0.5
    ((vectors * values**power) @ vectors.mT)[0, 1].backward()
    assert not torch.isfinite(a.grad).all()
    g = upstream(3, 3)
    assert relative(gradient_of(ROOTS[name], a.detach(), g), GRADIENTS[name](a.detach(), g)) < 1e-13


@both_roots
@pytest.mark.parametrize(
    ("method", "gradient"),
    [
        *((method, "exact") for method in METHODS),
        *((method, "lyapunov") for method in METHODS),
        ("newton_schulz", "newton_schulz"),
    ],
)
def test_gradient_of_one_matrix_does_not_depend_on_the_batch(name: str, method: str, gradient: str):
    batch = torch.stack([spd(log_spectrum(6, 10.0**k), seed=k) for k in range(4)])
    g = upstream(4, 6, 6)
    root = ROOTS[name]
    together = gradient_of(lambda x: root(x, method=method, gradient=gradient), batch, g)
    scaled = batch.clone()
    scaled[2] *= 1e20
    other = gradient_of(lambda x: root(x, method=method, gradient=gradient), scaled, g)
    for i in range(4):
        alone = gradient_of(lambda x: root(x, method=method, gradient=gradient), batch[i], g[i])
        assert relative(together[i], alone) <= 1e-11
        if i != 2:
            assert torch.equal(other[i], together[i])


def test_lyapunov_gradient_is_that_of_the_paper():
    a, g = spd(log_spectrum(6, 30.0)), upstream(6, 6)
    g = (g + g.mT) / 2
    actual = gradient_of(lambda x: spd_sqrt(x, gradient="lyapunov"), a, g)
    assert relative(actual, twins.lyapunov_gradient(twins.sqrt(a), g)) <= 1e-12
    z = twins.inv_sqrt(a)
    actual = gradient_of(lambda x: spd_inv_sqrt(x, gradient="lyapunov"), a, g)
    assert relative(actual, twins.lyapunov_gradient(twins.sqrt(a), -z @ g @ z)) <= 1e-12


@both_roots
@pytest.mark.parametrize("method", ["eigh", "newton_schulz", "polar_express"])
def test_lyapunov_gradient_is_exact_where_it_converges(name: str, method: str):
    a, g = spd([0.8, 1.0, 1.0, 1.3]), upstream(4, 4)
    actual = gradient_of(lambda x: ROOTS[name](x, method=method, gradient="lyapunov"), a, g)
    assert relative(actual, GRADIENTS[name](a, g)) <= 1e-10


@both_roots
@pytest.mark.parametrize("iterations", [3, 15])
def test_newton_schulz_gradient_is_that_of_its_steps(name: str, iterations: int):
    settings = {"method": "newton_schulz", "gradient": "newton_schulz", "iterations": iterations}
    x = spd(SPECTRA["two ties"]).requires_grad_()
    root = symmetrized(ROOTS[name], **settings)
    assert torch.autograd.gradcheck(root, (x,))
    a, g = x.detach(), upstream(4, 4)
    error = relative(gradient_of(lambda x: ROOTS[name](x, **settings), a, g), GRADIENTS[name](a, g))
    assert error <= 1e-10 if iterations == 15 else error > 1e-3


# --- singular matrices ------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["eigh", "newton_schulz", "polar_express"])
def test_singular_matrix_has_a_square_root(method: str):
    a = spd([0.0, 0.0, 1.0, 2.0])
    assert float(torch.linalg.eigvalsh(a).min()) < 0
    assert relative(spd_sqrt(a, method=method), twins.sqrt(a)) <= 1e-7
    assert torch.equal(spd_sqrt(torch.zeros(3, 3), method=method), torch.zeros(3, 3))


@pytest.mark.parametrize("method", ["eigh", "newton_schulz"])
def test_gradient_at_a_singular_matrix_is_finite_and_announced(method: str):
    a = torch.diag(torch.tensor([0.0, 0.0, 1.0, 4.0], dtype=torch.float64))
    g = upstream(4, 4)
    with pytest.warns(NumericalWarning, match="spd_sqrt: 2 of 4 eigenvalues are null"):
        x = gradient_of(lambda x: spd_sqrt(x, method=method), a, g)
    symmetric = (g + g.mT) / 2
    assert torch.equal(x[:2, :2], torch.zeros(2, 2))
    # Between a null direction and another the derivative is 1 / s_j, as ever.
    torch.testing.assert_close(x[:2, 2:], symmetric[:2, 2:] / torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(
        x[2:, 2:], symmetric[2:, 2:] / torch.tensor([[2.0, 3.0], [3.0, 4.0]])
    )


@pytest.mark.parametrize("gradient", ["exact", "lyapunov"])
def test_small_eigenvalue_is_taken_at_face_value(gradient: str):
    # Too small to have a derivative in float32, but its root is that of the number given.
    a = torch.diag(torch.tensor([1.0, 1e-7, 1e-12]))
    assert torch.equal(spd_sqrt(a, gradient=gradient), a.sqrt())


def test_gradient_at_zero_is_zero():
    zero = torch.zeros(2, 3, 3)
    with pytest.warns(NumericalWarning, match="6 of 6"):
        assert not gradient_of(spd_sqrt, zero, torch.ones(2, 3, 3)).any()


def test_singular_entry_does_not_touch_the_gradient_of_others():
    batch = torch.stack([spd([1.0, 2.0, 3.0]), spd([0.0, 0.0, 1.0])])
    g = upstream(2, 3, 3)
    with pytest.warns(NumericalWarning, match="2 of 6"):
        x = gradient_of(spd_sqrt, batch, g)
    assert relative(x[0], twins.sqrt_gradient(batch[0], g[0])) <= 1e-13
    assert torch.isfinite(x).all()


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_singular_matrix_has_no_inverse_root(method: str, dtype: torch.dtype):
    x = torch.randn(8, 5, generator=generator(0), dtype=dtype)
    for a in (x @ x.mT, torch.zeros(3, 3, dtype=dtype), torch.diag(torch.tensor([1.0, 0.0]))):
        with pytest.raises(NotPositiveDefiniteError, match="spd_inv_sqrt needs a positive def"):
            spd_inv_sqrt(a, method=method)
        assert torch.isfinite(spd_inv_sqrt(a, method=method, ridge=1e-3)).all()


@every_method
def test_ridge_below_the_rounding_of_the_matrix_still_counts(method: str):
    # Null eigenvalues of a float32 covariance are noise of both signs, here above the ridge.
    x = 100 * torch.randn(12, 4, generator=generator(0))
    a = x @ x.mT
    lowest = float(torch.linalg.eigvalsh(a.double()).min())
    assert lowest < -1e-5
    z = spd_inv_sqrt(a, ridge=1e-5, method=method).double()
    assert torch.isfinite(z).all()
    if method in ("eigh", "polar_express"):
        # No eigenvalue of a + ridge counted for less than the ridge.
        assert float(torch.linalg.eigvalsh(z).max()) <= 1.001 / math.sqrt(1e-5)


@both_roots
@every_method
def test_negative_eigenvalue_is_named_with_a_ridge_that_helps(name: str, method: str):
    good = spd([1.0, 2.0, 3.0])
    batch = torch.stack([good, spd([-0.5, 1.0, 2.0]), good])
    with pytest.raises(NotPositiveDefiniteError) as caught:
        ROOTS[name](batch, method=method)
    message = str(caught.value)
    assert message.startswith(f"spd_{name} needs a positive ")
    assert "got 1 of 3" in message
    assert "-0.5 " in message
    assert "norm of 2.29" in message
    ridge = float(re.search(r"ridge=([0-9.e+-]+)", message)[1])
    assert torch.isfinite(ROOTS[name](batch, method=method, ridge=ridge)).all()


@both_roots
@every_method
def test_large_entry_does_not_hide_a_negative_one(name: str, method: str):
    batch = torch.stack([1e20 * spd([1.0, 2.0, 3.0]), spd([-0.5, 1.0, 2.0])])
    with pytest.raises(
        NotPositiveDefiniteError, match=r"got 1 of 2 with smallest eigenvalue -0\.5"
    ):
        ROOTS[name](batch, method=method)
    with pytest.raises(NotPositiveDefiniteError):
        ROOTS[name](batch, method=method, ridge=0.1)


@both_roots
@every_method
def test_rounding_of_a_dtype_that_a_was_stored_in(name: str, method: str):
    exact = spd([0.0] * 6 + [1.0, 2.0])
    stored = exact.bfloat16().float()
    with pytest.raises(NotPositiveDefiniteError):
        ROOTS[name](stored, method=method, ridge=1e-4)
    settings = {"method": method, "ridge": 1e-4}
    root = ROOTS[name](stored, rounded_to=torch.bfloat16, **settings)
    assert root.dtype == torch.float32
    values = torch.linalg.eigvalsh(stored.double()).clamp(min=0) + 1e-4
    twin = spd_sqrt if name == "sqrt" else spd_inv_sqrt
    same = twin(torch.diag(values), method=method).diagonal().sort().values
    torch.testing.assert_close(torch.linalg.eigvalsh(root.double()), same, rtol=1e-4, atol=1e-4)
    # A finer dtype than its own takes nothing from it.
    a = torch.diag(torch.tensor([1.0, 0.5, -1e-7]))
    assert torch.equal(
        ROOTS[name](a, rounded_to=torch.float64, **settings), ROOTS[name](a, **settings)
    )


@both_roots
def test_asymmetry_of_a_dtype_that_a_was_stored_in(name: str):
    a = torch.tensor([[2.0, 1.0], [1.0 + 2**-8, 2.0]])
    with pytest.raises(ConfigError, match="symmetric"):
        ROOTS[name](a)
    for settings in ({}, {"method": "newton_schulz"}):
        root = ROOTS[name](a, rounded_to=torch.bfloat16, **settings)
        torch.testing.assert_close(root, ROOTS[name]((a + a.mT) / 2, **settings))


@every_method
def test_rounding_below_zero_is_zero(method: str):
    a = torch.diag(torch.tensor([1.0, 0.5, -1e-7]))
    assert float(spd_sqrt(a, method=method)[2, 2]) == pytest.approx(
        float(spd_sqrt(a.clamp(min=0), method=method)[2, 2]), abs=1e-6
    )
    with pytest.raises(NotPositiveDefiniteError):
        spd_sqrt(a.double(), method=method)


# --- settings, symmetry, devices' helpers -----------------------------------------------------


@both_roots
def test_asymmetry_beyond_rounding_is_named(name: str):
    a = spd([1.0, 2.0, 3.0]).float()
    a = (a + a.mT) / 2
    nearly = a.clone()
    nearly[0, 1] += 5e-7
    assert relative(ROOTS[name](nearly), TWINS[name]((nearly + nearly.mT).double() / 2)) <= 1e-6
    g = upstream(3, 3).float()
    x = gradient_of(ROOTS[name], nearly, g)
    torch.testing.assert_close(x, x.mT)
    wrong = torch.stack([a, a])
    wrong[1, 0, 1] += 1e-3
    for method in METHODS:
        with pytest.raises(
            ConfigError, match=r"needs a symmetric matrix, got an asymmetry .*0\.00"
        ):
            ROOTS[name](wrong, method=method)


@both_roots
@pytest.mark.bad_input
def test_one_matrix_that_is_not_square(name: str):
    with pytest.raises(ShapeError, match=rf"spd_{name} needs a of shape .*got \(3, 4\); form"):
        ROOTS[name](torch.ones(3, 4))


@both_roots
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "svd"}, "needs method to be one of auto, eigh"),
        ({"gradient": "taylor"}, "needs gradient to be one of exact"),
        ({"gradient": "newton_schulz"}, "needs method='newton_schulz'"),
        ({"gradient": "newton_schulz", "method": "eigh"}, "needs method='newton_schulz'"),
        ({"iterations": 5}, "needs iterations as a whole number of at least 1, and method"),
        ({"iterations": 5, "method": "mpa"}, "got iterations=5 with method='mpa'"),
        ({"iterations": 0, "method": "newton_schulz"}, "got iterations=0"),
        (
            {"iterations": 1.5, "method": "newton_schulz"},
            "iterations to be a whole number or None, got 1.5",
        ),
        (
            {"iterations": math.nan, "method": "polar_express"},
            "iterations to be a whole number or None, got nan",
        ),
        (
            {"iterations": "3", "method": "polar_express"},
            "iterations to be a whole number or None, got '3'",
        ),
        (
            {"iterations": True, "method": "newton_schulz"},
            "iterations to be a whole number or None, got True",
        ),
        ({"rounded_to": torch.int32}, "needs rounded_to to be a floating-point dtype"),
        (
            {"rounded_to": "bfloat16"},
            "rounded_to to be a dtype or None, got 'bfloat16'",
        ),
        ({"ridge": -1.0}, "needs finite ridges >= 0, got ridge=-1.0 and"),
        ({"ridge": math.nan}, "ridge to be a number, got nan"),
        ({"relative_ridge": math.inf}, "relative_ridge=inf;"),
    ],
    ids=str,
)
@pytest.mark.bad_input
def test_settings_that_cannot_work(name: str, settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        ROOTS[name](torch.eye(3), **settings)
    assert str(caught.value).startswith(f"spd_{name} ")


@both_roots
@every_method
@pytest.mark.parametrize("gradient", ["exact", "lyapunov"])
def test_autocast_changes_no_gradient(name: str, method: str, gradient: str):
    a, g = spd([0.5, 1.0, 2.0]).float(), upstream(3, 3).float()
    a = (a + a.mT) / 2

    def root(x: Tensor) -> Tensor:
        return ROOTS[name](x, method=method, gradient=gradient)

    expected = gradient_of(root, a, g)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = gradient_of(root, a, g)
    assert torch.equal(actual, expected)


@both_roots
def test_failing_entry_does_not_spoil_the_others(name: str, monkeypatch: pytest.MonkeyPatch):
    batch = torch.stack([spd([1.0, 2.0, 4.0]), spd([0.1, 2.0, 3.0]), spd([2.0, 2.0, 9.0])])
    expected = ROOTS[name](batch)
    true_eigh = torch.linalg.eigh

    def failing(a: Tensor) -> tuple[Tensor, Tensor]:
        if a.ndim > 2 or torch.equal(a, batch[1]):
            raise torch.linalg.LinAlgError("did not converge")
        return true_eigh(a)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    with pytest.warns(NumericalWarning, match="did not converge for 1 of the matrices"):
        actual = ROOTS[name](batch)
    assert torch.equal(actual[0], ROOTS[name](batch[0]))
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)

    def broken(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", broken)
    with pytest.raises(ConvergenceError, match=f"spd_{name}: neither eigh nor the SVD converged"):
        ROOTS[name](batch)


@both_roots
@every_method
def test_vmap_and_functional_transforms(name: str, method: str):
    batch = torch.stack([spd(values) for values in SPECTRA.values()])
    weights = upstream(4, 4)

    def loss(a: Tensor) -> Tensor:
        return (ROOTS[name](a, method=method) * weights).sum()

    torch.testing.assert_close(
        torch.func.vmap(lambda a: ROOTS[name](a, method=method))(batch),
        ROOTS[name](batch, method=method),
    )
    expected = gradient_of(
        lambda x: ROOTS[name](x, method=method), batch, weights.expand_as(batch).contiguous()
    )
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(batch), expected)


@both_roots
@pytest.mark.parametrize("gradient", ["lyapunov", "newton_schulz"])
def test_vmap_of_the_other_gradients(name: str, gradient: str):
    batch = torch.stack([spd(values) for values in SPECTRA.values()])

    def root(a: Tensor) -> Tensor:
        return ROOTS[name](a, method="newton_schulz", gradient=gradient)

    mapped = torch.func.vmap(torch.func.grad(lambda a: (root(a) ** 3).sum()))(batch)
    x = batch.clone().requires_grad_()
    (root(x) ** 3).sum().backward()
    torch.testing.assert_close(mapped, x.grad)


@pytest.mark.slow
@both_roots
def test_compiled_code_gives_the_same(name: str):
    a, g = spd([0.5, 1.0, 2.0]).float(), upstream(3, 3).float()
    a = (a + a.mT) / 2
    compiled = torch.compile(lambda x: ROOTS[name](2 * x), backend="aot_eager")
    with warnings.catch_warnings():
        # torch's own, while it traces a Function.
        warnings.simplefilter("ignore")
        actual = gradient_of(compiled, a, g)
    torch.testing.assert_close(actual, gradient_of(lambda x: ROOTS[name](2 * x), a, g))
