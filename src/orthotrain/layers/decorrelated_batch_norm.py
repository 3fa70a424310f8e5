"""Decorrelated batch norm: ZCA whitening of channel groups, with a running covariance."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from orthotrain._checks import require_number, require_share, require_values
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers._channel_groups import (
    Layout,
    across_processes,
    affine_map,
    centred_covariance,
)
from orthotrain.layers._fixed_root import FixedRoot
from orthotrain.layers._root import root_in_layer
from orthotrain.layers._tracing import exporting, leaf
from orthotrain.layers._whitening import whiten
from orthotrain.linalg import RootGradient, RootMethod, spd_inv_sqrt
from orthotrain.linalg._root_checks import require_root_settings


class DecorrelatedBatchNorm(FixedRoot):
    """What the layers for 2-D to 5-D input share; see ``DecorrelatedBatchNorm2d``."""

    accepts: ClassVar[tuple[str, ...]] = ()

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor | None
    running_covariance: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(  # noqa: PLR0913 - the settings of a norm and of a root, all by name
        self,
        num_features: int,
        *,
        group_size: int | None = None,
        groups: int | None = None,
        ridge: float = 1e-3,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        method: RootMethod = "auto",
        gradient: RootGradient = "exact",
        iterations: int | None = None,
        synchronize: bool = False,
        process_group: Any = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.groups = self._number_of_groups(group_size, groups)
        self.ridge = ridge
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.method: RootMethod = method
        self.gradient: RootGradient = gradient
        self.iterations = iterations
        self.synchronize = synchronize
        self.process_group = process_group
        self._require_settings()
        self.ridge = float(ridge)
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        size = self.group_size
        self.weight = nn.Parameter(torch.empty(num_features, **made)) if affine else None
        self.bias = nn.Parameter(torch.empty(num_features, **made)) if affine else None
        tracked: dict[str, Tensor | None] = dict.fromkeys(
            ("running_mean", "running_covariance", "num_batches_tracked")
        )
        if track_running_stats:
            tracked["running_mean"] = torch.empty(num_features, **made)
            tracked["running_covariance"] = torch.empty(self.groups, size, size, **made)
            tracked["num_batches_tracked"] = torch.tensor(0, dtype=torch.long, device=device)
        for name, value in tracked.items():
            self.register_buffer(name, value)
        self.reset_parameters()

    @property
    def group_size(self) -> int:
        """Channels whitened together."""
        return self.num_features // self.groups

    def reset_running_stats(self) -> None:
        """Zero mean, identity covariance, no batch seen."""
        if self.running_mean is not None:
            assert self.running_covariance is not None
            assert self.num_batches_tracked is not None
            self.running_mean.zero_()
            self.running_covariance.copy_(torch.eye(self.group_size))
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Statistics as before the first batch, weight one, bias zero."""
        self.reset_running_stats()
        if self.weight is not None:
            assert self.bias is not None
            nn.init.ones_(self.weight)
            nn.init.zeros_(self.bias)

    @checked
    def forward(self, x: Float[Tensor, "batch c *space"]) -> Float[Tensor, "batch c *space"]:
        """Whitened activation of the same shape, dtype and memory format."""
        if isinstance(x, torch.fx.Proxy):
            return leaf(self, x)
        self._require_shape(x)
        if not exporting() and x.numel() == 0 and not self.training:
            return x.clone()
        layout = Layout.of(x, self.groups)
        with torch.autocast(device_type=x.device.type, enabled=False):
            matrices = layout.matrices(x)
            if self.training or self.running_mean is None:
                y = self._by_batch(matrices, layout)
            else:
                work = matrices.to(torch.promote_types(x.dtype, torch.float32))
                y = self._by_running_statistics(work, layout).to(x.dtype)
            return layout.activation(y, like=x)

    def covariance(self, x: Float[Tensor, "batch c *space"]) -> Float[Tensor, "groups size size"]:
        """Biased covariance of a batch as training forms it, without the ridge.

        Differentiable, in float32 (float64 for float64 input). It reads the samples of this
        process alone, also where the layer shares its statistics: it never communicates.
        """
        self._require_shape(x)
        with torch.autocast(device_type=x.device.type, enabled=False):
            work = x.to(torch.promote_types(x.dtype, torch.float32))
            return centred_covariance(Layout.of(x, self.groups).matrices(work), self.groups)[2]

    def extra_repr(self) -> str:
        """Sizes and settings; those of the root only where they were chosen."""
        text = (
            f"{self.num_features}, groups={self.groups}, ridge={self.ridge}, "
            f"momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )
        chosen = {
            "method": (self.method, "auto"),
            "gradient": (self.gradient, "exact"),
            "iterations": (self.iterations, None),
            "synchronize": (self.synchronize, False),
        }
        for name, (value, default) in chosen.items():
            text += "" if value == default else f", {name}={value!r}"
        return text

    def _by_batch(self, x: Tensor, layout: Layout) -> Tensor:
        statistics: list[tuple[Tensor, Tensor, int]] = []

        def make(
            mean: Tensor, covariance: Tensor, weight: Tensor | None, bias: Tensor | None
        ) -> tuple[Tensor, Tensor]:
            local, samples = mean, layout.samples
            group = self._group()
            if group is not None:
                mean, covariance, samples = across_processes(local, covariance, samples, group)
            self._require_samples(samples, layout)
            a, shift = self._affine(self._root(covariance), weight, bias)
            statistics.append((mean.detach(), covariance.detach(), samples))
            return a, shift if group is None else shift + a @ (local - mean)

        y = whiten(x, layout, self.weight, self.bias, make)
        if self.training and self.running_mean is not None:
            self._update(*statistics[0])
        return y

    def _by_running_statistics(self, x: Tensor, layout: Layout) -> Tensor:
        assert self.running_mean is not None
        assert self.running_covariance is not None
        root = self.remembered(self._name()) if exporting() else self._running_root(x.dtype)
        a, shift = self._affine(root.to(x.dtype), self.weight, self.bias)
        mean = self.running_mean.to(x.dtype).view(self.groups, -1, 1)
        return affine_map(a, x, shift - a @ mean, rows=layout.rows)

    def _running_root(self, dtype: torch.dtype) -> Tensor:
        """The whitening matrix of evaluation, remembered for a graph that is exported."""
        covariance = self.running_covariance
        assert covariance is not None
        # With a ridge, what rounding to the dtype of the buffer pushed below zero counts as zero.
        # Without one nothing could be saved, and what is above zero has a root as it stands.
        stored = covariance.dtype if self.ridge > 0 else None
        root = self._root(covariance.to(dtype), rounded_to=stored)
        self.remember(root, covariance)
        return root

    def _root(self, covariance: Tensor, *, rounded_to: torch.dtype | None = None) -> Tensor:
        return root_in_layer(
            self._name(), spd_inv_sqrt, covariance, training=self.training,
            method=self.method, gradient=self.gradient, ridge=self.ridge,
            iterations=self.iterations, rounded_to=rounded_to,
        )  # fmt: skip

    def _affine(
        self, a: Tensor, weight: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Whitening and affine parameters as one ``(groups, c, c)`` matrix and a shift."""
        if weight is None or bias is None:
            return a, a.new_zeros(self.groups, self.group_size, 1)
        shape = (self.groups, self.group_size, 1)
        return weight.to(a.dtype).view(shape) * a, bias.to(a.dtype).view(shape)

    @torch.no_grad()
    def _update(self, mean: Tensor, covariance: Tensor, samples: int) -> None:
        """Move the running statistics as torch does: the covariance unbiased."""
        assert self.running_mean is not None
        assert self.running_covariance is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1.0 / float(self.num_batches_tracked)
        unbiased = covariance * (samples / (samples - 1))
        for running, new in (
            (self.running_mean, mean.flatten()),
            (self.running_covariance, unbiased),
        ):
            running.mul_(1 - share).add_(new.to(running.dtype), alpha=share)

    def _group(self) -> Any:
        """The process group over which a training step is shared; None for a step of its own."""
        if not (self.synchronize and self.training and dist.is_available()):
            return None
        if not dist.is_initialized():
            return None
        group = dist.group.WORLD if self.process_group is None else self.process_group
        return group if dist.get_world_size(group) > 1 else None

    def _name(self) -> str:
        return f"{type(self).__name__}({self.num_features})"

    def _number_of_groups(self, group_size: int | None, groups: int | None) -> int:
        if group_size is not None and groups is not None:
            raise ConfigError(
                f"{self._name()} needs one of group_size and groups, got both: "
                f"group_size={group_size} and groups={groups}; leave one out"
            )
        parts = groups if group_size is None else group_size
        if self.num_features < 1 or (parts is not None and parts < 1):
            raise ConfigError(
                f"{self._name()} needs at least one channel and one group, got "
                f"{'groups' if group_size is None else 'group_size'}={parts}; leave it out for one "
                f"group of all channels"
            )
        if parts is None:
            return 1
        if self.num_features % parts:
            raise ConfigError(
                f"{self._name()} needs channels that divide evenly into groups, got "
                f"{'groups' if group_size is None else 'group_size'}={parts}; choose a divisor "
                f"of {self.num_features}"
            )
        return parts if group_size is None else self.num_features // parts

    def _require_settings(self) -> None:
        require_root_settings(self._name(), self.method, self.gradient, self.iterations)
        require_number(self._name(), "ridge", self.ridge, least=0)
        if self.momentum is not None:
            require_share(self._name(), "momentum", self.momentum, zero=True, one=True)

    def _require_shape(self, x: Tensor) -> None:
        require_values(self._name(), "x", x)
        dims = {len(shape.split(", ")) for shape in self.accepts}
        if x.ndim not in dims or x.shape[1] != self.num_features:
            shapes = " or ".join(f"({shape})" for shape in self.accepts)
            raise ShapeError(
                f"{self._name()} needs x of shape {shapes} with c = {self.num_features}, got "
                f"{tuple(x.shape)}; check the layer before it"
            )

    def _require_samples(self, samples: int, layout: Layout) -> None:
        if samples < 2:
            raise ShapeError(
                f"{self._name()} needs more than one value per channel for the statistics of a "
                f"batch, got x of shape {tuple(layout.shape)}; give more samples or call eval() "
                f"on a layer with running statistics"
            )
        if self.ridge == 0 and samples <= self.group_size:
            raise ShapeError(
                f"{self._name()} needs more samples than channels per group when ridge is 0, got "
                f"{samples} samples of {self.group_size} channels; set ridge, or choose smaller "
                f"groups"
            )


@checked
class DecorrelatedBatchNorm1d(DecorrelatedBatchNorm):
    """Decorrelated batch norm of ``(N, C)`` or ``(N, C, L)``; see ``DecorrelatedBatchNorm2d``."""

    accepts = ("n, c", "n, c, l")


@checked
class DecorrelatedBatchNorm2d(DecorrelatedBatchNorm):
    r"""Decorrelated batch norm (DBN, ZCA whitening) of ``(N, C, H, W)``.

    With a group's centred channels as rows of ``X`` (``c`` by ``n = N H W``),

    ``P = X X^T / n``,  ``y = weight * (P + ridge)^(-1/2) X + bias``.

    The symmetric root is the whitening that changes the activation least. Batch norm is the same
    with ``c = 1``: at ``group_size=1`` this layer equals ``nn.BatchNorm2d`` with
    ``eps=ridge``, its running statistics and ``momentum`` conventions included.

    Args:
        num_features: Channels ``C``.
        group_size: Channels whitened together; must divide ``C``.
        groups: Number of groups, instead of ``group_size``. With neither, one group of all.
        ridge: Added to the diagonal of the covariance; directions with less variance than this
            are not scaled up to one. 0 needs more samples than channels per group, and
            variance in every direction.
        momentum: Share of the new batch in the running statistics; None averages over all
            batches.
        affine: Whether ``weight`` (one at the start) and ``bias`` (zero) are trained.
        track_running_stats: If False, evaluation uses the statistics of its batch, too.
        method: How the inverse root is computed, see ``spd_inv_sqrt``.
        gradient: Derivative of the inverse root, see ``spd_inv_sqrt``.
        iterations: Steps of an iterative method or derivative.
        synchronize: In training, take mean and covariance over the processes of
            ``process_group``, as ``nn.SyncBatchNorm`` does. Batches may differ in size.
        process_group: None is all processes.
        device: Device of all tensors.
        dtype: Floating-point type of all tensors.

    Attributes:
        running_mean: ``(C,)``.
        running_covariance: ``(groups, c, c)``, unbiased, identity at the start. Not a running
            inverse root: the root of a mean is not the mean of roots.

    Shape:
        In and out ``(N, C, H, W)`` in any memory format and floating-point dtype, both kept.
        Statistics and products are in float32 (float64 for float64 input), also under autocast,
        and the root in float64 on CPU. An empty batch passes through in evaluation.

    Raises:
        ConfigError: Channels that do not divide into the groups, a setting out of its range, or
            one of the root that ``spd_inv_sqrt`` does not take.
        ShapeError: Another shape; in training fewer than two values per channel, or with
            ``ridge=0`` no more samples than channels per group.
        NonFiniteError: NaN or infinity in the input of a training step.
        NotPositiveDefiniteError: A direction without variance, and no ridge.

    Note:
        The derivative exists wherever ``P + ridge`` is positive definite, repeated eigenvalues
        included. ``torch.optim.swa_utils.update_bn`` leaves this layer's running statistics as
        they are; docs/whitening.md has the loop that renews them.

    Source:
        Huang, Yang, Lang and Deng (2018), arXiv:1804.08450. The running covariance, the exact
        derivative and shared statistics are ours.

    Example:
        >>> layer = DecorrelatedBatchNorm2d(8, group_size=4)
        >>> layer(torch.randn(16, 8, 5, 5)).shape, layer.running_covariance.shape
        (torch.Size([16, 8, 5, 5]), torch.Size([2, 4, 4]))
    """

    accepts = ("n, c, h, w",)


@checked
class DecorrelatedBatchNorm3d(DecorrelatedBatchNorm):
    """Decorrelated batch norm of ``(N, C, D, H, W)``; see ``DecorrelatedBatchNorm2d``."""

    accepts = ("n, c, d, h, w",)
