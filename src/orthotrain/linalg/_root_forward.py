"""Roots without eigenvalues: coupled iterations, Taylor and Pade.

Each takes ``P`` of shape ``(*batch, n, n)``, positive definite, and gives ``(P^1/2, P^-1/2)`` or
what is asked for of the two. Every norm is per matrix. All are plain products of torch, so that
autograd can go through them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, assert_never

import torch
from torch import Tensor

from orthotrain.linalg._coefficients import polar_express

IteratedMethod = Literal["newton_schulz", "polar_express", "mpa", "mtp"]

# Fifteen steps raise an eigenvalue of 5e-6 of the trace to about one (2.25**15); five, as
# published, one of 2e-2.
DEFAULT_ITERATIONS = {"newton_schulz": 15, "polar_express": 8}

# [5/5] Pade of sqrt(x) at x = 1: with s = sqrt(x), (r - s) / (r + s) = ((1 - s) / (1 + s))**11, so
# r = sum C(11, 2j) x**j / sum C(11, 2j + 1) x**j. The coefficients of the published form in
# 1 - x follow from these; in x they are positive, and nothing cancels.
_PADE_TOP = tuple(float(math.comb(11, 2 * j)) for j in range(6))
_PADE_BOTTOM = tuple(float(math.comb(11, 2 * j + 1)) for j in range(6))
TAYLOR_DEGREE = 10


def iterated_root(p: Tensor, method: IteratedMethod, iterations: int, *, inverse: bool) -> Tensor:
    """The root of ``p``, or its inverse, by the named method; symmetric to rounding only."""
    match method:
        case "newton_schulz":
            return newton_schulz_root(p, iterations, inverse=inverse)
        case "polar_express":
            return polar_express_root(p, iterations, inverse=inverse)
        case "mpa":
            return pade_root(p, inverse=inverse)
        case "mtp":
            return taylor_root(p, inverse=inverse)
        case _:
            assert_never(method)


def newton_schulz_root(p: Tensor, iterations: int, *, inverse: bool) -> Tensor:
    """Coupled Newton-Schulz from ``P / trace(P)``: iSQRT-COV, and IterNorm for the inverse."""
    trace = p.diagonal(dim1=-2, dim2=-1).sum(dim=-1)[..., None, None]
    eye = _eye_like(p)
    y, z = p / _nonzero(trace), eye
    for _ in range(iterations):
        t = 1.5 * eye - 0.5 * (z @ y)
        y, z = y @ t, t @ z
    return _rescaled(z, trace, inverse=True) if inverse else _rescaled(y, trace)


def polar_express_root(p: Tensor, iterations: int, *, inverse: bool) -> Tensor:
    """Coupled quintic iteration with the coefficients of Polar Express, from ``P / |P|_F``.

    ``Z Y`` has the squares of singular values that an odd quintic ``x t(x^2)`` brings to one.
    """
    norm = _frobenius(p)
    eye = _eye_like(p)
    y, z = p / _nonzero(norm), eye
    for a, b, c in polar_express(iterations):
        m = z @ y
        t = a * eye + b * m + c * (m @ m)
        y, z = y @ t, t @ z
    return _rescaled(z, norm, inverse=True) if inverse else _rescaled(y, norm)


def pade_root(p: Tensor, *, inverse: bool) -> Tensor:
    """MPA: the [5/5] Pade approximant of the square root around ``|P|_F``."""
    norm = _frobenius(p)
    x = p / _nonzero(norm)
    top, bottom = _polynomial(_PADE_TOP, x), _polynomial(_PADE_BOTTOM, x)
    if inverse:
        return _rescaled(torch.linalg.solve(top, bottom), norm, inverse=True)
    return _rescaled(torch.linalg.solve(bottom, top), norm)


def taylor_root(p: Tensor, *, inverse: bool) -> Tensor:
    """MTP: the Taylor polynomial of degree 10 of the (inverse) square root around ``|P|_F``."""
    norm = _frobenius(p)
    z = _eye_like(p) - p / _nonzero(norm)
    power = -0.5 if inverse else 0.5
    return _rescaled(_polynomial(_binomial_series(power), z), norm, inverse=inverse)


def _binomial_series(power: float) -> list[float]:
    """Coefficients of ``(1 - z)**power`` in ``z``."""
    coefficients = [1.0]
    for k in range(TAYLOR_DEGREE):
        coefficients.append(coefficients[-1] * (k - power) / (k + 1))
    return coefficients


def _polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """``sum_k c_k x^k`` by Horner's rule in ``x^2``: half the products."""
    eye, square = _eye_like(x), x @ x
    pairs = [coefficients[k : k + 2] for k in range(0, len(coefficients), 2)]
    total: Tensor | None = None
    for pair in reversed(pairs):
        term = pair[0] * eye if len(pair) == 1 else pair[0] * eye + pair[1] * x
        total = term if total is None else term + square @ total
    assert total is not None
    return total


def _eye_like(p: Tensor) -> Tensor:
    return torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)


def _frobenius(p: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(p, dim=(-2, -1), keepdim=True)
    return norm


def _nonzero(scale: Tensor) -> Tensor:
    """The scale, or one for a zero matrix."""
    return torch.where(scale > 0, scale, 1.0)


def _rescaled(root: Tensor, scale: Tensor, *, inverse: bool = False) -> Tensor:
    """The root of ``scale * x`` from that of ``x``; zero where the scale is."""
    factor = _nonzero(scale).rsqrt() if inverse else _nonzero(scale).sqrt()
    return root * factor * (scale > 0)
