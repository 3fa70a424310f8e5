"""The kernel of an orthogonal convolution as a product of small ones.

With a projector ``P`` the kernel of two taps ``(P, 1 - P)`` is orthogonal as a convolution, and so
is each product of such kernels along either side and a kernel that is an orthogonal matrix. A
``s x s`` kernel whose flattening has orthonormal rows or columns is orthogonal at stride ``s``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.layers._kept import Kept, wants_derivatives
from orthotrain.linalg._inputs import result_dtype, without_autocast
from orthotrain.linalg.decompose import working_dtype


class BlockSizes(NamedTuple):
    """Sizes of the kernel, and of the tensors it is made of; channels are those of one group.

    Attributes:
        out_channels: Rows of the kernel.
        in_channels: Columns of the kernel.
        height: Taps.
        width: Taps.
        stride: Of the convolution.
        groups: Independent blocks of channels.
    """

    out_channels: int
    in_channels: int
    height: int
    width: int
    stride: int
    groups: int

    @property
    def factors(self) -> int:
        """How many kernels of two taps are multiplied."""
        return self.height + self.width - 2 * self.stride

    @property
    def inner_channels(self) -> int:
        """Channels that the kernels of two taps act on."""
        if self.factors == 0:
            return self.in_channels
        return max(self.in_channels, self.out_channels // self.stride**2)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """Of the one kernel of ``stride x stride`` taps."""
        channels = self.in_channels if self.stride == 1 else self.inner_channels
        return self.groups * self.out_channels, channels, self.stride, self.stride

    @property
    def subspaces_shape(self) -> tuple[int, int, int, int] | None:
        """Of the matrices whose columns span the ranges of the projectors."""
        if self.factors == 0:
            return None
        return self.factors, self.groups, self.inner_channels, self.inner_channels // 2

    @property
    def entry_shape(self) -> tuple[int, int, int] | None:
        """Of the matrix from the input to more inner channels, where a stride needs one."""
        if self.stride == 1 or self.inner_channels == self.in_channels:
            return None
        return self.groups, self.inner_channels, self.in_channels

    def steps(self) -> Iterator[tuple[int, bool]]:
        """Of each factor: 0 along the height or 1 along the width, and whether ``1 - P`` leads.

        The sides take turns. So do ``P`` and ``1 - P``, of which one has more columns where the
        number of channels is odd: the kernel stays centred.
        """
        more = (self.height - self.stride, self.width - self.stride)
        for i in range(max(more)):
            for axis in (0, 1):
                if i < more[axis]:
                    yield axis, i % 2 == 1


def orthonormal(a: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch m n"]:
    """Orthonormal columns by Gram-Schmidt, or rows where ``n > m``, of any finite matrix.

    The QR decomposition with a non-negative diagonal of ``R``, in float64 on CPU. Differentiable
    where the rank is full; any positive factor of ``a`` does not matter.
    """
    if a.shape[-1] > a.shape[-2]:
        return orthonormal(a.mT).mT
    work = a.to(working_dtype(a))
    q, _ = torch.linalg.qr(work)
    # The signs are LAPACK's, and jump; with these the columns move as smoothly as a does. The sum
    # is the diagonal of R, of which Inductor cannot take a view.
    sign = torch.where((q * work).sum(dim=-2, keepdim=True) < 0, -1.0, 1.0)
    turned: Tensor = q * sign.to(q)
    return turned.to(result_dtype(a.dtype))


def block_kernel(
    weight: Tensor,
    subspaces: Tensor | None = None,
    entry: Tensor | None = None,
    *,
    sizes: BlockSizes,
) -> Float[Tensor, "out c kh kw"]:
    """The kernel, of which the convolution with its stride and circular padding is orthogonal.

    Args:
        weight: ``sizes.weight_shape``.
        subspaces: ``sizes.subspaces_shape``.
        entry: ``sizes.entry_shape``.
        sizes: Of the kernel.

    Returns:
        ``(groups * out_channels, in_channels, height, width)`` in the dtype of ``weight``. With
        ``out_channels <= in_channels * stride^2`` the convolution has orthonormal rows, and else
        orthonormal columns. Differentiable where ``weight``, ``subspaces`` and ``entry`` have full
        rank, as matrices of each group.

    Source:
        Li et al. (2019), arXiv:1911.00937, for the product; Boissin et al. (2025),
        arXiv:2501.07930, for stride and groups. Signs of QR and the order of ``P`` are ours.
    """
    out, channels, height, width, stride, groups = sizes
    with without_autocast(weight):
        matrix = orthonormal(weight.reshape(groups, out, -1))
        # All products are from the left. So a kernel whose last factor is the matrix is made
        # with its channels transposed, which leaves a projector as it is.
        last = 2 if stride == 1 and out > channels else 1
        taps = matrix.reshape(groups, out, -1, stride, stride).movedim(last, -1)
        if subspaces is not None:
            spans = orthonormal(subspaces)
            # Formed at once: as many numbers to multiply as by a span and back, in half the calls.
            projectors = (spans @ spans.mT).unbind()
            for projector, (axis, swap) in zip(projectors, sizes.steps(), strict=True):
                taps = _longer(taps, projector, axis + 2, swap=swap)
        if entry is not None:
            narrow = orthonormal(entry).mT @ taps.flatten(2)
            taps = narrow.reshape(groups, channels, *taps.shape[2:])
        kernel = taps.movedim(-1, last)
        shape = (groups * out, channels, height, width)
        made: Tensor = kernel.reshape(shape).to(weight.dtype).contiguous()
        return made


def current_block_kernel(held: tuple[Tensor, ...], sizes: BlockSizes) -> Tensor:
    """``block_kernel``, made anew only for derivatives and after a change of what it is made of."""
    if wants_derivatives(held):
        return block_kernel(*held, sizes=sizes)
    return _KERNELS(held, tuple(sizes))[0]


def _longer(taps: Tensor, projector: Tensor, axis: int, *, swap: bool) -> Tensor:
    """The product of ``(P, 1 - P)`` and ``taps`` ``(groups, c, kh, kw, columns)``."""
    first = (projector @ taps.flatten(2)).view_as(taps)
    second = taps - first
    if swap:
        first, second = second, first
    # Not slices: the backward of each would fill the whole with zeros.
    n = taps.shape[axis]
    start, later = torch.split(first, [1, n - 1], axis)
    earlier, end = torch.split(second, [n - 1, 1], axis)
    return torch.cat((start, later + earlier, end), axis)


def _like(held: tuple[Tensor, ...], settings: tuple[int, ...]) -> tuple[Tensor, ...]:
    out, channels, height, width, _, groups = settings
    return (held[0].new_empty(groups * out, channels, height, width),)


_KERNELS = Kept(
    "block_kernel",
    lambda held, settings: (block_kernel(*held, sizes=BlockSizes(*settings)),),
    _like,
)
