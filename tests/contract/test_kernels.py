"""What every kernel of ``orthotrain.linalg`` promises: one table, one suite.

A new kernel is enrolled by one row of ``KERNELS``.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import pytest
import torch
from torch import Tensor

from orthotrain import linalg
from orthotrain.errors import ConfigError, NonFiniteError, OrthotrainError, ShapeError
from reference import linalg as twins
from reference import metric_svd as metric_twins
from reference import spd_root as root_twins
from reference.matrices import from_spectrum, generator

Inputs = tuple[Tensor, ...]

HALF = (torch.float16, torch.bfloat16)
DTYPES = (*HALF, torch.float32, torch.float64)
BATCHES = ((), (3,), (2, 3), (0,), (2, 0))
SHAPES = ((7, 4), (4, 7), (5, 5), (24, 2), (1, 6), (1, 1))


@dataclass(frozen=True)
class Kernel:
    """A row: how to call a kernel, what it takes and what it promises.

    ``error`` is the budget against the twin in eps of float64, times the condition of the input
    (20). Measured over SHAPES, 64x27 and 27x64 with 12 seeds each: up to .5, and .9 for the
    polar factors.
    """

    name: str
    function: str
    call: Callable[..., Tensor]
    twin: Callable[..., Tensor | float]
    takes: str = "matrix"  # or "pair", "spectrum", "spd"
    gives: str = "number"  # or "matrix", "values"
    dtype: str = "measurement"  # or "same", "working", "index"
    error: float = 2.0
    scale_invariant: bool = True
    differentiable: bool = True
    biased: bool = False  # its gradient is not that of the value it gives
    takes_zero: bool = True
    slope: float = 8.0  # budget of the gradient in eps of its dtype

    def __str__(self) -> str:
        return self.name


def _singular_values(a: Tensor) -> Tensor:
    return torch.linalg.svdvals(a.double())


def _metric_of(w: Tensor, side: int) -> Tensor:
    """A covariance for the rows (-2) or the columns (-1) of a matrix, the same for equal sizes."""
    size = w.shape[side]
    return torch.diag(torch.linspace(1, 3, size, dtype=torch.float64)) + 0.5


def _metric_values(w: Tensor) -> Tensor:
    if w.ndim < 2:
        return linalg.metric_svd(w).s
    a, b = (_metric_of(w, side).expand(*w.shape[:-2], -1, -1) for side in (-1, -2))
    return linalg.metric_svd(w, a=a, b=b).s


def _metric_values_of_twin(w: Tensor) -> Tensor:
    return metric_twins.singular_values(w, _metric_of(w, -1), _metric_of(w, -2), 1e-3)


def _root_rows() -> Iterator[Kernel]:
    """Both matrix roots by every method."""
    pade = {"spd_sqrt": root_twins.pade_root, "spd_inv_sqrt": root_twins.inverse_pade_root}
    half = Fraction(1, 2)
    for function, exact, power, slope in (
        ("spd_sqrt", root_twins.sqrt, half, 8.0),
        # The derivative at the smallest eigenvalue, .15, is 8.6.
        ("spd_inv_sqrt", root_twins.inv_sqrt, -half, 64.0),
    ):
        inverse = function == "spd_inv_sqrt"
        by_method = {
            "mpa": pade[function],
            "mtp": partial(root_twins.taylor_root, power=power),
        }
        for method in ("auto", "eigh", "newton_schulz", "polar_express", "mpa", "mtp"):
            yield Kernel(
                f"{function}-{method}", function,
                partial(getattr(linalg, function), method=method), by_method.get(method, exact),
                takes="spd", gives="matrix", dtype="same", scale_invariant=False,
                # The published form of Pade, in 1 - x, cancels: its twin is right to 80 eps.
                error=40.0 if method == "mpa" else 2.0,
                biased=method in by_method, takes_zero=not inverse, slope=slope,
            )  # fmt: skip


KERNELS = (
    Kernel(
        "polar_factor-auto", "polar_factor", linalg.polar_factor, twins.polar_factor,
        gives="matrix", dtype="same",
    ),
    Kernel(
        "polar_factor-svd", "polar_factor",
        lambda a: linalg.polar_factor(a, method="svd"), twins.polar_factor,
        gives="matrix", dtype="same",
    ),
    Kernel(
        "polar_factor-gram", "polar_factor",
        lambda a: linalg.polar_factor(a, method="gram"), twins.polar_factor,
        gives="matrix", dtype="same",
    ),
    Kernel(
        "polar_factor-qdwh", "polar_factor",
        lambda a: linalg.polar_factor(a, method="qdwh"), twins.polar_factor,
        gives="matrix", dtype="same",
    ),
    Kernel(
        "polar_factor-newton_schulz", "polar_factor",
        lambda a: linalg.polar_factor(a, method="newton_schulz"), twins.polar_factor,
        gives="matrix", dtype="same",
    ),
    Kernel(
        "polar_factor-polar_express", "polar_factor",
        lambda a: linalg.polar_factor(a, method="polar_express"), twins.polar_factor,
        gives="matrix", dtype="same",
    ),
    Kernel(
        "thin_svd-values", "thin_svd", lambda a: linalg.thin_svd(a)[1], _singular_values,
        gives="values", dtype="working", scale_invariant=False, differentiable=False,
    ),
    Kernel(
        "metric_svd-values", "metric_svd", _metric_values, _metric_values_of_twin,
        gives="values", dtype="working", scale_invariant=False, differentiable=False, error=40.0,
    ),
    Kernel(
        "condition_number", "condition_number", linalg.condition_number, twins.condition_number
    ),
    Kernel(
        "effective_rank", "effective_rank", linalg.effective_rank, twins.effective_rank,
        takes="spectrum",
    ),
    Kernel(
        "numerical_rank-rtol", "numerical_rank",
        lambda s: linalg.numerical_rank(s, rtol=0.3),
        lambda s: twins.numerical_rank(s, rtol=0.3),
        takes="spectrum", dtype="index", differentiable=False,
    ),
    Kernel(
        "numerical_rank-energy", "numerical_rank",
        lambda s: linalg.numerical_rank(s, energy=0.8),
        lambda s: twins.numerical_rank(s, energy=0.8),
        takes="spectrum", dtype="index", differentiable=False,
    ),
    Kernel(
        "basis_stability", "basis_stability", linalg.basis_stability, twins.basis_stability,
        takes="pair",
    ),
    Kernel(
        "mixing_similarity", "mixing_similarity", linalg.mixing_similarity,
        twins.mixing_similarity, takes="pair", scale_invariant=False,
    ),
    *_root_rows(),
    Kernel(
        "eigh-values", "eigh", lambda a: linalg.eigh(a)[0],
        lambda a: torch.linalg.eigvalsh(a.double()),
        takes="spd", gives="values", dtype="same", scale_invariant=False,
    ),
    Kernel(
        "svd-values", "svd", lambda a: linalg.svd(a)[1], _singular_values,
        gives="values", dtype="same", scale_invariant=False,
    ),
)  # fmt: skip

every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).split(".")[-1])


def make_inputs(
    kernel: Kernel, batch: tuple[int, ...] = (), shape: tuple[int, int] = (7, 4), seed: int = 0
) -> Inputs:
    """Float64 inputs of condition 20 at most, each batch entry with a basis of its own."""
    count = max(1, int(torch.tensor(batch).prod())) if batch else 1
    spread = torch.linspace(1.0, 0.05, min(shape), dtype=torch.float64)
    if kernel.takes == "spectrum":
        rows = torch.rand(count, shape[0], generator=generator(seed), dtype=torch.float64)
        tensors = [rows.sort(dim=-1, descending=True).values]
    elif kernel.takes == "spd":
        spread = torch.linspace(3.0, 0.15, shape[1], dtype=torch.float64)
        tensors = [torch.stack([root_twins.spd(spread, seed=seed + 10 * i) for i in range(count)])]
    else:
        tensors = [
            torch.stack(
                [3.0 * from_spectrum(spread, *shape, seed=seed + 10 * i + 100 * j)
                 for i in range(count)]
            )
            for j in range(2 if kernel.takes == "pair" else 1)
        ]  # fmt: skip
    if not batch:
        return tuple(x[0] for x in tensors)
    if 0 in batch:
        return tuple(x[:0].reshape(*batch, *x.shape[1:]) for x in tensors)
    return tuple(x.reshape(*batch, *x.shape[1:]) for x in tensors)


def result_dtype(kernel: Kernel, dtype: torch.dtype) -> torch.dtype:
    match kernel.dtype:
        case "same":
            return dtype
        case "working":
            return torch.float64
        case "index":
            return torch.int64
        case _:
            return torch.float64 if dtype == torch.float64 else torch.float32


def result_shape(kernel: Kernel, inputs: Inputs) -> torch.Size:
    first = inputs[0]
    match kernel.gives:
        case "matrix":
            return first.shape
        case "values":
            return torch.Size((*first.shape[:-2], min(first.shape[-2:])))
        case _:
            return first.shape[: -1 if kernel.takes == "spectrum" else -2]


def twin_of(kernel: Kernel, inputs: Inputs) -> Tensor:
    return torch.as_tensor(kernel.twin(*(x.double() for x in inputs)), dtype=torch.float64)


def assert_within(actual: Tensor, expected: Tensor, *, eps: float) -> None:
    """``|actual - expected| <= eps * max(1, |expected|)``, entry by entry, in float64."""
    torch.testing.assert_close(
        actual.double(), expected.double(), atol=eps, rtol=eps, check_dtype=False
    )


@every_kernel
@every_dtype
def test_agrees_with_twin_and_rounds_once(kernel: Kernel, dtype: torch.dtype):
    for shape in SHAPES:
        assert_agrees_with_twin(kernel, dtype, shape)


def assert_agrees_with_twin(kernel: Kernel, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    inputs = tuple(x.to(dtype) for x in make_inputs(kernel, shape=shape))
    actual = kernel.call(*inputs)
    assert actual.dtype == result_dtype(kernel, dtype)
    expected = twin_of(kernel, inputs)
    if kernel.dtype == "index":
        assert actual.item() == expected.item()
        return
    # What the working precision leaves, and half an eps for the one rounding to the result.
    work = torch.finfo(torch.float64).eps
    resolution = torch.finfo(actual.dtype).eps
    # basis_stability compares bases in float32, so it is rounded twice.
    roundings = 2 if kernel.name == "basis_stability" else 1
    rounding = 0.0 if resolution == work else 0.51 * roundings * resolution
    assert_within(actual, expected, eps=rounding + kernel.error * 20 * work)


@every_kernel
def test_shape_of_the_result(kernel: Kernel):
    for batch, shape in itertools.product(BATCHES, SHAPES):
        inputs = make_inputs(kernel, batch, shape)
        actual = kernel.call(*inputs)
        assert actual.shape == result_shape(kernel, inputs), (batch, shape)
        assert actual.dtype == result_dtype(kernel, torch.float64), (batch, shape)


@every_kernel
def test_batch_equals_one_by_one(kernel: Kernel):
    inputs = make_inputs(kernel, (2, 3))
    batched = kernel.call(*inputs)
    for i in range(2):
        for j in range(3):
            alone = kernel.call(*(x[i, j] for x in inputs))
            assert_within(batched[i, j], alone, eps=kernel.error * 20 * 2.3e-16)


@every_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("factor", [1e20, 1e-20, 0.0])
def test_entries_of_a_batch_are_independent(kernel: Kernel, dtype: torch.dtype, factor: float):
    if factor == 0 and not kernel.takes_zero:
        pytest.skip("a zero matrix is an error")
    inputs = tuple(x.to(dtype) for x in make_inputs(kernel, (3,)))
    before = kernel.call(*inputs)
    changed = tuple(x.clone() for x in inputs)
    for x in changed:
        x[1] *= factor
    after = kernel.call(*changed)
    torch.testing.assert_close(after[0], before[0], atol=0, rtol=0)
    torch.testing.assert_close(after[2], before[2], atol=0, rtol=0)
    if kernel.scale_invariant and factor != 0:
        eps = torch.finfo(dtype).eps
        assert_within(after[1], before[1], eps=kernel.error * 20 * eps)


@every_kernel
@every_dtype
def test_takes_non_contiguous_input(kernel: Kernel, dtype: torch.dtype):
    inputs = tuple(x.to(dtype) for x in make_inputs(kernel, (3,)))
    # Every second element of a padded copy: strides of 2, and the last two dimensions swapped.
    strided = tuple(torch.stack([x, x + 1], dim=-1)[..., 0] for x in inputs)
    turned = tuple(x.transpose(0, -1).contiguous().transpose(0, -1) for x in inputs)
    expected = kernel.call(*inputs)
    eps = 0.0 if expected.dtype == torch.int64 else torch.finfo(expected.dtype).eps
    for views in (strided, turned):
        assert not any(x.is_contiguous() for x in views)
        assert_within(kernel.call(*views), expected, eps=kernel.error * 20 * eps)


@every_kernel
@every_dtype
def test_input_is_not_changed(kernel: Kernel, dtype: torch.dtype):
    inputs = tuple(x.to(dtype) for x in make_inputs(kernel, (3,)))
    copies = tuple(x.clone() for x in inputs)
    versions = tuple(x._version for x in inputs)
    result = kernel.call(*inputs)
    if result.is_floating_point():
        result.fill_(7.0)
    for x, copy, version in zip(inputs, copies, versions, strict=True):
        assert torch.equal(x, copy)
        assert x._version == version


@every_kernel
def test_random_state_is_not_touched(kernel: Kernel):
    before = torch.get_rng_state()
    kernel.call(*make_inputs(kernel, (3,)))
    assert torch.equal(torch.get_rng_state(), before)


@every_kernel
def test_autocast_changes_nothing(kernel: Kernel):
    inputs = tuple(x.float() for x in make_inputs(kernel, (3,)))
    expected = kernel.call(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = kernel.call(*inputs)
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


@every_kernel
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_non_finite_numbers_are_named(kernel: Kernel, bad: float, dtype: torch.dtype):
    for position in range(len(make_inputs(kernel))):
        inputs = tuple(x.to(dtype) for x in make_inputs(kernel, (3,)))
        inputs[position][1, ..., 2] = bad
        with pytest.raises(NonFiniteError) as caught:
            kernel.call(*inputs)
        assert isinstance(caught.value, ArithmeticError)
        assert_message(caught.value, kernel, got=str(tuple(inputs[position].shape)))


@every_kernel
@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(), (0,), (4, 0), (3, 4, 0), (0, 0)], ids=str)
def test_wrong_shapes_are_named(kernel: Kernel, shape: tuple[int, ...]):
    assert_wrong_shape_is_named(kernel, shape)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.takes != "spectrum"], ids=str)
@pytest.mark.bad_input
@pytest.mark.parametrize("shape", [(4,), (0, 4), (3, 0, 4)], ids=str)
def test_wrong_shapes_of_matrices_are_named(kernel: Kernel, shape: tuple[int, ...]):
    assert_wrong_shape_is_named(kernel, shape)


def assert_wrong_shape_is_named(kernel: Kernel, shape: tuple[int, ...]) -> None:
    count = len(make_inputs(kernel))
    with pytest.raises(ShapeError) as caught:
        kernel.call(*(torch.zeros(shape) for _ in range(count)))
    assert isinstance(caught.value, ValueError)
    assert_message(caught.value, kernel, got=str(shape))


@every_kernel
@pytest.mark.bad_input
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_other_dtypes_are_refused(kernel: Kernel, dtype: torch.dtype):
    inputs = tuple(x.to(dtype) for x in make_inputs(kernel))
    with pytest.raises(ConfigError) as caught:
        kernel.call(*inputs)
    assert_message(caught.value, kernel, got=str(dtype))


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.takes == "pair"], ids=str)
@pytest.mark.bad_input
def test_pairs_of_different_shape_are_refused(kernel: Kernel):
    with pytest.raises(ShapeError) as caught:
        kernel.call(torch.ones(5, 3), torch.ones(5, 4))
    assert_message(caught.value, kernel, got="(5, 4)")


def assert_message(error: OrthotrainError, kernel: Kernel, *, got: str) -> None:
    """A message says the function, what it needs, what it got and, after a semicolon, a remedy."""
    message = str(error)
    assert message.startswith(f"{kernel.function} needs ")
    assert "got" in message
    assert got in message
    needed_and_got, remedy = message.split(";", maxsplit=1)
    assert len(needed_and_got) > len(got)
    assert len(remedy) > 20


@pytest.mark.parametrize(
    "kernel", [k for k in KERNELS if k.differentiable and not k.biased], ids=str
)
@pytest.mark.parametrize("batch", [(), (2,)], ids=str)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (1, 1)], ids=str)
def test_derivative(kernel: Kernel, batch: tuple[int, ...], shape: tuple[int, int]):
    inputs = tuple(x.requires_grad_() for x in make_inputs(kernel, batch, shape))

    def call(*tensors: Tensor) -> Tensor:
        # gradcheck moves one entry at a time, which would not be symmetric.
        if kernel.takes == "spd":
            tensors = tuple((x + x.mT) / 2 for x in tensors)
        return kernel.call(*tensors)

    assert torch.autograd.gradcheck(call, inputs)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.differentiable], ids=str)
@every_dtype
def test_gradient_has_the_dtype_of_its_input(kernel: Kernel, dtype: torch.dtype):
    exact = tuple(x.to(dtype).double().requires_grad_() for x in make_inputs(kernel))
    inputs = tuple(x.detach().to(dtype).requires_grad_() for x in exact)
    weights = torch.linspace(1, 2, kernel.call(*exact).numel(), dtype=torch.float64)
    for tensors in (exact, inputs):
        out = kernel.call(*tensors)
        (out.reshape(-1) * weights.to(out.dtype)).sum().backward()
    for x, reference in zip(inputs, exact, strict=True):
        assert x.grad is not None
        assert reference.grad is not None
        assert x.grad.dtype == dtype
        # The upstream gradient is rounded once and the result once; the derivative is below 8.
        assert_within(x.grad, reference.grad, eps=kernel.slope * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kernel", [k for k in KERNELS if not k.differentiable], ids=str)
def test_result_without_derivative_carries_no_graph(kernel: Kernel):
    inputs = tuple(x.requires_grad_() for x in make_inputs(kernel))
    assert not kernel.call(*inputs).requires_grad
