"""``svd`` and ``eigh``: the exact derivative, its named approximations, and ties."""

import re
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from orthotrain.errors import ConfigError, NotPositiveDefiniteError, NumericalWarning
from orthotrain.linalg import eigh, svd
from reference import spd_root as twins
from reference.matrices import from_spectrum, generator, log_spectrum
from reference.spd_root import spd

NAMES = ("exact", "taylor", "pade", "truncated", "top_n", "power_iteration")
APPROXIMATE = NAMES[1:]
every_name = pytest.mark.parametrize("gradient", NAMES)

GEOMETRIC = [1.0, 2.0, 4.0, 8.0, 16.0]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def vector_gradient(decompose: Callable[[Tensor], Tensor], a: Tensor, g: Tensor) -> Tensor:
    """Gradient at ``a`` for ``g`` at the vectors that ``decompose`` gives."""
    x = a.clone().requires_grad_()
    (decompose(x) * g).sum().backward()
    assert x.grad is not None
    return x.grad


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


def without_sign(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors up to their sign, which a finite step must not flip."""
    return values, vectors * vectors


def symmetric_eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    return eigh((x + x.mT) / 2)


# --- exact ------------------------------------------------------------------------------------


def test_eigh_gives_eigenpairs():
    a = torch.stack([spd(GEOMETRIC), spd(log_spectrum(5, 1e6), seed=3)])
    values, vectors = eigh(a)
    assert (values.diff() > 0).all()
    torch.testing.assert_close((vectors * values.unsqueeze(-2)) @ vectors.mT, a)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(5).double().expand(2, 5, 5))
    indefinite = spd([-2.0, 1.0, 3.0])
    torch.testing.assert_close(eigh(indefinite)[0], torch.tensor([-2.0, 1.0, 3.0]).double())


@pytest.mark.parametrize("shape", [(5, 5), (6, 3), (3, 6)], ids=str)
def test_svd_gives_singular_triples(shape: tuple[int, int]):
    a = noise(2, *shape)
    u, s, vh = svd(a)
    torch.testing.assert_close((u * s.unsqueeze(-2)) @ vh, a)
    torch.testing.assert_close(s, torch.linalg.svdvals(a))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_results_are_rounded_once(dtype: torch.dtype):
    a = spd(log_spectrum(6, 1e2)).to(dtype)
    a = ((a + a.mT) / 2).to(dtype)
    for narrow, wide in zip(
        (*eigh(a), *svd(a)), (*eigh(a.double()), *svd(a.double())), strict=True
    ):
        assert narrow.dtype == dtype
        # Up to the sign of a vector. Vectors of float32 are right to its rounding.
        gap = (narrow.double().abs() - wide.abs()).abs().max()
        assert gap <= torch.finfo(dtype).eps


def test_exact_derivative_of_eigh():
    x = torch.stack([spd(GEOMETRIC[:4]), spd([-2.0, -1.0, 1.0, 4.0], seed=5)]).requires_grad_()

    def decompose(x: Tensor) -> tuple[Tensor, Tensor]:
        return without_sign(*symmetric_eigh(x))

    assert torch.autograd.gradcheck(decompose, (x,), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(decompose, (x,))


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5)], ids=str)
def test_exact_derivative_of_svd(shape: tuple[int, int]):
    x = from_spectrum([3.0, 2.0, 1.0, 0.5][: min(shape)], *shape).requires_grad_()

    def decompose(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = svd(x)
        return u * u, s, u.mT @ x + vh.abs()

    assert torch.autograd.gradcheck(decompose, (x,), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(decompose, (x,))


def test_exact_equals_torch_where_simple():
    a, g = spd(log_spectrum(6, 1e4)), noise(6, 6)
    ours = vector_gradient(lambda x: eigh(x)[1], a, g)
    theirs = vector_gradient(lambda x: torch.linalg.eigh(x)[1], a, g)
    assert relative(ours, (theirs + theirs.mT) / 2) <= 1e-10
    b, g = noise(6, 4), noise(6, 4, seed=1)
    sign = torch.sign((svd(b)[0] * torch.linalg.svd(b, full_matrices=False)[0]).sum(dim=0))
    ours = vector_gradient(lambda x: svd(x)[0] * sign, b, g)
    theirs = vector_gradient(lambda x: torch.linalg.svd(x, full_matrices=False)[0], b, g)
    assert relative(ours, theirs) <= 1e-10


def test_small_singular_values_are_no_ties():
    # Their squares are equal to rounding of the largest square; they themselves are not.
    a = from_spectrum([1.0, 2e-8, 1e-8], 3, 3)
    g = noise(3, 3)
    u = torch.linalg.svd(a)[0]
    sign = torch.sign((svd(a)[0] * u).sum(dim=0))
    ours = vector_gradient(lambda x: svd(x)[0] * sign, a, g)
    assert relative(ours, vector_gradient(lambda x: torch.linalg.svd(x)[0], a, g)) <= 1e-6


def test_exact_at_ties_gives_what_does_not_depend_on_the_choice_of_vectors():
    a = torch.diag(torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64))
    h = noise(3, 3)
    h = h + h.mT

    def projector(x: Tensor) -> Tensor:
        """Of the two smallest eigenvalues; this one has a derivative."""
        vectors = eigh(x)[1][:, :2]
        return vectors @ vectors.mT

    g = noise(3, 3, seed=1)
    with pytest.warns(NumericalWarning, match="eigh: 1 pairs of values are equal up to rounding"):
        x = vector_gradient(projector, a, g)
    step = 1e-5
    difference = (projector(a + step * h) - projector(a - step * h)) / (2 * step)
    torch.testing.assert_close((x * h).sum(), (g * difference).sum(), rtol=1e-7, atol=1e-9)
    with pytest.warns(NumericalWarning, match="svd: 1 pairs"):
        x = vector_gradient(lambda x: svd(x)[0][:, 1:] @ svd(x.detach())[0][:, 1:].mT, a, g)
    assert torch.isfinite(x).all()


@every_name
def test_gradient_of_values_alone_is_exact_and_silent(gradient: str):
    for a in (torch.eye(4).double(), spd(GEOMETRIC)):
        x = a.clone().requires_grad_()
        (eigh(x, gradient=gradient, drop_last=1)[0] ** 3).sum().backward()
        torch.testing.assert_close(x.grad, 3 * a @ a)
        x = a.clone().requires_grad_()
        (svd(x, gradient=gradient, drop_last=1)[1] ** 3).sum().backward()
        torch.testing.assert_close(x.grad, 3 * a @ a)


# --- named approximations ---------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["taylor", "pade", "truncated", "power_iteration"])
@pytest.mark.parametrize("ratio", [0.3, 0.9, 0.999])
def test_factors_are_those_of_the_named_series(gradient: str, ratio: float):
    a, g = spd([ratio**k for k in range(5)]), noise(5, 5)
    actual = vector_gradient(lambda x: eigh(x, gradient=gradient)[1], a, g)
    assert relative(actual, twins.eigenvector_gradient(a, g, gradient)) <= 1e-9


def test_power_iteration_is_that_of_the_paper():
    a = spd([0.2, 0.5, 0.8, 1.0])
    g = torch.zeros(4, 4, dtype=torch.float64)
    g[:, -1] = noise(4)
    actual = vector_gradient(lambda x: eigh(x, gradient="power_iteration")[1], a, g)
    vector = eigh(a)[1][:, -1]
    sign = torch.sign(vector @ torch.linalg.eigh(a)[1][:, -1])
    expected = twins.top_vector_gradient_by_power_iteration(a, sign * g[:, -1])
    assert relative(actual, expected) <= 1e-12
    # The published backward took the projector of all vectors together, which is zero.
    exact = vector_gradient(lambda x: eigh(x)[1], a, g)
    assert relative(actual, exact) <= 0.8**20
    assert float(actual.norm()) > 0.1


@pytest.mark.parametrize("gradient", APPROXIMATE)
def test_close_to_exact_where_ratios_are_small(gradient: str):
    # Ratios of .5: 2**-20 is left by twenty terms, 2**-101 by the Taylor series.
    budget = {"power_iteration": 2e-6}.get(gradient, 1e-12)
    a, g = spd(GEOMETRIC), noise(5, 5)
    exact = vector_gradient(lambda x: eigh(x)[1], a, g)
    actual = vector_gradient(lambda x: eigh(x, gradient=gradient, drop_last=0)[1], a, g)
    assert relative(actual, exact) <= budget
    for shape in ((5, 5), (7, 5), (5, 7)):
        b = from_spectrum(GEOMETRIC[::-1], *shape)
        for part in (0, 2):
            g = noise(*svd(b)[part].shape)
            exact = vector_gradient(lambda x, part=part: svd(x)[part], b, g)
            actual = vector_gradient(
                lambda x, part=part: svd(x, gradient=gradient, drop_last=0)[part], b, g
            )
            # The ratios of squares are .25.
            assert relative(actual, exact) <= budget


def test_top_n_takes_the_last_for_zero():
    values = torch.tensor([0.1, 0.2, 1.0, 4.0], dtype=torch.float64)
    a, g = torch.diag(values), noise(4, 4)
    actual = vector_gradient(lambda x: eigh(x, gradient="top_n", drop_last=2)[1], a, g)
    sign = torch.sign(eigh(a)[1].diagonal())
    turned = (g * sign - (g * sign).mT) / 2
    cut = torch.tensor([0.0, 0.0, 1.0, 4.0], dtype=torch.float64)
    gap = cut - cut.unsqueeze(-1)
    expected = torch.where(gap == 0, 0.0, turned / gap)
    torch.testing.assert_close(actual, expected)


TIED = {
    "identity": torch.eye(4, dtype=torch.float64),
    "two ties": torch.diag(torch.tensor([2.0, 2.0, 0.5, 0.5], dtype=torch.float64)),
    "null": torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)),
    "zero": torch.zeros(4, 4, dtype=torch.float64),
}


@every_name
@pytest.mark.parametrize("a", TIED.values(), ids=TIED)
def test_finite_and_antisymmetric_at_ties(gradient: str, a: Tensor):
    settings = {"gradient": gradient, "drop_last": 1}
    with warnings.catch_warnings():
        if gradient == "exact":
            warnings.simplefilter("ignore", NumericalWarning)
        g = noise(4, 4)
        x = vector_gradient(lambda x: eigh(x, **settings)[1], a, g)
        assert torch.isfinite(x).all()
        for part in (0, 2):
            b = vector_gradient(lambda x, part=part: svd(x, **settings)[part], a, g)
            assert torch.isfinite(b).all()
        # With antisymmetric factors, an upstream gradient whose product with the vectors is
        # symmetric, one that no rotation of the vectors changes, leaves nothing.
        vectors = eigh(a)[1]
        x = vector_gradient(lambda x: eigh(x, **settings)[1], a, vectors @ (g + g.mT))
        assert x.abs().max() <= 1e-30 + 1e-15 * largest_factor(gradient)


def largest_factor(gradient: str) -> float:
    return {"pade": 1e17, "truncated": 1e11, "top_n": 1e11, "taylor": 1e3}.get(gradient, 1e2)


@pytest.mark.parametrize(
    ("gradient", "factor"),
    [
        ("taylor", 101.0),
        ("power_iteration", 20.0),
        ("truncated", 1e10),
        ("top_n", 1e10),
        ("pade", 2.0**52),
    ],
)
def test_factor_at_a_tie(gradient: str, factor: float):
    # Of two equal eigenvalues 1 the one that comes first from above counts as the larger.
    a = torch.eye(3, dtype=torch.float64)
    vectors = eigh(a)[1]
    inner = torch.zeros(3, 3, dtype=torch.float64)
    inner[1, 2] = 1.0
    x = vector_gradient(lambda x: eigh(x, gradient=gradient, drop_last=0)[1], a, vectors @ inner)
    expected = torch.zeros(3, 3, dtype=torch.float64)
    expected[1, 2] = expected[2, 1] = factor / 2
    torch.testing.assert_close(vectors.mT @ x @ vectors, expected)


@every_name
def test_gradient_of_one_matrix_does_not_depend_on_the_batch(gradient: str):
    settings = {"gradient": gradient, "drop_last": 2}
    batch = torch.stack([spd(log_spectrum(5, 10.0**k), seed=k) for k in range(1, 4)])
    g = noise(3, 5, 5)
    scaled = batch.clone()
    scaled[1] *= 1e20
    for function in (eigh, svd):
        together = vector_gradient(lambda x, f=function: f(x, **settings)[-1], batch, g)
        other = vector_gradient(lambda x, f=function: f(x, **settings)[-1], scaled, g)
        for i in (0, 2):
            alone = vector_gradient(lambda x, f=function: f(x, **settings)[-1], batch[i], g[i])
            assert relative(together[i], alone) <= 1e-9
            assert torch.equal(together[i], other[i])


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", APPROXIMATE)
def test_second_derivative_of_an_approximation_is_refused(gradient: str):
    for function in (eigh, svd):
        x = spd(GEOMETRIC).requires_grad_()
        vectors = function(x, gradient=gradient, drop_last=1)[-1]
        (g,) = torch.autograd.grad((vectors**3).sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match=f"^{function.__name__} has a second"):
            g.sum().backward()


@every_name
def test_negative_eigenvalues(gradient: str):
    a = spd([-1.0, 1.0, 2.0])
    if gradient in ("exact", "truncated"):
        assert eigh(a, gradient=gradient)[0][0] < 0
        return
    with pytest.raises(NotPositiveDefiniteError, match="needs eigenvalues >= 0") as caught:
        eigh(a, gradient=gradient, drop_last=1)
    assert f"gradient='{gradient}'" in str(caught.value)
    assert "got one of -1 " in str(caught.value)
    nearly = torch.diag(torch.tensor([1.0, 0.5, -1e-7])).requires_grad_()
    vectors = eigh(nearly, gradient=gradient, drop_last=1)[1]
    (vectors * noise(3, 3).float()).sum().backward()
    assert torch.isfinite(nearly.grad).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gradient": "newton"}, "needs gradient to be one of exact, taylor"),
        ({"gradient": "top_n"}, "needs drop_last in [0, 3) for a matrix of shape (3, 3)"),
        ({"gradient": "top_n", "drop_last": -1}, "got -1; at least one direction"),
    ],
    ids=str,
)
@pytest.mark.bad_input
def test_settings_that_cannot_work(settings: dict[str, object], message: str):
    for function in (eigh, svd):
        with pytest.raises(ConfigError, match=re.escape(message)) as caught:
            function(torch.eye(3), **settings)
        assert str(caught.value).startswith(f"{function.__name__} needs ")


@every_name
def test_autocast_changes_no_gradient(gradient: str):
    a, g = spd(GEOMETRIC).float(), noise(5, 5).float()
    a = (a + a.mT) / 2
    for function in (eigh, svd):

        def vectors(x: Tensor, function: Callable[..., tuple[Tensor, ...]] = function) -> Tensor:
            return function(x, gradient=gradient, drop_last=1)[-1]

        expected = vector_gradient(vectors, a, g)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = vector_gradient(vectors, a, g)
        assert torch.equal(actual, expected)


def test_vmap():
    batch = torch.stack([spd(GEOMETRIC), spd(log_spectrum(5, 1e3))])
    g = noise(5, 5)
    for function in (eigh, svd):

        def loss(a: Tensor, function: Callable[..., tuple[Tensor, ...]] = function) -> Tensor:
            return (function(a)[-1] * g).sum()

        mapped = torch.func.vmap(torch.func.grad(loss))(batch)
        expected = vector_gradient(lambda x, f=function: f(x)[-1], batch, g.expand(2, 5, 5))
        torch.testing.assert_close(mapped, expected)
