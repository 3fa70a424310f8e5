"""Orthogonal convolutions (OW): a product of small kernels, or the exponential of a skew one."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from orthotrain._doors import checked
from orthotrain.errors import ConfigError
from orthotrain.layers._block_kernel import current_block_kernel, orthonormal
from orthotrain.layers._circular_conv import circular_conv, circular_conv_transpose
from orthotrain.layers._kept import Kept
from orthotrain.layers._orthogonal_sizes import (
    DEFAULT_NORM,
    EVAL_TERMS,
    NORM_SLACK,
    TRAIN_TERMS,
    ConvSizes,
    Method,
    Padding,
    require_picture,
)
from orthotrain.layers._parameters import resize_parameter_
from orthotrain.layers._tracing import leaf, untraced
from orthotrain.linalg import (
    conv_exponential,
    conv_skew_part,
    conv_spectral_bound,
    exponential_remainder,
)
from orthotrain.linalg._inputs import result_dtype

# Rounds of the power iteration, as published: at the start, at every 200th forward pass of
# training and else.
_START_ROUNDS, _ROUNDS, _REFRESH_PASSES = 50, 1, 200


@checked
class OrthogonalConv2d(nn.Module):
    r"""Orthogonal convolution (called OW where it stands before whitening), by two methods.

    As a map of whole images its Jacobian has orthonormal columns, or orthonormal rows where less
    comes out than goes in: no direction of the input is amplified, and none is lost but those that
    do not fit in the output.

    ``"kernel"`` multiplies small orthogonal kernels to one of ``kernel_size`` and convolves once,
    with circular padding: opposite borders of the image meet. ``"skew"`` is the exponential
    ``exp(A) x`` of a convolution ``A`` with a skew kernel, with zero padding: skew orthogonal
    convolution (SOC), ten convolutions of evaluation and five of training. It only turns
    near the identity, by at most ``max_norm``. ``"auto"`` takes ``"kernel"`` unless ``max_norm``,
    zero padding, a kernel below the stride or one channel per group ask for the other.

    **Tolerance.** Every singular value of the Jacobian is within ``layer.tolerance`` of one.
    ``"kernel"`` is exact: its rounding leaves 2e-6 in float32 and 1e-14 in float64. ``"skew"`` is
    within ``(1.1 max_norm)^(t + 1) / (t + 1)!`` with ``t = 5`` powers of ``A`` in training and 10
    in evaluation: by default 2.9e-4, and 1.4e-9, so rounding decides: about 1e-6 in float32. The
    factor 1.1 is for the power iteration that measures the norm, which ends below it by a few
    percent at most. In training it makes one round per forward pass, and 50 at the first and every
    200th: a weight that is replaced by hand during training is measured well only some passes
    later.

    **Evaluation** keeps the kernel, or the vectors of 50 rounds of the power iteration, until a
    weight changes. What torch counts is seen: ``load_state_dict`` and any operation in place. So
    are steps of fused optimizers and most writes through ``.data``, which it does not count.
    Where a pass records derivatives of the weight, the kernel is made in that pass. So are the
    vectors where Inductor compiles such a pass, unless its ``layout_optimization`` is off.

    **Stride.** ``"kernel"`` is a convolution with that stride, ``kernel_size >= stride``.
    ``"skew"`` moves blocks of ``stride x stride`` pixels into channels first, so its kernel spans
    ``kernel_size * stride`` pixels, and the input counts ``in_channels * stride^2`` channels.

    **Scale.** The published code of ``"skew"`` leaves the factor ``sqrt(kh kw)`` out of the bound
    of the norm, which is ``max_norm = 0.7 * sqrt(kh kw)`` here: 2.1 for a 3x3 kernel, with a
    tolerance of .21 in training. It turns further away from the identity, and stays near orthogonal
    only because the bound is rarely reached.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: One number or a pair; odd for ``"skew"``.
        stride: One number; height and width of the input must be multiples of it.
        groups: Blocks of channels that do not meet; ``"kernel"`` only.
        transposed: Whether the layer is the transpose of such a convolution: from ``h x w`` to
            ``h * stride x w * stride`` pixels; ``"kernel"`` only.
        padding_mode: ``"circular"`` for ``"kernel"``, ``"zeros"`` for ``"skew"``; each is exact
            with its own and refuses the other's.
        bias: Whether a bias is added.
        method: ``"kernel"``, ``"skew"``, or ``"auto"``, which also takes the method of a state
            dict that it loads.
        max_norm: Largest norm of ``A``, an angle in radians: no vector is turned further.
            ``"skew"`` only, 0.7 by default.
        generator: Source of the initial weight; ``None`` takes torch's global one.
        device: Device of all tensors.
        dtype: Floating-point type of all tensors.

    Attributes:
        method: ``"kernel"`` or ``"skew"``.
        weight: Parameter without constraint; its scale only sets how fast the layer turns at a
            given learning rate, and weight decay changes nothing but that. ``"kernel"``: ``(out,
            in / groups, s, s)`` with ``s`` the stride, the kernel whose flattening is made
            orthonormal, drawn so; with the channels of ``entry`` for ``in / groups`` where there
            is one; with ``in`` and ``out`` exchanged where ``transposed``. ``"skew"``: ``(c, c, kh,
            kw)``, ``c = max(out_channels, in_channels * stride^2)``, from ``N(0, 1 / c)``; only its
            skew part matters.
        subspaces: ``(kh + kw - 2 s, groups, c, c // 2)`` Parameter of ``"kernel"``: each spans the
            range of the projector ``P`` of a kernel of two taps, ``(P, 1 - P)``. ``None`` for a
            kernel as large as the stride.
        entry: ``(groups, c, in / groups)`` Parameter, where the stride of ``"kernel"`` leaves room
            for more channels ``c = out / groups / s^2`` than come in; else ``None``.
        bias: ``(out_channels,)`` Parameter or ``None``; uniform in ``+-1 / sqrt(in kh kw)``.
        left_flat: ``(c,)`` buffer of ``"skew"``: vector of the power iteration of training.
        left_rows: ``(c * kh,)`` buffer: likewise.
        passes: Buffer of ``"skew"``: forward passes in training so far.

    Raises:
        ConfigError: A size below one, or sizes and settings that the method does not have, by name;
            a ``max_norm`` outside ``(0, 2.7)``, where the series of training no longer tells
            singular values from zero.

    Note:
        Differentiable where ``weight``, ``subspaces`` and ``entry`` have full rank; with ``"skew"``
        everywhere, through the scaling of ``A``, with the vectors of the power iteration taken as
        constants. ``"skew"`` keeps five feature maps of ``c`` channels for backward. Equal weights
        and buffers give equal outputs. A skew kernel of size 1 with one channel is the identity.

        A state dict tells its method by its names. ``method="auto"`` changes ``weight`` in place
        where the method is the other; make the optimizer after that.

    Source:
        Li et al. (2019), "Preventing gradient attenuation in Lipschitz constrained convolutional
        networks", arXiv:1911.00937, and Boissin et al. (2025), "An adaptive orthogonal convolution
        scheme", arXiv:2501.07930. Singla and Feizi (2021), "Skew orthogonal convolutions",
        arXiv:2105.11417; before whitening, Song, Sebe and Wang, arXiv:2207.02119. ``max_norm`` and
        ``tolerance`` are ours.

    Example:
        >>> layer = OrthogonalConv2d(3, 16, 3, bias=False)
        >>> x = torch.ones(2, 3, 8, 8)
        >>> y = layer(x)
        >>> y.shape, abs(y.norm() / x.norm() - 1).item() < 1e-5
        (torch.Size([2, 16, 8, 8]), True)
    """

    weight: nn.Parameter
    subspaces: nn.Parameter | None
    entry: nn.Parameter | None
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
        groups: int = 1,
        transposed: bool = False,
        padding_mode: Padding = "auto",
        bias: bool = True,
        method: Literal["auto", "skew", "kernel"] = "auto",
        max_norm: float | None = None,
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
        self._sizes = ConvSizes(
            in_channels, out_channels, (height, width), stride, groups, transposed, padding_mode,
            max_norm,
        )  # fmt: skip
        self._sizes.require_possible()
        self._asked = method
        self.method: Method = self._sizes.fitting() if method == "auto" else method
        self._sizes.require(self.method)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.groups = (height, width), stride, groups
        self.transposed = transposed
        self.max_norm = DEFAULT_NORM if max_norm is None else max_norm
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self._hold(where)
        self.bias = nn.Parameter(torch.empty(out_channels, **where)) if bias else None
        self.reset_parameters(generator=generator)

    def _hold(self, where: dict[str, Any]) -> None:
        """Have the parameters and buffers of the method; ``weight`` stays the same object."""
        height, skew = self.kernel_size[0], self.method == "skew"
        channels, block = self._sizes.skew_channels, self._sizes.block
        shape = (channels, channels, *self.kernel_size) if skew else block.weight_shape
        weight = torch.empty(shape, **where)
        if "weight" in self._parameters:
            resize_parameter_(self.weight, weight)
        else:
            self.weight = nn.Parameter(weight)
        for name, more in (("subspaces", block.subspaces_shape), ("entry", block.entry_shape)):
            held = None if skew or more is None else nn.Parameter(torch.empty(more, **where))
            self.register_parameter(name, held)
        for name, size in (("left_flat", channels), ("left_rows", channels * height)):
            self.register_buffer(name, torch.empty(size, **where) if skew else None)
        passes = torch.zeros((), dtype=torch.int64, device=where["device"])
        self.register_buffer("passes", passes if skew else None)
        # The same number where it can be read without waiting for the device.
        self._passes = 0

    @torch.no_grad()
    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw all parameters afresh, and start the power iteration anew."""
        if self.method == "skew":
            nn.init.normal_(self.weight, std=self.weight.shape[0] ** -0.5, generator=generator)
        else:
            for parameter in self._made_of():
                nn.init.normal_(parameter, generator=generator)
                matrices = parameter
                if parameter is self.weight:
                    matrices = parameter.view(self.groups, -1, parameter[0].numel())
                if not parameter.is_meta:
                    parameter.copy_(orthonormal(matrices).reshape(parameter.shape))
        if self.bias is not None:
            bound = (self.in_channels * self.kernel_size[0] * self.kernel_size[1]) ** -0.5
            nn.init.uniform_(self.bias, -bound, bound, generator=generator)
        if self.method == "skew":
            if not self.weight.is_meta:
                flat, rows = conv_spectral_bound(self.weight, rounds=0, skew=True).left
                self.left_flat.copy_(flat)
                self.left_rows.copy_(rows)
            self.passes.zero_()
            self._passes = 0

    @property
    def tolerance(self) -> float:
        """How far a singular value of the Jacobian may be from one, rounding aside."""
        if self.method == "kernel":
            return 0.0
        return exponential_remainder(NORM_SLACK * self.max_norm, self._terms)

    @property
    def _terms(self) -> int:
        return TRAIN_TERMS if self.training else EVAL_TERMS

    @checked
    def forward(self, x: Float[Tensor, "*batch c h w"]) -> Float[Tensor, "*batch m out_h out_w"]:
        """``(batch, in, h, w)`` to ``(batch, out, h / stride, w / stride)``, or times ``stride``.

        The batch may be missing, or empty. NaN spreads as in any convolution.

        Raises:
            ShapeError: Other channels, or a height or width that the stride does not divide, or
                that is smaller than what the kernel reads beyond a border.
        """
        if isinstance(x, torch.fx.Proxy):
            return leaf(self, x)
        require_picture(x, self._sizes)
        batch = x if x.ndim == 4 else x.unsqueeze(0)
        y = self._exponential(batch) if self.method == "skew" else self._product(batch)
        return y if x.ndim == 4 else y.squeeze(0)

    def _product(self, batch: Tensor) -> Tensor:
        kernel = current_block_kernel(self._made_of(), self._sizes.block)
        convolve = circular_conv_transpose if self.transposed else circular_conv
        return convolve(batch, kernel, self.bias, stride=self.stride, groups=self.groups)

    def _made_of(self) -> tuple[Tensor, ...]:
        return tuple(t for t in (self.weight, self.subspaces, self.entry) if t is not None)

    def _exponential(self, batch: Tensor) -> Tensor:
        batch = _space_to_depth(batch, self.stride)
        skew = conv_skew_part(self.weight)
        kept = (self.left_flat, self.left_rows)
        left = self._next_vectors() if self.training else _VECTORS((self.weight, *kept), ())
        bound = conv_spectral_bound(skew, left=left, rounds=0, skew=True).bound
        scale = self.max_norm / torch.where(bound == 0, 1.0, bound)
        kernel = skew * scale.to(skew)
        y = conv_exponential(batch, kernel, terms=self._terms, out_channels=self.out_channels)
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    @untraced
    @torch.no_grad()
    def _next_vectors(self) -> tuple[Tensor, ...]:
        """Vectors of the power iteration for a pass of training: new tensors, also kept."""
        rounds = _START_ROUNDS if self._passes % _REFRESH_PASSES == 0 else _ROUNDS
        kept = (self.left_flat, self.left_rows)
        left = _iterated(self.weight, *kept, rounds=rounds)
        for old, new in zip(kept, left, strict=True):
            old.copy_(new)
        self.passes.add_(1)
        self._passes += 1
        return left

    def _load_from_state_dict(self, *args: Any) -> None:
        state_dict, prefix, *_, errors = args
        found: Method = "skew" if f"{prefix}left_flat" in state_dict else "kernel"
        if f"{prefix}weight" in state_dict and found != self.method:
            try:
                self._take(found)
            except ConfigError as error:
                errors.append(f"{prefix}weight: {error}")
                return
        super()._load_from_state_dict(*args)
        if self.method == "skew":
            self._passes = 0 if self.passes.is_meta else int(self.passes)

    def _take(self, method: Method) -> None:
        """Become a layer of the other method, to be filled by a state dict."""
        if self._asked != "auto":
            raise ConfigError(
                f"OrthogonalConv2d with method {self.method!r} cannot load a state dict of method "
                f"{method!r}; make the layer with that method, or with 'auto'"
            )
        self._sizes.require(method)
        self.method = method
        self._hold({"device": self.weight.device, "dtype": self.weight.dtype})

    def extra_repr(self) -> str:
        """Sizes as a convolution names them, and the method."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        for name, usual in (("stride", 1), ("groups", 1), ("transposed", False)):
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)}"
        if self.bias is None:
            text += ", bias=False"
        text += f", method={self.method!r}"
        return text if self.method == "kernel" else f"{text}, max_norm={self.max_norm}"


def _iterated(weight: Tensor, flat: Tensor, rows: Tensor, *, rounds: int) -> tuple[Tensor, ...]:
    """Vectors of the power iteration after some rounds."""
    skew = conv_skew_part(weight)
    return conv_spectral_bound(skew, left=(flat, rows), rounds=rounds, skew=True).left


_VECTORS = Kept(
    "skew_vectors",
    lambda held, _: _iterated(*held, rounds=_START_ROUNDS),
    lambda held, _: tuple(t.new_empty(t.shape, dtype=result_dtype(t.dtype)) for t in held[1:]),
)


def _space_to_depth(x: Tensor, stride: int) -> Tensor:
    """``(n, c, h, w)`` to ``(n, c * stride^2, h / stride, w / stride)``, one block per pixel.

    ``pixel_unshuffle`` leaves an empty batch as it is.
    """
    if stride == 1:
        return x
    n, channels, height, width = x.shape
    blocks = x.reshape(n, channels, height // stride, stride, width // stride, stride)
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
