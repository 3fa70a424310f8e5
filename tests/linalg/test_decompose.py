"""The thin SVD: precision, layout, and the ladder of drivers."""

import pytest
import torch

from orthotrain.errors import ConvergenceError, NonFiniteError, NumericalWarning
from orthotrain.linalg import condition_number, decompose, thin_svd, working_dtype
from orthotrain.linalg.decompose import leading_factors
from reference.matrices import from_spectrum, generator, log_spectrum

SHAPES = [(6, 6), (9, 4), (4, 9), (80, 3), (3, 80), (5, 1), (1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e12])
def test_factors_multiply_back_and_are_orthonormal(shape: tuple[int, int], condition: float):
    k = min(shape)
    chosen = log_spectrum(k, condition)
    a = from_spectrum(chosen, *shape)
    u, s, vh = thin_svd(a)
    eps = torch.finfo(torch.float64).eps
    eye = torch.eye(k, dtype=torch.float64)
    # Measured up to 7 eps for all four; the singular values are relative to the largest, 1.
    budget = 32 * eps
    assert ((u * s) @ vh - a).abs().max() <= budget
    assert (u.mT @ u - eye).abs().max() <= budget
    assert (vh @ vh.mT - eye).abs().max() <= budget
    assert (s - chosen).abs().max() <= budget
    assert (s[1:] <= s[:-1]).all()


@pytest.mark.parametrize("shape", [(2, 3, 7, 4), (0, 4, 7), (3, 4, 4)], ids=str)
def test_factors_are_contiguous_float64_without_graph(shape: tuple[int, ...]):
    a = torch.randn(shape, generator=generator(0), dtype=torch.float32).requires_grad_()
    factors = thin_svd(a)
    k = min(shape[-2:])
    expected = [(*shape[:-1], k), (*shape[:-2], k), (*shape[:-2], k, shape[-1])]
    for factor, size in zip(factors, expected, strict=True):
        assert tuple(factor.shape) == size
        assert factor.is_contiguous()
        assert factor.dtype == torch.float64
        assert not factor.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_lower_precision_is_decomposed_in_float64(dtype: torch.dtype):
    a = torch.randn(12, 7, generator=generator(1)).to(dtype)
    u, s, vh = thin_svd(a)
    # An SVD in float32 would be off by 1e-7.
    assert ((u * s) @ vh - a.double()).abs().max() <= 1e-14


def test_working_dtype_on_cpu_and_on_an_accelerator():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert working_dtype(torch.empty(1, dtype=dtype)) == torch.float64
    # The meta device stands in for an accelerator: only its type is read.
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert working_dtype(torch.empty(1, dtype=dtype, device="meta")) == torch.float32
    assert working_dtype(torch.empty(1, dtype=torch.float64, device="meta")) == torch.float64


def test_nan_is_refused_before_any_driver_sees_it(monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a driver was called")

    monkeypatch.setattr(torch.linalg, "svd", never)
    a = torch.eye(3)
    a[0, 1] = torch.nan
    with pytest.raises(NonFiniteError, match="1 NaN and 0 infinite of 9"):
        thin_svd(a)


class FailingDriver:
    """``torch.linalg.svd`` whose named drivers raise or return NaN."""

    def __init__(self, raising: set[str], returning_nan: set[str]) -> None:
        self.raising = raising
        self.returning_nan = returning_nan
        self.svd = torch.linalg.svd

    def __call__(self, a, *, full_matrices, driver):
        if driver in self.raising:
            raise torch.linalg.LinAlgError(f"{driver} failed to converge")
        # The driver argument exists on CUDA alone.
        u, s, vh = self.svd(a, full_matrices=full_matrices)
        if driver in self.returning_nan:
            s = s * torch.nan
        return u, s, vh


def use_cuda_ladder(
    monkeypatch: pytest.MonkeyPatch, *, raising: set[str], returning_nan: set[str] = frozenset()
) -> None:
    rungs = decompose._rungs(torch.device("cuda"))
    monkeypatch.setattr(decompose, "_rungs", lambda _: rungs)
    monkeypatch.setattr(torch.linalg, "svd", FailingDriver(set(raising), set(returning_nan)))


@pytest.mark.parametrize("kind", ["raising", "returning_nan"])
def test_next_driver_is_tried_and_named(monkeypatch: pytest.MonkeyPatch, kind: str):
    use_cuda_ladder(monkeypatch, **({"raising": set()} | {kind: {"gesvdj"}}))
    a = from_spectrum([3.0, 2.0, 1.0], 5, 3)
    with pytest.warns(NumericalWarning, match="gesvdj did not converge, used gesvd"):
        _, s, _ = thin_svd(a)
    torch.testing.assert_close(s, torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))


def test_last_rung_is_the_cpu(monkeypatch: pytest.MonkeyPatch):
    use_cuda_ladder(monkeypatch, raising={"gesvdj", "gesvd"})
    with pytest.warns(NumericalWarning, match="gesvdj, gesvd did not converge, used gesdd on the"):
        u, s, vh = thin_svd(torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close((u * s) @ vh, torch.eye(2, dtype=torch.float64))


def test_first_driver_that_converges_is_not_announced(monkeypatch: pytest.MonkeyPatch):
    use_cuda_ladder(monkeypatch, raising=set())
    thin_svd(torch.eye(2, dtype=torch.float64))  # warnings are errors here


def test_no_driver_left_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch):
    use_cuda_ladder(monkeypatch, raising={"gesvdj", "gesvd", None})
    with pytest.raises(ConvergenceError, match=r"shape \(2, 2\) and norm 1.41 .* scale the matrix"):
        thin_svd(torch.eye(2, dtype=torch.float64))


def test_condition_number_goes_down_the_same_ladder(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: object, **__: object) -> None:
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "svdvals", fails)
    with pytest.raises(ConvergenceError, match="gesdd"):
        condition_number(torch.eye(2))


@pytest.mark.parametrize("shape", [(24, 24), (96, 24), (24, 96)])
@pytest.mark.parametrize("condition", [1e0, 1e3, 1.9e4, 1e6])
def test_float32_input_has_factors_exact_to_its_own_rounding(
    shape: tuple[int, int], condition: float
):
    """Below condition 2e4 by the Gram matrix, beyond by the SVD: no caller can tell which."""
    a = from_spectrum(log_spectrum(24, condition), *shape).float()
    u, s, vh = thin_svd(a)
    eye, eps = torch.eye(24, dtype=torch.float64), torch.finfo(torch.float32).eps
    # Measured: at most .05 eps32 for u at condition 1.9e4; .2 is the budget.
    assert (u.mT @ u - eye).abs().max() < 0.2 * eps
    assert (vh @ vh.mT - eye).abs().max() < 0.2 * eps
    torch.testing.assert_close((u * s) @ vh, a.double(), rtol=0, atol=1e-14)
    exact = torch.linalg.svdvals(a.double())
    torch.testing.assert_close(s, exact, rtol=0, atol=1e-12)
    assert bool((s[1:] <= s[:-1]).all())


def test_well_conditioned_float32_input_takes_the_gram_route(monkeypatch: pytest.MonkeyPatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the SVD was called")

    monkeypatch.setattr(torch.linalg, "svd", never)
    thin_svd(from_spectrum([3.0, 2.0, 1.0], 5, 3).float())
    with pytest.raises(AssertionError, match="the SVD was called"):
        thin_svd(from_spectrum([3.0, 2.0, 1e-6], 5, 3).float())


def test_an_ill_conditioned_entry_changes_no_bit_of_the_others():
    well, ill = from_spectrum([3.0, 2.0, 1.0], 5, 3), from_spectrum([3.0, 2.0, 1e-6], 5, 3)
    alone = thin_svd(torch.stack([well, well]).float())
    mixed = thin_svd(torch.stack([well, ill]).float())
    for one, other in zip(alone, mixed, strict=True):
        assert torch.equal(one[0], other[0])
    u, s, vh = (factor[1] for factor in mixed)
    torch.testing.assert_close((u * s) @ vh, ill.float().double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (40, 40)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("condition", [1e2, 1e9])
def test_leading_factors_lose_the_least_whatever_the_condition(shape, dtype, condition):
    a = from_spectrum(log_spectrum(40, condition), *shape).to(dtype)
    energy = torch.linalg.svdvals(a.double()).square()
    for k in (1, 12, 40):
        p, s, qh = leading_factors(a.expand(2, *shape), k)
        assert {t.dtype for t in (p, s, qh)} == {torch.float64}
        assert (p.shape[-1], s.shape[-1], qh.shape[-2]) == (k, k, k)
        lost = (a.double() - (p * s.unsqueeze(-2)) @ qh).square().sum((-2, -1))
        # Measured up to 5 eps of the energy.
        excess = lost - energy[k:].sum()
        assert (excess <= 16 * torch.finfo(torch.float64).eps * energy.sum()).all()
        # Measured: 5e-9 of the largest at condition 1e9.
        assert (s - energy[:k].sqrt()).abs().max() <= 1e-6 * energy[0].sqrt()
        eye = torch.eye(k, dtype=torch.float64)
        assert (p.mT @ p - eye).abs().max() <= 1e-6
        assert (qh @ qh.mT - eye).abs().max() <= 1e-6


def test_leading_factors_of_zeros_are_zeros():
    p, s, qh = leading_factors(torch.zeros(4, 3), 2)
    assert not (p * s @ qh).any()
    torch.testing.assert_close(p.mT @ p, torch.eye(2, dtype=torch.float64))
