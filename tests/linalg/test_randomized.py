"""The sketch that finds leading factors of a known rank."""

import pytest
import torch

from orthotrain.linalg import metric_svd, randomized, truncated
from orthotrain.linalg.metric_svd import metric_values, nearest_in_metric
from orthotrain.linalg.randomized import nearly_leading_factors, randomized_factors
from reference.matrices import from_spectrum, generator, log_spectrum

N = 192
MATRICES = {
    "gaussian": lambda: torch.randn(N, N, generator=generator(0)),
    "wide": lambda: torch.randn(N, 3 * N, generator=generator(0)),
    "tall": lambda: torch.randn(3 * N, N, generator=generator(0)),
    "line": lambda: from_spectrum(torch.linspace(1, 0.01, N), N, N).float(),
    "steep": lambda: from_spectrum(log_spectrum(N, 1e6), N, N).float(),
    "one large": lambda: from_spectrum([1e4] + [1.0] * (N - 1), N, N).float(),
    "batch": lambda: torch.randn(2, N, N, generator=generator(0)),
}


def distance(a, factors):
    p, s, qh = factors
    return torch.linalg.matrix_norm(a.double() - (p * s.unsqueeze(-2)) @ qh)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("k", [10, 48])
def test_it_is_at_most_1_02_times_as_far_as_the_nearest(name, k):
    a = MATRICES[name]()
    factors = randomized_factors(a, k, generator=generator(1))
    u, s, vh = torch.linalg.svd(a.double(), full_matrices=False)
    best = distance(a, (u[..., :k], s[..., :k], vh[..., :k, :]))
    # Rounding to float32 is all that is left of the steep one.
    assert bool((distance(a, factors) <= 1.02 * best + 1e-7 * s[..., 0]).all())
    eye = torch.eye(k, dtype=torch.float64)
    assert (factors[0].mT @ factors[0] - eye).abs().max() < 1e-6
    assert (factors[2] @ factors[2].mT - eye).abs().max() < 1e-6
    assert bool((factors[1][..., 1:] <= factors[1][..., :-1]).all())


def test_zeros_and_a_rank_below_the_one_asked_for():
    for a in (torch.zeros(N, N), torch.randn(N, 3) @ torch.randn(3, N)):
        factors = randomized_factors(a, 20, generator=generator(1))
        assert distance(a, factors) <= 1e-6 * a.norm()
        assert (factors[0].mT @ factors[0] - torch.eye(20)).abs().max() < 1e-6


def test_the_same_generator_gives_the_same_bits_and_float64_is_exact(monkeypatch):
    a = MATRICES["gaussian"]()
    first, second = (randomized_factors(a, 20, generator=generator(3)) for _ in range(2))
    assert all(map(torch.equal, first, second))
    calls = []
    monkeypatch.setattr(randomized, "randomized_factors", lambda *_, **__: calls.append(1))
    for k, digits in (
        (20, torch.float64),
        (100, torch.float32),
    ):  # exact, and no faster by a sketch
        _, s, _ = nearly_leading_factors(a.double(), k, digits=digits, generator=generator(0))
        torch.testing.assert_close(s, torch.linalg.svdvals(a.double())[:k], rtol=1e-9, atol=0)
    assert not calls
    nearly_leading_factors(a, 20, digits=torch.float32, generator=generator(0))
    assert calls


@pytest.mark.parametrize("k", [30, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_nearest_matrix_in_a_metric_are_those_of_its_decomposition(k, dtype):
    m, n = 150, 200
    w = torch.randn(m, n, generator=generator(0), dtype=dtype)
    x = torch.randn(n, n, generator=generator(1)) * torch.logspace(0, -2, n)
    g = torch.randn(m, m, generator=generator(2)) * torch.logspace(0, -2, m)
    a, b = x.double() @ x.double().mT, g.double() @ g.double().mT
    whole = metric_svd(w, a=a, b=b)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert (metric_values(w, a=a, b=b) - whole.s).abs().max() <= tolerance * whole.s[0]
    found = nearest_in_metric(w, k, a=a, b=b, generator=generator(3))

    def lost(factors):
        p, s, qh = truncated(factors, k)
        d = w.double() - (p * s) @ qh
        ridge_a, ridge_b = (c + 1e-3 * c.diagonal().mean() * torch.eye(len(c)) for c in (a, b))
        return torch.trace(ridge_b @ d @ ridge_a @ d.mT).sqrt()

    bound = 1.02 if k == 30 and dtype == torch.float32 else 1 + 1e-9
    assert lost(found) <= bound * lost(whole)
