"""Orthogonal convolution (OW): the exponential of a skew convolution."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from orthotrain._checks import require_number
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers._tracing import leaf, untraced
from orthotrain.linalg import (
    conv_exponential,
    conv_skew_part,
    conv_spectral_bound,
    exponential_remainder,
)

# As published: powers of the operator, and rounds of the power iteration at the start, at every
# 200th forward pass of training and else.
_TRAIN_TERMS, _EVAL_TERMS = 5, 10
_START_ROUNDS, _ROUNDS, _REFRESH_PASSES = 50, 1, 200
# A power iteration ends below the norm. After 50 rounds from a random start it is 2.3 % short at
# most (measured, 60 kernels of 7 to 512 channels), and 6 % in theory, on average at 512 channels.
_NORM_SLACK = 1.1


@checked
class OrthogonalConv2d(nn.Module):
    r"""Skew orthogonal convolution (SOC, called OW where it stands before whitening).

    ``y = exp(A) x + bias``, with ``A`` the convolution with the skew part of ``weight``, scaled to
    a norm of at most ``max_norm``. As ``A`` is skew, ``exp(A)`` is orthogonal: no direction of the
    input is lost or amplified. Where the numbers of channels differ, the missing input channels
    are zero (orthonormal columns), or the outputs beyond ``out_channels`` are dropped (orthonormal
    rows). A stride moves blocks of ``stride x stride`` pixels into channels first, so the
    kernel then spans ``kernel_size * stride`` pixels, and the input counts
    ``in_channels * stride^2`` channels.

    **Tolerance.** Every singular value of the Jacobian is within ``layer.tolerance`` of one:
    ``(1.1 max_norm)^(t + 1) / (t + 1)!`` with ``t = 5`` powers of ``A`` in training and 10 in
    evaluation. By default that is 2.9e-4 in training; in evaluation it is 1.4e-9, so rounding
    decides: about 1e-6 in float32. The factor 1.1 is for the power iteration that measures the
    norm, which ends below it by a few percent at most. In training it makes one round per
    forward pass, and 50 at the first and every 200th: a weight that is replaced by hand
    during training is measured well only some passes later. Evaluation makes 50 rounds each time,
    and keeps nothing.

    **Scale.** The published code leaves the factor ``sqrt(kh kw)`` out of the bound of the norm,
    which is ``max_norm = 0.7 * sqrt(kh kw)`` here: 2.1 for a 3x3 kernel, with a tolerance of .21
    in training. It turns further away from the identity, and stays near orthogonal only
    because the bound is rarely reached.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd, one number or a pair.
        stride: One number; height and width of the input must be multiples of it.
        bias: Whether a bias is added.
        max_norm: Largest norm of ``A``, an angle in radians: no vector is turned further.
        generator: Source of the initial weight; ``None`` takes torch's global one.
        device: Device of all tensors.
        dtype: Floating-point type of all tensors.

    Attributes:
        weight: ``(c, c, kh, kw)`` Parameter, ``c = max(out_channels, in_channels * stride^2)``,
            without constraint: its symmetric part and its scale do not matter. Drawn from
            ``N(0, 1 / c)``; as the scale does not matter, this sets how fast the layer turns at a
            given learning rate, and weight decay changes nothing but that.
        bias: ``(out_channels,)`` Parameter or ``None``; uniform in ``+-1 / sqrt(in kh kw)``.
        left_flat: ``(c,)`` buffer: vector of the power iteration, updated in training.
        left_rows: ``(c * kh,)`` buffer: likewise.
        passes: Buffer: forward passes in training so far.

    Raises:
        ConfigError: A size below one, an even kernel, or a ``max_norm`` outside ``(0, 2.7)``,
            where the series of training no longer tells singular values from zero.

    Note:
        The gradient flows through the scaling of ``A``, with the vectors of the power iteration
        taken as constants. Training keeps five feature maps of ``c`` channels for backward. The
        start of the power iteration is fixed, so equal weights and buffers give equal outputs.
        A kernel of size 1 with one channel has no skew part: the layer is the identity.

    Source:
        Singla and Feizi (2021), "Skew orthogonal convolutions", ICML, arXiv:2105.11417; before
        whitening, Song, Sebe and Wang, arXiv:2207.02119. ``max_norm`` and ``tolerance`` are ours.

    Example:
        >>> layer = OrthogonalConv2d(3, 16, 3, bias=False).eval()
        >>> x = torch.ones(2, 3, 8, 8)
        >>> y = layer(x)
        >>> y.shape, abs(y.norm() / x.norm() - 1).item() < 1e-5
        (torch.Size([2, 16, 8, 8]), True)
    """

    left_flat: Tensor
    left_rows: Tensor
    passes: Tensor

    def __init__(  # noqa: PLR0913 - those of a convolution, by keyword
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int = 1,
        bias: bool = True,
        max_norm: float = 0.7,
        generator: torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(kernel_size, int) and len(kernel_size) != 2:
            raise ConfigError(
                f"OrthogonalConv2d needs kernel_size as one number or a height and a width, got "
                f"{kernel_size}; a single number is both"
            )
        height, width = _pair(kernel_size)
        _require_sizes(in_channels, out_channels, (height, width), stride)
        require_number("OrthogonalConv2d", "max_norm", max_norm, above=0)
        off = exponential_remainder(_NORM_SLACK * max_norm, _TRAIN_TERMS)
        if off >= 1:
            raise ConfigError(
                f"OrthogonalConv2d needs max_norm below 2.7, got {max_norm}: the {_TRAIN_TERMS} "
                f"terms of its series may then be off by {off:.2g}, and singular values should be "
                f"1; the default is 0.7, the published scale of a 3x3 kernel 2.1"
            )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.max_norm = (height, width), stride, max_norm
        channels = max(out_channels, in_channels * stride**2)
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(channels, channels, height, width, **where))
        self.bias = nn.Parameter(torch.empty(out_channels, **where)) if bias else None
        self.register_buffer("left_flat", torch.empty(channels, **where))
        self.register_buffer("left_rows", torch.empty(channels * height, **where))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64, device=device))
        # The same number where it can be read without waiting for the device.
        self._passes = 0
        self.reset_parameters(generator=generator)

    @torch.no_grad()
    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw weight and bias afresh, and start the power iteration anew."""
        nn.init.normal_(self.weight, std=self.weight.shape[0] ** -0.5, generator=generator)
        if self.bias is not None:
            bound = (self.in_channels * self.kernel_size[0] * self.kernel_size[1]) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)
        if not self.weight.is_meta:
            flat, rows = conv_spectral_bound(self.weight, rounds=0, skew=True).left
            self.left_flat.copy_(flat)
            self.left_rows.copy_(rows)
        self.passes.zero_()
        self._passes = 0

    @property
    def tolerance(self) -> float:
        """How far a singular value of the Jacobian may be from one, rounding aside."""
        return exponential_remainder(_NORM_SLACK * self.max_norm, self._terms)

    @property
    def _terms(self) -> int:
        return _TRAIN_TERMS if self.training else _EVAL_TERMS

    @checked
    def forward(self, x: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch m out_h out_w"]:
        """``(batch, in, h, w)`` to ``(batch, out, h / stride, w / stride)``.

        The batch may be missing, or empty. NaN spreads as in any convolution.

        Raises:
            ShapeError: Other channels, or a height or width that the stride does not divide.
        """
        if isinstance(x, torch.fx.Proxy):
            return leaf(self, x)
        _require_input(x, self.in_channels, self.stride)
        batch = x if x.ndim == 4 else x.unsqueeze(0)
        batch = _space_to_depth(batch, self.stride)
        skew = conv_skew_part(self.weight)
        bound = conv_spectral_bound(skew, left=self._left_vectors(), rounds=0, skew=True).bound
        scale = self.max_norm / torch.where(bound == 0, 1.0, bound)
        kernel = skew * scale.to(skew)
        y = conv_exponential(batch, kernel, terms=self._terms, out_channels=self.out_channels)
        if self.bias is not None:
            y = y + self.bias.view(-1, 1, 1)
        return y if x.ndim == 4 else y.squeeze(0)

    @untraced
    @torch.no_grad()
    def _left_vectors(self) -> tuple[Tensor, ...]:
        """Vectors of the power iteration for this pass: new tensors, in training also kept."""
        rounds = _START_ROUNDS
        if self.training and self._passes % _REFRESH_PASSES != 0:
            rounds = _ROUNDS
        kept = (self.left_flat, self.left_rows)
        left = conv_spectral_bound(
            conv_skew_part(self.weight), left=kept, rounds=rounds, skew=True
        ).left
        if self.training:
            for old, new in zip(kept, left, strict=True):
                old.copy_(new)
            self.passes.add_(1)
            self._passes += 1
        return left

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._passes = 0 if self.passes.is_meta else int(self.passes)

    def extra_repr(self) -> str:
        """Sizes as a convolution names them."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        if self.stride != 1:
            text += f", stride={self.stride}"
        if self.bias is None:
            text += ", bias=False"
        return f"{text}, max_norm={self.max_norm}"


def _space_to_depth(x: Tensor, stride: int) -> Tensor:
    """``(n, c, h, w)`` to ``(n, c * stride^2, h / stride, w / stride)``, one block per pixel.

    ``pixel_unshuffle`` leaves an empty batch as it is.
    """
    if stride == 1:
        return x
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // stride, stride, width // stride, stride)
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def _require_sizes(
    in_channels: int, out_channels: int, kernel_size: tuple[int, int], stride: int
) -> None:
    if min(in_channels, out_channels, *kernel_size, stride) < 1:
        raise ConfigError(
            f"OrthogonalConv2d needs sizes of at least 1, got in_channels {in_channels}, "
            f"out_channels {out_channels}, kernel_size {kernel_size}, stride {stride}"
        )
    if any(size % 2 == 0 for size in kernel_size):
        odd = tuple(size | 1 for size in kernel_size)
        raise ConfigError(
            f"OrthogonalConv2d needs odd kernel sizes, got {kernel_size}: an even kernel has no "
            f"middle, so its convolution cannot be skew; take {odd}"
        )


def _require_input(x: Tensor, channels: int, stride: int) -> None:
    if x.ndim not in (3, 4) or x.shape[-3] != channels:
        raise ShapeError(
            f"OrthogonalConv2d needs x of shape (batch, {channels}, h, w) or ({channels}, h, w), "
            f"got {tuple(x.shape)}; check the layer before it"
        )
    if x.shape[-2] % stride or x.shape[-1] % stride:
        raise ShapeError(
            f"OrthogonalConv2d needs a height and width that its stride {stride} divides, got "
            f"{tuple(x.shape)}; pad or crop the input: a layer that drops pixels is not orthogonal"
        )
