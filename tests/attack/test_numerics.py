"""Every kernel over conditions, sizes and scales: right to its digits, or said so, never silent.

Small matrices are held to fifty digits (``attack.exact``), larger ones to the float64 twins of
``reference``. A result is right where it is off by few units in the last place of its own dtype,
and of float64 times what the input's condition makes of them. Where that leaves no digit, what is
returned only has to be finite.
"""

import math
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from attack import exact
from attack.counts import Counts, times
from orthotrain import linalg
from orthotrain.errors import NumericalWarning, OrthotrainError
from orthotrain.linalg.condition import condition_readings
from reference import convolution
from reference import linalg as twins
from reference import spd_root as root_twins
from reference.matrices import from_spectrum, log_spectrum, normal

CEILINGS = {"silent": 0, "crash": 0, "wrongly refused": 0}
EPS = torch.finfo(torch.float64).eps
CONDITIONS = [10.0**i for i in range(17)]
SCALES = [1e-30, 1e-15, 1e-5, 1.0, 1e5, 1e15, 1e30]
SMALL, SIZES = (1, 2, 3, 5), (1, 2, 3, 5, 8, 16, 33, 64, 100, 256)
DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Case:
    """One input: how it is made, and what its condition is as it stands in its dtype."""

    size: int
    condition: float
    scale: float
    dtype: torch.dtype
    seed: int


@dataclass(frozen=True)
class Row:
    """A kernel of the sweep.

    Attributes:
        call: Takes the input in its dtype.
        small: What it should give, in many digits.
        large: The same by a float64 twin; the first where a matrix is small for it, too.
        takes: ``matrix``, ``tall``, ``spd``, ``spectrum``, ``skew``, ``kernel`` or ``pair``.
        grows: How the error of float64 grows: with a function of the condition and of the norm.
        reach: The largest condition for which its default steps are enough; beyond it, a result
            "is wrong without a word", as its documentation says, and only has to be finite.
        products: How many products in the dtype of the result follow one another.
    """

    call: Callable
    small: Callable
    large: Callable | None = None
    takes: str = "matrix"
    grows: Callable = lambda condition, norm: 1.0
    reach: float = math.inf
    products: int = 1


def with_condition(condition, norm):
    return condition


def with_root(condition, norm):
    # Where the smallest eigenvalue is rounding, its root is off by the root of rounding.
    return min(math.sqrt(condition), 1 / math.sqrt(EPS))


def with_norm(condition, norm):
    return max(1.0, norm)


def singular_values(a):
    return torch.linalg.svdvals(a.double())


def rows():
    for method in ("auto", "svd", "gram", "qdwh", "newton_schulz", "polar_express"):
        call = partial(linalg.polar_factor, method=method)
        # Products alone cannot cut a direction that is null in float32 and not zero.
        reach = 1e6 if method in ("newton_schulz", "polar_express") else math.inf
        for takes in ("matrix", "tall"):
            name = f"polar_factor {method} {takes}"
            yield name, Row(call, exact.polar_factor, _polar, takes, with_condition, reach)
    reaches = {"auto": math.inf, "eigh": math.inf, "newton_schulz": 1e2, "polar_express": 1e3}
    for method, reach in reaches.items():
        for function, small, large, grows in (
            (linalg.spd_sqrt, exact.spd_sqrt, root_twins.sqrt, with_root),
            (linalg.spd_inv_sqrt, exact.spd_inv_sqrt, root_twins.inv_sqrt, with_condition),
        ):
            call = partial(function, method=method)
            yield f"{function.__name__} {method}", Row(call, small, large, "spd", grows, reach)
    for name, call in (
        ("thin_svd", lambda a: linalg.thin_svd(a)[1]),
        ("svd", lambda a: linalg.svd(a)[1]),
    ):
        yield name, Row(call, exact.singular_values, singular_values)
    for name, call in (
        ("thin_svd product", lambda a: _product(*linalg.thin_svd(a))),
        ("svd product", lambda a: _product(*linalg.svd(a))),
        ("metric_svd product", lambda a: _product(*_metric(a))),
    ):
        yield name, Row(call, lambda a: a.double(), takes="tall")
    yield (
        "eigh",
        Row(
            lambda a: linalg.eigh(a)[0], exact.eigenvalues,
            lambda a: torch.linalg.eigvalsh(a.double()), "spd",
        ),
    )  # fmt: skip
    yield (
        "metric_svd",
        Row(lambda a: linalg.metric_svd(a).s, exact.singular_values, singular_values),
    )
    numbers = Row(
        linalg.condition_number, exact.condition_number,
        lambda a: singular_values(a)[0] / singular_values(a)[-1], "matrix", with_condition,
    )  # fmt: skip
    yield "condition_number", numbers
    yield (
        "condition_readings",
        Row(
            lambda a: condition_readings(a).naive_float64, exact.condition_number,
            numbers.large, "matrix", with_condition,
        ),
    )  # fmt: skip
    ranks = twins.effective_rank
    yield "effective_rank", Row(linalg.effective_rank, exact.effective_rank, ranks, "spectrum")
    for rule in ({"rtol": 0.3}, {"energy": 0.83}):
        twin = partial(twins.numerical_rank, **rule)
        yield (
            f"numerical_rank {rule}",
            Row(partial(linalg.numerical_rank, **rule), twin, None, "spectrum"),
        )
    yield "ranks_within_budget", Row(_budgeted, _best, takes="spectrum")
    stability = twins.basis_stability
    yield "basis_stability", Row(linalg.basis_stability, stability, None, "pair", with_condition)
    yield (
        "basis_stability_from_polar",
        Row(
            lambda a, b: linalg.basis_stability_from_polar(*map(linalg.polar_factor, (a, b))),
            stability, None, "pair", with_condition,
        ),
    )  # fmt: skip
    yield (
        "mixing_similarity",
        Row(linalg.mixing_similarity, twins.mixing_similarity, None, "pair", with_condition),
    )
    yield "skew_part", Row(linalg.skew_part, lambda a: (a.double() - a.double().mT) / 2)
    yield (
        "cayley_transform",
        Row(linalg.cayley_transform, exact.cayley, _cayley, "skew", with_norm),
    )
    yield (
        "skew_exponential",
        Row(linalg.skew_exponential, exact.exponential, _exponential, "skew", with_norm),
    )
    yield (
        "conv_skew_part",
        Row(
            linalg.conv_skew_part,
            lambda k: (k.double() - k.double().flip(2, 3).transpose(0, 1)) / 2, takes="kernel",
        ),
    )  # fmt: skip
    yield (
        "conv_exponential",
        Row(
            lambda k: linalg.conv_exponential(_image(k), k, terms=6), _convolved, takes="kernel",
            products=6,  # one convolution per term
        ),
    )  # fmt: skip


def _polar(a):
    return twins.polar_factor(a, rtol=exact.null_below(a))


def _product(u, s, vh):
    return (u * s.unsqueeze(-2)) @ vh


def _metric(a):
    return linalg.truncated(linalg.metric_svd(a), min(a.shape))


def _cayley(a):
    eye = torch.eye(len(a), dtype=torch.float64)
    return torch.linalg.solve(eye - a.double() / 2, eye + a.double() / 2)


def _exponential(a):
    return torch.matrix_exp(a.double())


def _budgeted(s):
    count = len(s)
    ranks = linalg.ranks_within_budget(
        [s, s], costs=[lambda r: r, lambda r: 2 * r], budget=max(3, 2 * count), min_ranks=[1, 1]
    )
    return torch.tensor(ranks)


def _best(s):
    """The same in float64 of numbers near one: scale changes no decision."""
    unit = s.double() / s.double().max()
    return _budgeted(unit)


def _image(kernel):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(1, len(kernel), 4, 5, generator=generator).to(kernel.dtype)


def _convolved(kernel):
    """The series with a dense matrix in place of the convolution."""
    operator = convolution.dense_operator(kernel.double(), 4, 5)
    term = total = _image(kernel).double().flatten()
    for i in range(1, 7):
        term = operator @ term / i
        total = total + term
    return total.reshape(1, len(kernel), 4, 5)


ROWS = dict(rows())
#: What the sweep leaves out: types, a rule for dtypes, a bound that is one by its definition and
#: by a power iteration, and two lines of arithmetic on numbers.
NOT_SWEPT = {
    "ConditionReadings", "ConvSpectralBound", "MetricSVD", "PolarMethod", "RootGradient",
    "RootMethod", "SpectralGradient", "working_dtype", "conv_spectral_bound",
    "exponential_remainder",
}  # fmt: skip


def test_every_public_kernel_is_swept():
    swept = {name.split()[0] for name in ROWS} | {"truncated"}
    assert swept | NOT_SWEPT == set(linalg.__all__)


def inputs_of(row, case):
    n, seed = case.size, case.seed
    spectrum = log_spectrum(n, case.condition)
    match row.takes:
        case "spectrum":
            tensors = [spectrum]
        case "spd":
            tensors = [root_twins.spd(spectrum, seed=seed)]
        case "tall":
            tensors = [from_spectrum(spectrum, 2 * n + 1, n, seed=seed)]
        case "pair":
            first = from_spectrum(spectrum, n + 2, n, seed=seed)
            tensors = [first, first + 0.1 * from_spectrum(spectrum, n + 2, n, seed=seed + 7)]
        case "skew":
            tensors = [normal(n, n, seed=seed)]
            tensors = [(a - a.mT) / 2 / n for a in tensors]
        case "kernel":
            tensors = [normal(min(n, 3), min(n, 3), 3, 3, seed=seed)]
        case _:
            tensors = [from_spectrum(spectrum, n, n, seed=seed)]
    # A norm of 1e15 leaves no digit of an exponential or of a series.
    scale = min(case.scale, 10.0) if row.takes in ("skew", "kernel") else case.scale
    scaled = [(scale * one).to(case.dtype) for one in tensors]
    return [(one - one.mT) / 2 for one in scaled] if row.takes == "skew" else scaled


def condition_of(row, inputs):
    """Of the input as it stands in its dtype, and its norm; an eigenvalue below zero counts."""
    if row.takes in ("spectrum", "kernel"):
        return 1.0, 1.0
    values = [singular_values(one) for one in inputs]
    if row.takes == "spd":
        least = torch.linalg.eigvalsh(inputs[0].double())[0]
        values = [torch.stack([values[0][0], least])]
    worst = max(float(s[0] / s[-1]) if s[-1] > 0 else math.inf for s in values)
    return worst, max(float(s[0]) for s in values)


def outcome_of(row, case):
    """The class of what a kernel makes of an input, and how far off it is."""
    inputs = inputs_of(row, case)
    before = [one.clone() for one in inputs]
    condition, norm = condition_of(row, inputs)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            got = row.call(*inputs)
    except OrthotrainError:
        # Where the condition leaves digits, and the scale is not at the end of what a dtype holds.
        fine = (
            condition * torch.finfo(case.dtype).eps < 0.1
            and condition < 1e7
            and abs(math.log10(case.scale)) < 15
        )
        return ("wrongly refused" if fine else "refused"), ""
    except Exception as error:
        return "crash", repr(error)
    if not all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True)):
        return "silent", "the input was changed"
    if any(issubclass(one.category, NumericalWarning) for one in said):
        return "warned", ""
    limits = EPS * row.grows(condition, norm) * 16 * max(case.size, 4)
    # Which directions are null is decided by rounding in the dtype of the input.
    unsure = row.takes == "pair" and condition * torch.finfo(case.dtype).eps * case.size > 1e-5
    if limits > 0.1 or unsure or condition > row.reach:
        return ("undetermined" if bool(got.isfinite().all()) else "silent"), "not finite"
    twin = row.large if row.large is not None and case.size > max(SMALL) else row.small
    want = torch.as_tensor(twin(*inputs), dtype=torch.float64)
    if not got.is_floating_point():
        return ("right" if torch.equal(got.double(), want) else "silent"), (got, want)
    # From 64 on, the last product of a root is in the dtype of its result, as the test's own is.
    budget = limits + row.products * max(4, case.size**0.5) * torch.finfo(got.dtype).eps
    largest = float(want.abs().max())
    off = float((got.double() - want).abs().max())
    # What the dtype cannot hold in full digits: below its smallest normal number.
    off = max(0.0, off - 8 * case.size * torch.finfo(got.dtype).tiny)
    share = off / largest if largest > 0 else off
    right = math.isfinite(share) and share <= budget
    return ("right" if right else "silent"), f"off by {share:.2g}, budget {budget:.2g}"


def sweep(counts, *, number, sizes, seed):
    chance = random.Random(seed)
    for name, row in ROWS.items():
        for i in range(number):
            size = chance.choice(SMALL if i % 2 else sizes)
            case = Case(
                size, chance.choice(CONDITIONS), chance.choice(SCALES), chance.choice(DTYPES),
                chance.randrange(1000),
            )  # fmt: skip
            outcome, text = outcome_of(row, case)
            if outcome in CEILINGS:
                print(f"{outcome}: {name} {case}: {text}")  # noqa: T201
            counts.add(outcome, f"{name} {case}: {text}")


def test_a_sample_of_the_sweep():
    counts = Counts("numerics, sample", **CEILINGS)
    sweep(counts, number=6, sizes=(8, 16, 33), seed=10)
    counts.check(least=6 * len(ROWS))


@pytest.mark.slow
def test_the_sweep():
    counts = Counts("numerics", **CEILINGS)
    number = times(60, 300)
    sweep(counts, number=number, sizes=SIZES, seed=11)
    counts.check(least=number * len(ROWS))
