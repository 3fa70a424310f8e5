"""A weight as matrices, read in one way by everything that looks at weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


@dataclass(frozen=True)
class WeightLayout:
    """How a weight tensor is read as ``blocks`` matrices of ``m`` outputs by ``n`` inputs.

    Attributes:
        shape: Shape of the weight.
        blocks: How many matrices it holds: groups of a convolution, packed projections.
        m: Rows of each.
        n: Columns of each.
        inputs_first: The weight has its inputs in front, like that of a transposed convolution.
        widths: Columns of the two factors of a pair, else None. They are two matrices of one
            size, ``n`` being the wider: zeros fill the narrower one up, which changes neither
            singular values and vectors nor inner products.
    """

    shape: tuple[int, ...]
    blocks: int
    m: int
    n: int
    inputs_first: bool = False
    widths: tuple[int, int] | None = None

    @property
    def full_rank(self) -> int:
        """The largest rank a block can have."""
        return min(self.m, self.n)

    def matrices(self, tensor: Tensor) -> Tensor:
        """``(blocks, m, n)`` of a tensor of ``shape``, in any memory format."""
        if self.widths is not None:
            sides = torch.split(tensor.reshape(-1, self.m, sum(self.widths)), list(self.widths), -1)
            filled = [F.pad(side, (0, self.n - side.shape[-1])) for side in sides]
            return torch.stack(filled, 1).flatten(0, 1)
        if self.inputs_first:
            inputs = self.shape[0] // self.blocks
            tensor = tensor.reshape(self.blocks, inputs, self.shape[1], -1).transpose(1, 2)
        return tensor.reshape(self.blocks, self.m, self.n)

    def matrix(self, tensor: Tensor) -> Tensor:
        """``(m, n)``, or ``(blocks, m, n)`` where there are several blocks."""
        if self.blocks == 1 and not self.inputs_first:
            return tensor.reshape(self.m, self.n)
        matrices = self.matrices(tensor)
        return matrices if self.blocks > 1 else matrices[0]

    def tensor(self, matrices: Tensor) -> Tensor:
        """What ``matrices`` or ``matrix`` gave, as a tensor of ``shape``."""
        if self.widths is not None:
            sides = matrices.reshape(-1, 2, self.m, self.n).unbind(1)
            cut = [side[..., :width] for side, width in zip(sides, self.widths, strict=True)]
            return torch.cat(cut, -1).reshape(self.shape)
        if self.inputs_first:
            inputs = self.shape[0] // self.blocks
            split = matrices.reshape(self.blocks, self.shape[1], inputs, -1)
            matrices = split.transpose(1, 2)
        return matrices.reshape(self.shape)

    def factor_shapes(self, rank: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of ``u``, ``core`` and ``vh`` at a rank."""
        lead = (self.blocks,) if self.blocks > 1 else ()
        return (*lead, self.m, rank), (*lead, rank, rank), (*lead, rank, self.n)

    def pair_shape(self, rank: int) -> tuple[int, ...]:
        """Shape of ``left^T`` and ``right`` side by side, at a rank."""
        lead = (self.blocks,) if self.blocks > 1 else ()
        return (*lead, rank, self.m + self.n)

    def __str__(self) -> str:
        return f"{f'{self.blocks} of ' if self.blocks > 1 else ''}{self.m}x{self.n}"

    @classmethod
    def of_blocks(cls, shape: Sequence[int], blocks: int = 1) -> WeightLayout:
        """Rows split into ``blocks``, all other dimensions flattened into columns."""
        n = torch.Size(shape[1:]).numel()
        return cls(shape=tuple(shape), blocks=blocks, m=shape[0] // blocks, n=n)

    @classmethod
    def of_inputs_first(cls, shape: Sequence[int], groups: int = 1) -> WeightLayout:
        """The weight ``(in, out / groups, *taps)`` of a transposed convolution."""
        taps = torch.Size(shape[2:]).numel()
        return cls(tuple(shape), groups, shape[1], shape[0] // groups * taps, inputs_first=True)

    @classmethod
    def of_pair(cls, shape: Sequence[int], m: int) -> WeightLayout:
        """Two matrices per block, ``left^T`` of ``k x m`` and ``right`` of ``k x n``."""
        widths, blocks = (m, shape[-1] - m), torch.Size(shape[:-2]).numel()
        return cls(tuple(shape), 2 * blocks, shape[-2], max(widths), widths=widths)


def weight_layout(module: nn.Module, name: str, shape: Sequence[int]) -> WeightLayout:
    """How the weight ``name`` of ``module`` is read as matrices of outputs by inputs.

    A convolution has one matrix per group, of its outputs by all the rest, a transposed one, too.
    Packed attention projections are three matrices. A low-rank layer's core is what it is: a
    matrix, or a stack of them. Its pair is two matrices per block. Everything else is one matrix
    of its first dimension by the rest.

    Transformers' ``Conv1D``, ``(in, out)``, needs no case: nothing that is done to a matrix here
    tells it from its transpose.

    Args:
        module: Who owns the weight.
        name: The weight's name there, such as ``"weight"``.
        shape: The weight's shape, of two dimensions or more.

    Example:
        >>> str(weight_layout(nn.Conv2d(32, 32, 3, groups=4), "weight", (32, 8, 3, 3)))
        '4 of 8x72'
    """
    if name.endswith("core"):
        blocks = torch.Size(shape[:-2]).numel()
        return WeightLayout(tuple(shape), blocks, shape[-2], shape[-1])
    if name.endswith("pair"):
        return WeightLayout.of_pair(shape, module.layout_of_pair(name).m)  # type: ignore[operator]
    if isinstance(module, nn.MultiheadAttention) and name == "in_proj_weight":
        return WeightLayout.of_blocks(shape, 3)
    if isinstance(module, _ConvTransposeNd) and len(shape) == 2 + len(module.kernel_size):
        return WeightLayout.of_inputs_first(shape, module.groups)
    if isinstance(module, _ConvNd) and not module.transposed and shape[0] % module.groups == 0:
        return WeightLayout.of_blocks(shape, module.groups)
    return WeightLayout.of_blocks(shape)


def stored_layout(key: str, shape: Sequence[int], bias: Tensor | None = None) -> WeightLayout:
    """How a dense weight of a state dict is read, as far as names and shapes tell.

    Packed attention is known by its name, a transposed convolution with a bias by the length of
    that bias. The groups of other convolutions are not in a state dict: they read as one.

    Args:
        key: The weight's key.
        shape: Its shape, of two dimensions or more.
        bias: The tensor named ``bias`` beside it, if there is one.
    """
    if key.endswith("in_proj_weight") and len(shape) == 2 and shape[0] % 3 == 0:
        return WeightLayout.of_blocks(shape, 3)
    if bias is not None and len(shape) > 2 and len(bias) not in (0, shape[0]):
        groups, rest = divmod(len(bias), shape[1])
        if groups and not rest and shape[0] % groups == 0:
            return WeightLayout.of_inputs_first(shape, groups)
    return WeightLayout.of_blocks(shape)
