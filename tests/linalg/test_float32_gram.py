"""Decompositions in float32: right to their promise against float64, refused elsewhere."""

import pytest
import torch

from orthotrain.linalg import float32_gram
from orthotrain.linalg.float32_gram import float32_factors, float32_right_vectors, float32_values
from reference.matrices import from_spectrum, generator, log_spectrum

N = 160
SPECTRA = {
    "even": torch.linspace(1, 0.1, N),
    "logarithmic": log_spectrum(N, 19.0),
    "two heaps": torch.cat((torch.ones(N // 2), torch.linspace(0.0501, 0.051, N - N // 2).flip(0))),
    "one large": torch.cat((torch.ones(1), torch.full((N - 1,), 0.051))),
    "equal": torch.ones(N),
}


def single(name, scale=1.0):
    return (scale * from_spectrum(SPECTRA[name], N, N)).float()


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e5])
@pytest.mark.parametrize("name", SPECTRA)
def test_values_and_factors_are_within_their_promise_of_float64(name, scale):
    a = single(name, scale)
    exact = torch.linalg.svdvals(a.double())
    unit = exact[0]
    assert (float32_values(a, digits=a.dtype) - exact).abs().max() < 2e-5 * unit
    known = float32_right_vectors(a, digits=a.dtype)
    assert (known.s - exact).abs().max() < 2e-5 * unit
    for k in (N // 3, N - 12, N):
        p, s, qh = (t.double() for t in float32_factors(a, known, k))
        eye = torch.eye(k, dtype=torch.float64)
        assert (p.mT @ p - eye).abs().max() < 5e-6
        assert (qh @ qh.mT - eye).abs().max() < 5e-6
        product = (p * s) @ qh
        projected = a.double() @ qh.mT @ qh
        assert torch.linalg.matrix_norm(product - projected, 2) < 2e-5 * unit
        best = exact[k:].norm()
        assert (a.double() - product).norm() < 1.0001 * best + 2e-5 * exact.norm()


def test_each_of_a_batch_is_the_one_alone():
    batch = torch.stack([single("even"), 100 * single("logarithmic")])
    for one, of_batch in zip(batch, float32_values(batch, digits=batch.dtype), strict=True):
        alone = float32_values(one, digits=one.dtype)
        torch.testing.assert_close(of_batch, alone, rtol=0, atol=1e-6 * float(alone[0]))


REFUSED = {
    "a small value": from_spectrum(torch.linspace(1, 0.04, N), N, N).float(),
    "zeros": torch.zeros(N, N),
    "a deficient rank": torch.randn(N, 9, generator=generator(0)) @ torch.randn(9, N),
    "squares that vanish": 1e-10 * single("even"),
    "squares that overflow": 1e10 * single("even"),
    "wide": torch.randn(N, 2 * N, generator=generator(0)),
    "small": torch.eye(64),
    "one of a batch": torch.stack([single("even"), torch.zeros(N, N)]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_float32_cannot_tell_is_left_to_float64(name):
    a = REFUSED[name]
    assert float32_values(a, digits=a.dtype) is None
    assert float32_right_vectors(a, digits=a.dtype) is None
    even = single("even").double()
    assert float32_values(even, digits=even.dtype) is None


def test_products_that_are_rounded_to_less_are_noticed(monkeypatch):
    a = single("even")
    plain = float32_values(a, digits=a.dtype)
    with torch.autocast("cpu"):  # switched off inside
        assert torch.equal(float32_values(a, digits=a.dtype), plain)

    def rounded(x, y):
        less = (x.bfloat16(), y.bfloat16()) if x.dtype == torch.float32 else (x, y)
        return torch.matmul(*less).to(x.dtype)

    monkeypatch.setattr(float32_gram.Tensor, "__matmul__", rounded)
    assert float32_values(a, digits=a.dtype) is None
