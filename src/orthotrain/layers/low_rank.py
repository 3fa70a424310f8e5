"""Low-rank linear layers: a small ``core`` is trained, or both factors are."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._checks import require_count
from orthotrain._doors import checked
from orthotrain.layers._built import become_
from orthotrain.layers._contraction import low_rank_linear
from orthotrain.layers._cost import Bases
from orthotrain.layers._factors import holds_pair
from orthotrain.layers._forms import register_low_rank
from orthotrain.layers._inference import plain_linear
from orthotrain.layers._pair_contraction import pair_linear
from orthotrain.layers._rank_symbols import tell_sizes
from orthotrain.layers._single_weight import Layer, SingleWeight, copied
from orthotrain.layers._tracing import leaf
from orthotrain.linalg.matrices import WeightLayout, weight_layout

_Proxy = torch.fx.Proxy


@register_low_rank(
    "torch.nn.modules.linear.Linear", "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"
)
@checked
class LowRankLinear(SingleWeight, nn.Linear):
    """Linear layer with the weight ``u @ core @ vh``; only ``core`` and ``bias`` are trained.

    With trained bases the weight is ``left @ right``. One Parameter ``pair`` of ``(k, m + n)``
    holds ``left^T`` and ``right`` side by side; ``u``, ``core`` and ``vh`` are then computed when
    read, without gradient.

    Args:
        in_features: Width ``n`` of the input.
        out_features: Width ``m`` of the output.
        rank: ``k``, from 1 to ``min(m, n)``.
        bias: Whether a bias is added.
        device: Device of all tensors.
        dtype: Floating-point type of all tensors.

    Attributes:
        u: ``(m, k)`` buffer with orthonormal columns.
        core: ``(k, k)`` Parameter.
        vh: ``(k, n)`` buffer with orthonormal rows.
        weight: ``(m, n)``, materialized when read.

    Raises:
        RankError: ``rank`` is outside ``[1, min(m, n)]``.

    Note:
        The weight starts as the best part of rank ``k`` of a fresh ``nn.Linear`` is distributed;
        below full rank none is decomposed. Bases are the ``Q`` of two Gaussian matrices, singular
        values the leading quantiles of the law of Marchenko and Pastur. So do other layers.

    Source:
        Coquelin et al., arXiv:2401.08505.

    Example:
        >>> layer = LowRankLinear(8, 6, rank=2)
        >>> layer(torch.zeros(5, 8)).shape, sorted(n for n, _ in layer.named_parameters())
        (torch.Size([5, 6]), ['bias', 'core'])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rank: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_count("LowRankLinear", "in_features", in_features)
        require_count("LowRankLinear", "out_features", out_features)
        become_(self, lambda: nn.Linear(in_features, out_features, bias, device, dtype), rank)

    @classmethod
    @checked
    def from_linear(
        cls: type[Layer], linear: nn.Linear, *, rank: int | None = None, bases: Bases = "frozen"
    ) -> Layer:
        """A low-rank copy of a linear layer: its best approximation of that rank.

        Args:
            linear: The dense layer; not changed and not shared.
            rank: ``k``; ``None`` keeps the full rank, and with it the function.
            bases: ``"trained"`` trains both factors, ``"frozen"`` the core between them.

        Raises:
            ConfigError: Not the plain torch layer of this class: a subclass, low-rank already.
            RankError: ``rank`` is outside ``[1, min(m, n)]``.
        """
        return copied(cls, linear, rank, bases)

    @classmethod
    def layouts(cls, module: nn.Module, weight: str) -> tuple[WeightLayout, ...]:
        """One block, ``out_features x in_features``."""
        assert isinstance(module, nn.Linear)
        return (weight_layout(module, weight, (module.out_features, module.in_features)),)

    def forward(self, x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows m"]:
        """``x @ weight^T + bias`` without building the weight, where that is cheaper."""
        if isinstance(x, _Proxy):
            return leaf(self, x)
        if (y := plain_linear(self, x)) is not None:
            return y
        if holds_pair(self):
            return pair_linear(x, self.pair, self.bias, m=self.out_features)
        tell_sizes((self.u.shape[0], self.out_features))
        return low_rank_linear(x, self.u, self.core, self.vh, self.bias)

    def _fresh(self) -> nn.Module:
        like = self.pair if holds_pair(self) else self.core
        return nn.Linear(
            self.in_features, self.out_features, self.bias is not None, like.device, like.dtype
        )


class TransposedLinear(nn.Module):
    """Dense form of a ``LowRankTransposedLinear`` that was built directly: weight ``(in, out)``."""

    bias: nn.Parameter

    def __init__(
        self, nf: int, nx: int, *, device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.empty(nx, nf, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(nf, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weight as Transformers does, ``N(0, 0.02^2)``; the bias is zero."""
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows m"]:
        """``x @ weight + bias``."""
        return F.linear(x, self.weight.mT, self.bias)


@checked
@register_low_rank(
    "transformers.pytorch_utils.Conv1D", "orthotrain.layers.low_rank.TransposedLinear"
)
class LowRankTransposedLinear(SingleWeight):
    """Low-rank form of the ``Conv1D`` of Transformers: a linear layer with weight ``(in, out)``.

    Made in place out of that class, so Transformers is never imported here; or built directly,
    with the arguments in that class's order.

    Args:
        nf: Width of the output.
        nx: Width of the input.
        rank: ``k``, from 1 to ``min(nx, nf)``; None is full rank.
        device: Device of all tensors.
        dtype: Floating-point type of all tensors.

    Raises:
        ConfigError: A width below one.
        RankError: ``rank`` is out of range.
    """

    rows_are_inputs: ClassVar[bool] = True
    nx: int
    nf: int
    bias: nn.Parameter

    def __init__(
        self,
        nf: int,
        nx: int,
        *,
        rank: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        require_count("LowRankTransposedLinear", "nf", nf)
        require_count("LowRankTransposedLinear", "nx", nx)
        become_(self, lambda: TransposedLinear(nf, nx, device=device, dtype=dtype), rank)

    @classmethod
    def layouts(cls, module: nn.Module, weight: str) -> tuple[WeightLayout, ...]:
        """One block, ``in x out`` as that class stores it."""
        return (weight_layout(module, weight, (int(module.nx), int(module.nf))),)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows m"]:
        """``x @ weight + bias`` without building the weight, where that is cheaper."""
        if isinstance(x, _Proxy):
            return leaf(self, x)
        if (y := plain_linear(self, x)) is not None:
            return y
        if holds_pair(self):
            return pair_linear(x, self.pair, self.bias, m=self.nx, inputs_first=True)
        tell_sizes((self.vh.shape[1], self.nf))
        return low_rank_linear(x, self.vh.mT, self.core.mT, self.u.mT, self.bias)

    def _fresh(self) -> nn.Module:
        return self._dense_class(self.nf, self.nx).to(self.bias)

    def extra_repr(self) -> str:
        """Sizes as that class names them, and the rank."""
        return f"nf={self.nf}, nx={self.nx}, rank={self.rank}"
