"""What each method of ``polar_factor`` promises: accuracy, null directions, warnings."""

import warnings

import pytest
import torch

from linalg.spies import counted_svds
from orthotrain.errors import ConfigError, NumericalWarning
from orthotrain.linalg import PolarMethod, _polar_of_one, _polar_routes, polar, polar_factor
from orthotrain.linalg._coefficients import polar_express
from reference import linalg as twins
from reference.matrices import from_spectrum, generator, log_spectrum, orthonormal

EPS = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps
METHODS = ("auto", "svd", "gram", "qdwh", "newton_schulz", "polar_express")


def spectrum(shape: str, k: int, condition: float) -> torch.Tensor:
    """Different ways to have one condition; the Gram matrix finds "half" the hardest."""
    small = torch.linspace(1, 3, k, dtype=torch.float64) / condition
    match shape:
        case "log":
            return log_spectrum(k, condition)
        case "half":
            return torch.cat(
                [
                    torch.ones(k - k // 2, dtype=torch.float64),
                    torch.full((k // 2,), 1 / condition, dtype=torch.float64),
                ]
            )
        case "one small":
            return torch.cat([torch.ones(k - 1, dtype=torch.float64), small[:1]])
        case _:
            return torch.cat([torch.ones(1, dtype=torch.float64), small[: k - 1]])


def distance(q: torch.Tensor, exact: torch.Tensor) -> float:
    return float((q.double() - exact).norm()) / min(exact.shape) ** 0.5


def single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute as an accelerator does: the iterations in float32."""
    monkeypatch.setattr(polar, "working_dtype", lambda a: torch.float32)


@pytest.mark.parametrize("shape", ["log", "half", "one small", "one large"])
@pytest.mark.parametrize("condition", [1e3, 2e4, 1e5])
def test_auto_is_within_a_millionth_up_to_condition_1e5_without_the_svd(
    monkeypatch: pytest.MonkeyPatch, shape: str, condition: float
):
    taken = counted_svds(monkeypatch)
    # At 140 the Gram matrix is formed in blocks of unequal size.
    for m, n in ((27, 64), (140, 300)):
        a = from_spectrum(spectrum(shape, m, condition), m, n).float()
        q = polar_factor(a)
        exact = twins.polar_factor(a)
        assert distance(q, exact) <= 1e-6
        # And more: right to the rounding of the result, entry by entry.
        assert (q.double() - exact).abs().max() <= 2 * EPS32
    assert taken == []


@pytest.mark.parametrize("shape", ["log", "half", "one small", "one large"])
@pytest.mark.parametrize("condition", [1e6, 1e7, 1e8])
def test_a_second_gram_matrix_takes_the_place_of_the_svd(
    monkeypatch: pytest.MonkeyPatch, shape: str, condition: float
):
    taken = counted_svds(monkeypatch)
    # By itself the first takes the SVD, which costs less there.
    for m, n in ((27, 64), (80, 90), (140, 300)):
        a = from_spectrum(spectrum(shape, m, condition), m, n).float()
        # One rounding of float32, and the rounding of float64 in the smallest direction.
        budget = 3e-8 + 3 * condition * EPS
        for q in (polar_factor(a, rtol=0.0), polar_factor(a.unsqueeze(0), rtol=0.0)[0]):
            assert distance(q, twins.polar_factor(a, rtol=0)) <= budget
        # With the default tolerance what is below it is null.
        q = polar_factor(a)
        assert distance(q, twins.polar_factor(a, rtol=4 * EPS32)) <= budget
    assert taken == []


@pytest.mark.parametrize("shape", ["log", "half", "one small", "one large"])
@pytest.mark.parametrize("condition", [1e6, 1e7, 1e8])
def test_auto_is_never_worse_than_the_svd_in_float32(shape: str, condition: float):
    a = from_spectrum(spectrum(shape, 48, condition), 300, 48).float()
    exact = twins.polar_factor(a, rtol=0)
    u, _, vh = torch.linalg.svd(a, full_matrices=False)
    mine = distance(polar_factor(a, rtol=0.0), exact)
    assert mine <= 1e-6
    assert mine <= distance(u @ vh, exact)


@pytest.mark.parametrize("shape", ["log", "half", "one small", "one large"])
@pytest.mark.parametrize("condition", [1e3, 1e4, 1e5, 3e5])
@pytest.mark.parametrize("null", [None, 1e-4, 0.3], ids=str)
def test_refined_gram_route_has_the_error_of_its_second_order(
    shape: str, condition: float, null: float | None
):
    values = spectrum(shape, 40, condition)
    if null is not None:
        values = torch.cat([values, torch.full((5,), null / condition, dtype=torch.float64)])
    a = from_spectrum(values, 200, len(values))
    rtol = 0.6 / condition
    rule = _polar_routes.Rule("gram", torch.float64, EPS32, rtol, False, 0, True)
    _, v = torch.linalg.eigh(_polar_routes.lower_gram(a, a.dtype))
    q, trusted = _polar_routes._refined(a @ v, v, rule)
    error = float((q - twins.polar_factor(a, rtol=rtol)).norm())
    # Measured up to 6 condition eps and 4 times the square of what is of first order.
    first_order = condition**2 * EPS
    assert error <= 32 * condition * EPS + 16 * first_order**2
    assert bool(trusted)


def test_refined_gram_route_is_not_trusted_where_it_fails():
    a = from_spectrum(spectrum("one large", 40, 1e7), 200, 40)
    rule = _polar_routes.Rule("gram", torch.float64, EPS32, 1e-8, False, 0, True)
    _, v = torch.linalg.eigh(_polar_routes.lower_gram(a, a.dtype))
    q, trusted = _polar_routes._refined(a @ v, v, rule)
    assert not bool(trusted)
    assert distance(q, twins.polar_factor(a)) > 1e-6


@pytest.mark.parametrize("tiny", [1e-12, 1e-170])
def test_without_a_tolerance_the_tiniest_direction_counts(tiny: float):
    a = torch.diag(torch.tensor([1.0, tiny], dtype=torch.float64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        for method in ("auto", "svd", "gram", "qdwh"):
            q = polar_factor(a, method=method, rtol=0.0)
            torch.testing.assert_close(q, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (4, 4)], ids=str)
def test_complete_makes_orthonormal_what_has_null_directions(
    method: PolarMethod, dtype: torch.dtype, shape: tuple[int, int]
):
    deficient = from_spectrum([2.0, 0.3], *shape, seed=3).to(dtype)
    full = from_spectrum([2.0, 1.0, 0.6, 0.3], *shape, seed=5).to(dtype)
    a = torch.stack([deficient, full, torch.zeros(shape, dtype=dtype)])
    with warnings.catch_warnings():
        # "qdwh" and "gram" say that they took the SVD.
        warnings.simplefilter("ignore", NumericalWarning)
        q = polar_factor(a, method=method, complete=True)
        plain = polar_factor(a, method=method)
    eps = torch.finfo(dtype).eps
    for each in q[:2]:
        tall = each if each.shape[0] >= each.shape[1] else each.mT
        assert (tall.mT @ tall - torch.eye(4, dtype=dtype)).abs().max() <= 32 * eps
    assert torch.equal(q[1], plain[1])
    # A zero matrix has no direction to complete.
    assert torch.equal(q[2], torch.zeros(shape, dtype=dtype))
    expected, onto = twins.completed_polar_factor(deficient, rtol=1e-4)
    assert (q[0].double() @ onto - expected).abs().max() <= 64 * eps
    if method not in ("newton_schulz", "polar_express"):
        assert (plain[0].double() - expected).abs().max() <= 64 * eps


def test_a_small_matrix_of_lower_rank_keeps_its_null_directions_or_completes_them():
    half = from_spectrum(log_spectrum(3, 10.0), 9, 3).float()
    for a in (torch.cat([half, half], 1), torch.cat([half, torch.zeros_like(half)], 1)):
        exact = twins.polar_factor(a, rtol=1e-6)
        assert (polar_factor(a).double() - exact).abs().max() <= 2 * EPS32
        q = polar_factor(a, complete=True)
        assert (q.mT @ q - torch.eye(6)).abs().max() <= 8 * EPS32


@pytest.mark.parametrize(
    "shape",
    [(32_768, 6), (6, 33_000), pytest.param((10_000, 140), marks=pytest.mark.slow)],
    ids=str,
)
def test_a_gram_matrix_of_many_rows_is_summed_in_parts(shape: tuple[int, int]):
    # In one product its rounding is up to ten times that of a few hundred rows: 1.1e-7 and more.
    a = from_spectrum(spectrum("half", min(shape), 1e4), *shape).float()
    exact = twins.polar_factor(a)
    assert distance(polar_factor(a), exact) <= 6e-8
    assert distance(polar_factor(torch.stack([a, a]))[1], exact) <= 6e-8


@pytest.mark.parametrize("condition", [100.0, 1e5, 1e8])
@pytest.mark.parametrize("shape", [(400, 400), (12, 7), (7, 12)], ids=str)
def test_one_matrix_and_a_batch_of_one_have_the_same_factor(
    shape: tuple[int, int], condition: float
):
    # The first goes the lean way. From 384 columns on half of the inverse root is computed.
    a = from_spectrum(log_spectrum(min(shape), condition), *shape).float()
    alone, batch = polar_factor(a, rtol=0.0), polar_factor(a.unsqueeze(0), rtol=0.0)[0]
    assert alone.is_contiguous()
    torch.testing.assert_close(alone, batch, atol=2 * EPS32, rtol=0)
    tall = alone.double() if shape[0] >= shape[1] else alone.double().mT
    assert (tall.mT @ tall - torch.eye(min(shape)).double()).abs().max() <= 3 * EPS32
    assert torch.equal(polar_factor(torch.nn.Parameter(a).detach(), rtol=0.0), alone)


@pytest.mark.parametrize("shape", [(500, 450), (450, 500)], ids=str)
def test_many_directions_are_kept_beside_null_ones(shape: tuple[int, int]):
    values = torch.cat([torch.linspace(1, 0.1, 400), torch.zeros(50)])
    a = from_spectrum(values, *shape).float()
    q = polar_factor(a)
    assert q.shape == a.shape
    assert distance(q, polar_factor(a, method="svd")) <= 2e-6
    assert torch.linalg.vector_norm(q.double()).square().item() == pytest.approx(400, rel=1e-5)


@pytest.mark.parametrize("shape", [(0, 4096, 27), (2, 0, 27, 4096)], ids=str)
def test_no_matrices_of_many_rows_have_no_factors(shape: tuple[int, ...]):
    assert polar_factor(torch.zeros(shape)).shape == shape


def test_a_device_without_float64_goes_the_long_way(monkeypatch: pytest.MonkeyPatch):
    def refused(_: torch.Tensor) -> None:
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(torch.Tensor, "double", refused)
    assert _polar_of_one._factor(torch.eye(4)) is None


@pytest.mark.parametrize("shape", [(9, 3), (90, 40)], ids=str)
def test_a_direction_near_the_tolerance_is_measured_before_it_is_kept(shape: tuple[int, int]):
    # Its eigenvalue leaves both open: the tolerance is 4.8e-7, and noise of that a tenth.
    for smallest, rank in ((4.5e-7, shape[1] - 1), (5e-7, shape[1])):
        a = from_spectrum([1.0] * (shape[1] - 1) + [smallest], *shape)
        # In float32 it would drown in rounding, but for a matrix that is exact.
        a = torch.diag_embed(torch.linalg.svdvals(a)).float()
        a = torch.cat([a, torch.zeros(shape[0] - shape[1], shape[1])])
        assert round(float(polar_factor(a).square().sum()), 3) == rank


def test_half_precision_by_itself_is_the_rounded_factor():
    for dtype in (torch.float16, torch.bfloat16):
        a = from_spectrum(log_spectrum(5, 20.0), 9, 5).to(dtype)
        q = polar_factor(a)
        assert q.dtype == dtype
        assert torch.equal(q, polar_factor(a.float()).to(dtype))


def test_derivative_of_a_completed_factor_holds_what_was_completed_fixed():
    upstream = torch.randn(5, 4, generator=generator(2), dtype=torch.float64)
    grads = []
    for complete in (False, True):
        a = from_spectrum([2.0, 1.0], 5, 4, seed=1).requires_grad_()
        with pytest.warns(NumericalWarning, match="2 of 4 directions are null"):
            polar_factor(a, complete=complete).backward(upstream)
        grads.append(a.grad)
    torch.testing.assert_close(grads[1], grads[0], atol=64 * EPS, rtol=0)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5, 1e8, 1e12])
@pytest.mark.parametrize("shape", [(40, 25), (25, 25)], ids=str)
def test_qdwh_is_as_exact_as_the_svd(condition: float, shape: tuple[int, int]):
    a = from_spectrum(log_spectrum(25, condition), *shape)
    q = polar_factor(a, method="qdwh")
    # Measured up to 1.1 condition eps, and 9 eps from orthonormal.
    assert (q - twins.polar_factor(a, rtol=0)).abs().max() <= 8 * condition * EPS + 32 * EPS
    assert (q.mT @ q - torch.eye(25, dtype=torch.float64)).abs().max() <= 32 * EPS


def test_qdwh_leaves_null_directions_to_the_svd_and_says_so():
    a = torch.stack([from_spectrum(s, 6, 3) for s in ([2.0, 1.0], [3.0, 2.0, 1.0], [0.0])])
    with pytest.warns(NumericalWarning, match="2 of 3 matrices may have null directions"):
        q = polar_factor(a, method="qdwh")
    for each, given in zip(q, a, strict=True):
        assert (each - twins.polar_factor(given)).abs().max() <= 32 * EPS


@pytest.mark.parametrize("method", METHODS)
def test_neither_value_nor_derivative_depends_on_the_batch(method: PolarMethod):
    easy = from_spectrum(log_spectrum(6, 2.0), 9, 6, seed=1)
    hard = from_spectrum(log_spectrum(6, 90.0), 9, 6, seed=2)
    results = []
    for other in (easy, hard, 1e20 * easy):
        a = torch.stack([easy, other]).requires_grad_()
        q = polar_factor(a, method=method)
        q[0].sum().backward()
        results.append((q[0].detach(), a.grad[0]))
        assert torch.equal(a.grad[1], torch.zeros(9, 6))
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_newton_schulz_stops_when_it_stands_still():
    a = from_spectrum(log_spectrum(6, 1e3), 9, 6)
    # A million steps would take minutes.
    assert torch.equal(
        polar_factor(a, method="newton_schulz", max_iters=10**6),
        polar_factor(a, method="newton_schulz", max_iters=60),
    )


@pytest.mark.parametrize("condition", [1e3, 1e6])
def test_newton_schulz_waits_for_one_small_direction(condition: float):
    # All others arrive long before it; above rtol, 5e-7, it is no null direction.
    a = from_spectrum(spectrum("one small", 6, condition), 9, 6).float()
    q = polar_factor(a, method="newton_schulz")
    assert distance(q, twins.polar_factor(a)) <= 1e-6


@pytest.mark.parametrize("condition", [1.0, 30.0, 1e3])
def test_newton_schulz_takes_the_steps_of_the_cubic(condition: float):
    a = from_spectrum(log_spectrum(6, condition), 9, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        q = polar_factor(a, method="newton_schulz", max_iters=5)
    expected = twins.polar_factor_by_polynomials(a, [(1.5, -0.5, 0.0)] * 5)
    assert (q - expected).abs().max() <= 64 * EPS


@pytest.mark.parametrize("steps", [1, 3, 5, 8, 11])
def test_polar_express_applies_its_polynomials(steps: int):
    a = from_spectrum(log_spectrum(6, 1e4), 6, 9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        q = polar_factor(a, method="polar_express", max_iters=steps)
    expected = twins.polar_factor_by_polynomials(a, polar_express(steps))
    # A direction that was raised by 8000 carries its rounding along.
    assert (q - expected).abs().max() <= 1e4 * EPS


@pytest.mark.parametrize(
    ("method", "condition", "too_few", "enough"),
    [
        ("newton_schulz", 1e2, 8, 25),
        ("newton_schulz", 1e6, 30, 60),
        ("polar_express", 1e2, 5, 8),
        ("polar_express", 1e5, 8, 13),
    ],
)
def test_iteration_that_does_not_reach_its_accuracy_says_how_far_it_is(
    method: PolarMethod, condition: float, too_few: int, enough: int
):
    a = from_spectrum(log_spectrum(20, condition), 50, 20).float()
    with pytest.warns(NumericalWarning, match=f"{method} left 1 of 1 matrices") as caught:
        q = polar_factor(a, method=method, max_iters=too_few).double()
    residual = float((q @ q.mT @ q - q).norm() / 20**0.5)
    assert f"up to {residual:.1e}" in str(caught[0].message)
    # And silence where it does.
    q = polar_factor(a, method=method, max_iters=enough)
    assert distance(q, twins.polar_factor(a)) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_newton_schulz_ends_before_null_directions_have_grown(dtype: torch.dtype):
    a = from_spectrum([2.0, 1.0], 7, 4).to(dtype)
    s = torch.linalg.svdvals(polar_factor(a, method="newton_schulz"))
    assert (s[:2] - 1).abs().max() <= 32 * torch.finfo(dtype).eps
    # Nine steps of 1.5, from the rounding of the input.
    assert s[2:].max() <= 64 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_polar_express_says_that_null_directions_have_grown(dtype: torch.dtype):
    a = from_spectrum([2.0, 1.0], 7, 4).to(dtype)
    with pytest.warns(NumericalWarning, match="polar_express left 1 of 1 matrices"):
        s = torch.linalg.svdvals(polar_factor(a, method="polar_express"))
    assert (s[:2] - 1).abs().max() <= 32 * torch.finfo(dtype).eps
    assert s[2:].max() <= 1e4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("method", ["svd", "qdwh", "newton_schulz", "polar_express"])
@pytest.mark.parametrize("condition", [1.0, 1e2])
def test_float32_as_on_an_accelerator(
    monkeypatch: pytest.MonkeyPatch, method: PolarMethod, condition: float
):
    single_precision(monkeypatch)
    a = from_spectrum(log_spectrum(48, condition), 48, 200).float()
    # Measured up to .3 condition eps and 20 eps.
    assert distance(polar_factor(a, method=method), twins.polar_factor(a)) <= (
        (condition + 32) * EPS32
    )


@pytest.mark.parametrize("seed", range(4))
def test_twelve_steps_of_polar_express_in_float32_stay_finite_at_rank_one(
    monkeypatch: pytest.MonkeyPatch, seed: int
):
    # The one large value starts at the very end of the interval, where polynomials are steep.
    single_precision(monkeypatch)
    a = from_spectrum([1.0] + [1e-6] * 20, 300, 128, seed=seed).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumericalWarning)
        q = polar_factor(a, method="polar_express", max_iters=16)
    assert float(torch.linalg.matrix_norm(q, 2)) <= 1 + 32 * EPS32


@pytest.mark.parametrize("method", ["svd", "qdwh", "polar_express"])
@pytest.mark.parametrize("shape", [(30, 12), (12, 30)], ids=str)
def test_derivative_of_float32_is_right_whatever_the_method(
    method: PolarMethod, shape: tuple[int, int]
):
    upstream = orthonormal(*sorted(shape, reverse=True), seed=4)
    upstream = upstream if shape[0] > shape[1] else upstream.mT
    grads = []
    for dtype, each in ((torch.float64, "svd"), (torch.float32, method)):
        a = from_spectrum(log_spectrum(12, 50.0), *shape).to(dtype).requires_grad_()
        polar_factor(a, method=each).backward(upstream.to(dtype))
        grads.append(a.grad.double())
    # Condition 50; the input is rounded by eps of its largest value.
    assert (grads[1] - grads[0]).norm() <= 64 * 50 * EPS32 * grads[0].norm()


@pytest.mark.bad_input
@pytest.mark.parametrize("max_iters", [0, -1, 2.5, True])
@pytest.mark.parametrize("method", ["newton_schulz", "polar_express"])
def test_max_iters_that_counts_nothing_is_refused(method: PolarMethod, max_iters: object):
    with pytest.raises(ConfigError, match="polar_factor needs max_iters to be a whole number"):
        polar_factor(torch.eye(2), method=method, max_iters=max_iters)


@pytest.mark.bad_input
@pytest.mark.parametrize("method", ["auto", "svd", "gram", "qdwh"])
def test_max_iters_of_no_use_is_refused(method: PolarMethod):
    with pytest.raises(ConfigError, match="only with 'newton_schulz' or 'polar_express', got 5"):
        polar_factor(torch.eye(2), method=method, max_iters=5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.compile warns of its own doings at graph breaks.
def test_code_that_calls_it_compiles():
    def loss(x: torch.Tensor) -> torch.Tensor:
        return (2 * polar_factor(2 * x)).pow(3).sum()

    found = []
    for call in (loss, torch.compile(loss, backend="eager")):
        a = from_spectrum([3.0, 2.0, 1.0], 5, 3).requires_grad_()
        call(a).backward()
        found.append(a.grad)
    assert torch.equal(found[0], found[1])
