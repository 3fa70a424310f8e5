"""Orthogonal maps from skew ones: Cayley, exponential, and the exponential of a convolution.

If ``a^T = -a`` then ``exp(a)`` and ``(1 - a/2)^-1 (1 + a/2)`` are orthogonal, with determinant one.
A convolution is such a map when its kernel is skew, zero padding included, and its exponential
is a short sum of convolutions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from orthotrain._checks import require_count, require_number, require_values
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.linalg._inputs import (
    power_of_two_scale,
    result_dtype,
    without_autocast,
)
from orthotrain.linalg._skew_inputs import require_skew_side, skew_in_working_dtype

# Start vectors of the power iteration are drawn from this seed and never from global state.
_START_SEED = 20210


@checked
def skew_part(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """``(a - a^T) / 2``: the nearest skew matrix in Frobenius norm.

    Args:
        a: ``(*batch, n, n)`` with ``n >= 1``. Batch entries are independent.

    Returns:
        Same shape, dtype and device. Differentiable everywhere.

    Raises:
        ShapeError: The matrices are not square.
        ConfigError: ``a`` is not real floating-point.

    Example:
        >>> skew_part(torch.tensor([[5.0, 4.0], [0.0, 5.0]])).tolist()
        [[0.0, 2.0], [-2.0, 0.0]]
    """
    require_skew_side("skew_part", a)
    return (a - a.mT) / 2


@checked
def cayley_transform(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """``(1 - a/2)^-1 (1 + a/2)`` of a skew matrix: orthogonal, and ``exp(a)`` to second order.

    Args:
        a: ``(*batch, n, n)``, skew to rounding. Batch entries are independent.

    Returns:
        Same shape, dtype and device. Computed in float64 on CPU, on an accelerator in float32 (but
        float64 for float64 input), and rounded once.

    Raises:
        ShapeError: The matrices are not square.
        ConfigError: ``a`` is not real floating-point, not skew, or of a Frobenius norm above
            ``eps ** -0.5`` of the dtype it is computed in (6.7e7 in float64), where angles have
            lost half of their digits.
        NonFiniteError: ``a`` holds NaN or infinity.

    Note:
        Differentiable everywhere: ``1 - a/2`` has no singular value below one. Reaches every
        rotation without the eigenvalue -1.

    Source:
        Cayley (1846), J. reine angew. Math. 32.
    """
    work = skew_in_working_dtype("cayley_transform", a)
    with without_autocast(a):
        one = torch.eye(work.shape[-1], dtype=work.dtype, device=work.device)
        turned: Tensor = torch.linalg.solve(one - work / 2, one + work / 2)
    return turned.to(a.dtype)


@checked
def skew_exponential(a: Float[Tensor, "*batch n n"]) -> Float[Tensor, "*batch n n"]:
    """``exp(a)`` of a skew matrix: orthogonal, and every rotation is one.

    Args:
        a: ``(*batch, n, n)``, skew to rounding. Batch entries are independent.

    Returns:
        Same shape, dtype and device. Computed in float64 on CPU, on an accelerator in float32 (but
        float64 for float64 input), and rounded once.

    Raises:
        ShapeError: The matrices are not square.
        ConfigError: ``a`` is not real floating-point, not skew, or of a Frobenius norm above
            ``eps ** -0.5`` of the dtype it is computed in (6.7e7 in float64), where angles have
            lost half of their digits.
        NonFiniteError: ``a`` holds NaN or infinity.

    Note:
        Differentiable everywhere.

    Source:
        ``torch.linalg.matrix_exp``: scaling and squaring of Taylor polynomials.
    """
    work = skew_in_working_dtype("skew_exponential", a)
    with without_autocast(a):
        if work.shape[:-2].numel() == 1:
            # A single matrix takes a polynomial with a wrong coefficient in torch 2.13 (pytorch
            # issue 196592): 2.5e-10 off at norm .05 in float64. Two take another one.
            work = torch.cat((work, work)) if work.ndim > 2 else torch.stack((work, work))
        turned: Tensor = torch.linalg.matrix_exp(work)
    return turned[: a.shape[0]].to(a.dtype) if a.ndim > 2 else turned[0].to(a.dtype)


@checked
def conv_skew_part(kernel: Float[Tensor, "c c kh kw"]) -> Float[Tensor, "c c kh kw"]:
    """``(kernel - flip(kernel)^T) / 2``: the kernel of the skew part of a convolution.

    Transposing the operator of a convolution swaps the channels of its kernel and turns it by
    half a turn. That holds with zero padding as with circular padding, so the convolution with
    the result, padded by ``(k - 1) / 2``, is skew on every image size.

    Args:
        kernel: ``(c, c, kh, kw)`` with odd ``kh, kw``: as many channels out as in.

    Returns:
        Same shape, dtype and device. Differentiable everywhere.

    Raises:
        ShapeError: Not 4-D, channels that differ, or an even side, which has no middle.
        ConfigError: ``kernel`` is not real floating-point.
    """
    _require_kernel("conv_skew_part", kernel, square=True)
    return (kernel - kernel.transpose(0, 1).flip(2, 3)) / 2


class ConvSpectralBound(NamedTuple):
    """What ``conv_spectral_bound`` returns.

    Attributes:
        bound: Scalar: estimate of an upper bound of the operator norm.
        left: The left vectors reached, one per reshaping; pass them on to continue the iteration.
    """

    bound: Tensor
    left: tuple[Tensor, ...]


@checked
def conv_spectral_bound(
    kernel: Float[Tensor, "c_out c_in kh kw"],
    *,
    left: tuple[Tensor, ...] | None = None,
    rounds: int = 50,
    skew: bool = False,
) -> ConvSpectralBound:
    """Bound of the norm of a convolution: ``sqrt(kh kw)`` times the least of four matrix norms.

    The four matrices are reshapings of the kernel: ``out x (in kh kw)``, ``(out kh kw) x in``,
    ``(out kh) x (in kw)`` and ``(out kw) x (in kh)``. Their spectral norms are found by power
    iteration from ``left``, so the result depends on the arguments alone.

    Args:
        kernel: ``(out, in, kh, kw)``.
        left: Vectors from an earlier call for a kernel of this shape. ``None`` starts from fixed
            pseudo-random vectors; the global random state is neither read nor changed.
        rounds: Products with the matrix and its transpose; 0 measures with ``left`` as it is.
        skew: The kernel is its own ``conv_skew_part``. Then the norms are equal in pairs, and
            the first and third are measured alone.

    Returns:
        ``bound``, a scalar, and ``left``, the vectors reached. Both in float64 for float64 input
        and else in float32. A zero kernel has the bound zero and keeps its vectors.

    Raises:
        ShapeError: ``kernel`` is not 4-D or empty, or ``left`` does not fit it.
        ConfigError: ``kernel`` is not real floating-point, or ``rounds`` is negative.

    Note:
        A power iteration comes from below: ``bound`` may be short of the true bound. From a random
        start, 50 rounds leave on average at most ``.436 ln(n) / 49`` of a norm, 5 % at ``n = 192``
        (``n`` is the smaller side), however close the singular values are; vectors carried along
        while a kernel moves slowly leave less. NaN in the kernel gives NaN, and keeps the vectors.

        The gradient takes the vectors as constants, ``d sigma = u^T dM v``: exact where the
        iteration has converged to a simple singular value.

    Source:
        Singla and Feizi (2021), "Fantastic Four", ICLR; for the error, Kuczynski and Wozniakowski
        (1992), SIAM J. Matrix Anal. Appl. 13(4).

    Example:
        >>> kernel = torch.ones(1, 1, 3, 3)  # the sum over a 3x3 window, of norm 9
        >>> round(conv_spectral_bound(kernel).bound.item(), 4)
        9.0
    """
    _require_kernel("conv_spectral_bound", kernel)
    require_values("conv_spectral_bound", "kernel", kernel)
    require_count("conv_spectral_bound", "rounds", rounds, "products", least=0)
    with without_autocast(kernel):
        work = kernel.to(result_dtype(kernel.dtype))
        # Powers of two are exact, and keep the squares of entries in range.
        scale = power_of_two_scale(work.flatten(1).flatten().unsqueeze(0)).reshape(())
        matrices = _reshapings(work / scale, skew=skew)
        left = _start_vectors(matrices) if left is None else _fitted(left, matrices, kernel)
        norms, reached = [], []
        for matrix, u in zip(matrices, left, strict=True):
            u, v = _singular_pair(matrix.detach(), u, rounds)
            norms.append(torch.dot(u, matrix @ v))
            reached.append(u)
        taps = math.sqrt(kernel.shape[2] * kernel.shape[3])
        return ConvSpectralBound(torch.stack(norms).min() * (scale * taps), tuple(reached))


@checked
def conv_exponential(
    x: Float[Tensor, "n c_in h w"],
    kernel: Float[Tensor, "c c kh kw"],
    *,
    terms: int,
    out_channels: int | None = None,
) -> Float[Tensor, "n c_out h w"]:
    """``sum_{i=0}^{terms} A^i x / i!`` with ``A`` the zero-padded convolution with ``kernel``.

    If the kernel is its own ``conv_skew_part``, this is an orthogonal map of the image up to
    ``exponential_remainder(|A|, terms)``.

    Args:
        x: ``(n, in, h, w)`` with ``in <= c``; missing channels are zero. ``n`` may be zero.
        kernel: ``(c, c, kh, kw)`` with odd ``kh, kw``, in the dtype of ``x``.
        terms: Highest power of ``A``, at least 1; the cost is that many convolutions.
        out_channels: How many of the ``c`` channels to return, the first ones; all by default.

    Returns:
        ``(n, out_channels, h, w)``, differentiable in ``x`` and ``kernel``. Under autocast the
        convolutions run in the lower precision.

    Raises:
        ShapeError: ``x`` or ``kernel`` does not have the shape above.
        ConfigError: ``kernel`` is not real floating-point, or ``terms`` or ``out_channels`` is out
            of range.

    Note:
        NaN and infinity spread as in any convolution; looking for them would stop a GPU.

    Source:
        Singla and Feizi (2021), "Skew orthogonal convolutions", ICML, arXiv:2105.11417.
    """
    _require_kernel("conv_exponential", kernel, square=True)
    channels = kernel.shape[0]
    out = channels if out_channels is None else out_channels
    if x.ndim != 4 or not 1 <= x.shape[1] <= channels:
        raise ShapeError(
            f"conv_exponential needs x of shape (n, in, h, w) with 1 <= in <= {channels}, got "
            f"{tuple(x.shape)}; the kernel needs as many channels as the larger of in and out"
        )
    if kernel.device != x.device:
        raise ConfigError(
            f"conv_exponential needs x and kernel on one device, got {x.device} and "
            f"{kernel.device}; move one with .to"
        )
    if terms < 1 or not 1 <= out <= channels:
        raise ConfigError(
            f"conv_exponential needs terms >= 1 and 1 <= out_channels <= {channels}, got terms "
            f"{terms} and out_channels {out}; 5 terms are usual in training"
        )
    padding = (kernel.shape[2] // 2, kernel.shape[3] // 2)
    total = _with_channels(x, out)
    # Zero channels need no product on the way in, and dropped ones none on the way out.
    power, weight = x, kernel[:, : x.shape[1]]
    for i in range(1, terms + 1):
        rows = out if i == terms else channels
        power = F.conv2d(power, weight[:rows], padding=padding) / i
        weight = kernel
        total = total + power[:, :out]
    return total


@checked
def exponential_remainder(norm: float, terms: int) -> float:
    """``norm^(terms + 1) / (terms + 1)!``: what ``sum_{i<=terms} A^i / i!`` may be off ``exp(A)``.

    For a skew ``A`` of that spectral norm, in the spectral norm: the singular values of the sum
    are within this of one.

    Source:
        Remainder of the Taylor series on the imaginary axis; Singla and Feizi (2021),
        arXiv:2105.11417.

    Example:
        >>> f"{exponential_remainder(0.7, 5):.1e}, {exponential_remainder(0.7, 10):.1e}"
        '1.6e-04, 5.0e-10'
    """
    require_number("exponential_remainder", "norm", norm, least=0)
    require_count("exponential_remainder", "terms", terms, least=0)
    try:
        return norm ** (terms + 1) / math.factorial(terms + 1)
    except OverflowError:
        return math.inf


def _require_kernel(function: str, kernel: Tensor, *, square: bool = False) -> None:
    if kernel.ndim != 4 or 0 in kernel.shape:
        raise ShapeError(
            f"{function} needs a kernel of shape (out, in, kh, kw) without a zero, got "
            f"{tuple(kernel.shape)}; a matrix is a kernel of size 1: a[:, :, None, None]"
        )
    out, channels, *size = kernel.shape
    if not square:
        return
    if out != channels:
        raise ShapeError(
            f"{function} needs as many channels out as in, got a kernel of shape "
            f"{tuple(kernel.shape)}; pad the smaller side with zeros"
        )
    if size[0] % 2 == 0 or size[1] % 2 == 0:
        raise ShapeError(
            f"{function} needs odd kernel sizes, got {tuple(size)}: an even kernel has no middle, "
            f"so its convolution cannot be skew; take {size[0] | 1}x{size[1] | 1}"
        )


def _reshapings(kernel: Tensor, *, skew: bool) -> tuple[Tensor, ...]:
    """The four matrices, or the two that differ in norm for a skew kernel.

    With ``kernel = -flip(kernel)^T`` the second is minus the first transposed and the fourth
    minus the third, up to the order of rows and columns.
    """
    out, channels, kh, kw = kernel.shape
    flat = kernel.reshape(out, -1)
    rows = kernel.permute(0, 2, 1, 3).reshape(out * kh, channels * kw)
    if skew:
        return flat, rows
    # The second one lies down, so that its left vector is the short one.
    turned = kernel.transpose(0, 1).reshape(channels, -1)
    columns = kernel.permute(0, 3, 1, 2).reshape(out * kw, channels * kh)
    return flat, turned, rows, columns


def _start_vectors(matrices: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(_START_SEED)
    sides = [matrix.shape[0] for matrix in matrices]
    drawn = [torch.randn(n, generator=random, dtype=torch.float64, device="cpu") for n in sides]
    return tuple((u / u.norm()).to(m) for u, m in zip(drawn, matrices, strict=True))


def _fitted(
    left: tuple[Tensor, ...], matrices: tuple[Tensor, ...], kernel: Tensor
) -> tuple[Tensor, ...]:
    """Vectors of an earlier call in the dtype of this one."""
    sides = [(matrix.shape[0],) for matrix in matrices]
    if [tuple(u.shape) for u in left] != sides:
        raise ShapeError(
            f"conv_spectral_bound needs left vectors of shapes {sides} for a kernel of shape "
            f"{tuple(kernel.shape)}, got {[tuple(u.shape) for u in left]}; start with left=None, "
            f"and keep skew the same in all calls"
        )
    return tuple(u.to(m) for u, m in zip(left, matrices, strict=True))


def _singular_pair(matrix: Tensor, u: Tensor, rounds: int) -> tuple[Tensor, Tensor]:
    """Left and right vectors of the largest singular value, by power iteration from ``u``."""
    start = u
    for _ in range(rounds):
        u = matrix @ (matrix.mT @ u)
        u = u / torch.linalg.vector_norm(u)
    # Zero and non-finite matrices have no directions, and must not spoil what is carried along.
    u = torch.where(torch.isfinite(u).all(), u, start)
    v = matrix.mT @ u
    norm = torch.linalg.vector_norm(v)
    return u, v / torch.where(norm > 0, norm, 1.0)


def _with_channels(x: Tensor, channels: int) -> Tensor:
    """The first channels of ``x``, filled up with zero ones."""
    missing = channels - x.shape[1]
    return F.pad(x, (0, 0, 0, 0, 0, missing)) if missing > 0 else x[:, :channels]
