"""Low-rank linear and convolution layers: a small ``core`` is trained, or both factors are."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._checks import require_count, require_tensor
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers._built import become_
from orthotrain.layers._contraction import ConvGeometry, low_rank_conv, low_rank_linear
from orthotrain.layers._cost import Bases
from orthotrain.layers._factors import (
    LowRankModule,
    factorize_,
    holds_pair,
    low_rank_class_of,
    register_low_rank,
)
from orthotrain.layers._inference import plain_conv, plain_linear
from orthotrain.layers._pair_contraction import pair_conv, pair_linear
from orthotrain.layers._readable import readable, readable_factor
from orthotrain.layers._tracing import exporting, leaf
from orthotrain.linalg.matrices import WeightLayout, weight_layout

# Not Self: the runtime type check of the tests cannot resolve that in a class method.
_Layer = TypeVar("_Layer", bound=LowRankModule)


class _SingleWeight(LowRankModule):
    """A layer with one weight, named ``weight``, that is always held in factors."""

    u: Tensor = readable_factor(0)
    core: Tensor = readable_factor(1)
    vh: Tensor = readable_factor(2)
    weight: Tensor = readable("weight")
    pair: nn.Parameter  # with trained bases only

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw a fresh dense weight and bias as torch does; keep its part inside the basis.

        After ``to_empty`` there is none: the best approximation of this rank is kept.
        """
        fresh = self._fresh()
        weight, bias = fresh._parameters["weight"], self._parameters.get("bias")
        assert weight is not None
        self.project_(weight)
        if bias is not None:
            bias.copy_(fresh.get_parameter("bias"))

    def _fresh(self) -> nn.Module:
        raise TypeError(f"{type(self).__name__} must define _fresh(), which makes its dense layer")

    def extra_repr(self) -> str:
        """The dense layer's description, and the rank."""
        return f"{super().extra_repr()}, rank={self.rank}"


@register_low_rank(
    "torch.nn.modules.linear.Linear", "torch.nn.modules.linear.NonDynamicallyQuantizableLinear"
)
@checked
class LowRankLinear(_SingleWeight, nn.Linear):
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
        cls: type[_Layer], linear: nn.Linear, *, rank: int | None = None, bases: Bases = "frozen"
    ) -> _Layer:
        """A low-rank copy of a linear layer: its best approximation of that rank.

        Args:
            linear: The dense layer; not changed and not shared.
            rank: ``k``; ``None`` keeps the full rank, and with it the function.
            bases: ``"trained"`` trains both factors, ``"frozen"`` the core between them.

        Raises:
            ConfigError: Not the plain torch layer of this class: a subclass, low-rank already.
            RankError: ``rank`` is outside ``[1, min(m, n)]``.
        """
        return _copied(cls, linear, rank, bases)

    @classmethod
    def layouts(cls, module: nn.Module, weight: str) -> tuple[WeightLayout, ...]:
        """One block, ``out_features x in_features``."""
        assert isinstance(module, nn.Linear)
        return (weight_layout(module, weight, (module.out_features, module.in_features)),)

    def forward(self, x: Float[Tensor, "*rows n"]) -> Float[Tensor, "*rows m"]:
        """``x @ weight^T + bias`` without building the weight, where that is cheaper."""
        if isinstance(x, torch.fx.Proxy):
            return leaf(self, x)
        if (y := plain_linear(self, x, self.bias)) is not None:
            return y
        if holds_pair(self):
            return pair_linear(x, self.pair, self.bias, m=self.out_features)
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
class LowRankTransposedLinear(_SingleWeight):
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
        if isinstance(x, torch.fx.Proxy):
            return leaf(self, x)
        if (y := plain_linear(self, x, self.bias, inputs_first=True)) is not None:
            return y
        if holds_pair(self):
            return pair_linear(x, self.pair, self.bias, m=self.nx, inputs_first=True)
        return low_rank_linear(x, self.vh.mT, self.core.mT, self.u.mT, self.bias)

    def _fresh(self) -> nn.Module:
        return self._dense_class(self.nf, self.nx).to(self.bias)

    def extra_repr(self) -> str:
        """Sizes as that class names them, and the rank."""
        return f"nf={self.nf}, nx={self.nx}, rank={self.rank}"


class _LowRankConv(_SingleWeight):
    """What the convolutions share: geometry from the module, one factorization per group."""

    @classmethod
    def layouts(cls, module: nn.Module, weight: str) -> tuple[WeightLayout, ...]:
        """One block per group, ``out / groups`` by ``in / groups`` times the kernel's size."""
        assert isinstance(module, nn.modules.conv._ConvNd)
        shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
        return (weight_layout(module, weight, shape),)

    @classmethod
    @checked
    def from_conv(
        cls: type[_Layer],
        conv: nn.modules.conv._ConvNd,
        *,
        rank: int | None = None,
        bases: Bases = "frozen",
    ) -> _Layer:
        """A low-rank copy of a convolution: its best approximation of that rank.

        Args:
            conv: The dense layer; not changed and not shared.
            rank: ``k`` of each group; ``None`` keeps the full rank, and with it the function.
            bases: ``"trained"`` trains both factors, ``"frozen"`` the core between them.

        Raises:
            ConfigError: Not the plain torch layer of this class: a subclass, low-rank already.
            RankError: ``rank`` is outside ``[1, min(m, n)]``.
        """
        return _copied(cls, conv, rank, bases)

    def _forward(self, x: Tensor) -> Tensor:
        assert isinstance(self, nn.modules.conv._ConvNd)
        if isinstance(x, torch.fx.Proxy):
            return leaf(self, x)
        dims = len(self.kernel_size)
        require_tensor(type(self).__name__, "x", x)
        if x.ndim not in (dims + 1, dims + 2) or x.shape[-dims - 1] != self.in_channels:
            sizes = ", ".join((str(self.in_channels), *"dhw"[-dims:]))
            raise ShapeError(
                f"{type(self).__name__} needs x of shape (batch, {sizes}) or ({sizes}), got "
                f"{tuple(x.shape)}; check the layer before it"
            )
        batch = x if x.ndim == dims + 2 else x.unsqueeze(0)
        channels_last = not exporting() and batch.stride(1) == 1 and not batch.is_contiguous()
        padded, padding = _padded(self, batch)
        geometry = ConvGeometry(self.stride, padding, self.dilation, channels_last=channels_last)
        y, lead = plain_conv(self, padded, self.bias, geometry), () if self.groups > 1 else (1,)
        if y is None and holds_pair(self):
            pair, m = self.pair.reshape(*lead, *self.pair.shape), self.out_channels // self.groups
            y = pair_conv(padded, pair, self.bias, geometry, m=m, kernel=self.kernel_size)
        elif y is None:
            u, core = (t.reshape(*lead, *t.shape) for t in (self.u, self.core))
            filters = self.vh.reshape(-1, self.in_channels // self.groups, *self.kernel_size)
            y = low_rank_conv(padded, u, core, filters, self.bias, geometry)
        return y if batch is x else y.squeeze(0)

    def _fresh(self) -> nn.Module:
        assert isinstance(self, nn.modules.conv._ConvNd)
        like = self.pair if holds_pair(self) else self.core
        return self._dense_class(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding,
            self.dilation, self.groups, self.bias is not None, self.padding_mode,
            like.device, like.dtype,
        )  # fmt: skip


@checked
@register_low_rank("torch.nn.modules.conv.Conv1d")
class LowRankConv1d(_LowRankConv, nn.Conv1d):
    """1-D convolution with the weight ``u @ core @ vh`` of each group; see ``LowRankConv2d``."""

    def __init__(self, *args: Any, rank: int, **kwargs: Any) -> None:
        become_(self, lambda: nn.Conv1d(*args, **kwargs), rank)

    def forward(self, x: Float[Tensor, "*batch c w"]) -> Float[Tensor, "*batch m out_w"]:
        """``(batch, in, size)`` to ``(batch, out, size')``; the batch may be missing."""
        return self._forward(x)


@checked
@register_low_rank("torch.nn.modules.conv.Conv2d")
class LowRankConv2d(_LowRankConv, nn.Conv2d):
    """2-D convolution with the weight ``u @ core @ vh`` of each group.

    Keeps for backward the ``k`` channels between ``vh`` and ``u``, not its input.

    Args:
        args: As ``nn.Conv2d`` takes them.
        rank: ``k`` of each group, from 1 to the smaller side of ``out / groups`` by
            ``in / groups * kernel``.
        kwargs: As ``nn.Conv2d`` takes them.

    Attributes:
        u: ``(out, k)`` buffer, ``(groups, out / groups, k)`` where there are groups.
        core: ``(k, k)`` Parameter, ``(groups, k, k)`` where there are groups.
        vh: ``(k, in * kernel)`` buffer, ``(groups, k, in / groups * kernel)`` with groups.
        weight: In the dense layer's shape, materialized when read.

    Raises:
        ConfigError: Arguments that ``nn.Conv2d`` refuses.
        RankError: ``rank`` is out of range.

    Source:
        Coquelin et al., arXiv:2401.08505; one factorization per group is ours.

    Example:
        >>> layer = LowRankConv2d(4, 6, 3, padding="same", rank=2)
        >>> layer(torch.zeros(5, 4, 8, 8)).shape, layer.core.shape
        (torch.Size([5, 6, 8, 8]), torch.Size([2, 2]))
    """

    def __init__(self, *args: Any, rank: int, **kwargs: Any) -> None:
        become_(self, lambda: nn.Conv2d(*args, **kwargs), rank)

    def forward(self, x: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch m out_h out_w"]:
        """``(batch, in, h, w)`` to ``(batch, out, h', w')``; the batch may be missing."""
        return self._forward(x)


@checked
@register_low_rank("torch.nn.modules.conv.Conv3d")
class LowRankConv3d(_LowRankConv, nn.Conv3d):
    """3-D convolution with the weight ``u @ core @ vh`` of each group; see ``LowRankConv2d``."""

    def __init__(self, *args: Any, rank: int, **kwargs: Any) -> None:
        become_(self, lambda: nn.Conv3d(*args, **kwargs), rank)

    def forward(
        self, x: Float[Tensor, "*batch c d h w"]
    ) -> Float[Tensor, "*batch m out_d out_h out_w"]:
        """``(batch, in, d, h, w)`` to ``(batch, out, d', h', w')``; the batch may be missing."""
        return self._forward(x)


def _copied(cls: type[_Layer], dense: nn.Module, rank: int | None, bases: Bases) -> _Layer:
    """A low-rank layer out of a copy of a dense one."""
    known = low_rank_class_of(dense)
    if known is None or isinstance(dense, LowRankModule) or not issubclass(cls, known):
        raise ConfigError(
            f"{cls.__name__} needs the plain torch layer that it replaces, got a "
            f"{type(dense).__name__}, which computes something else; make a low-rank layer dense "
            "first with orthotrain.to_dense"
        )
    layer = copy.deepcopy(dense)
    factorize_(layer, "weight", cls, rank=rank, bases=bases)
    assert isinstance(layer, cls)
    return layer


def _padded(conv: nn.modules.conv._ConvNd, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input padded by what is not symmetric zeros, and the zero padding left to do."""
    both = conv._reversed_padding_repeated_twice
    before, after = tuple(both[-2::-2]), tuple(both[-1::-2])
    if conv.padding_mode != "zeros":
        return F.pad(x, both, mode=conv.padding_mode), (0,) * len(before)
    if before != after:  # padding="same" with an even kernel
        return F.pad(x, both), (0,) * len(before)
    return x, before
