"""Global covariance pooling: the square root of the covariance of the last feature map."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from orthotrain._checks import require_number, require_share, require_values
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers._root import root_in_layer
from orthotrain.layers._tracing import leaf
from orthotrain.linalg import RootGradient, RootMethod, spd_sqrt, working_dtype
from orthotrain.linalg._root_checks import require_root_settings

# Added to the eigenvalues as a share of their mean, where the caller says nothing. A map of
# fewer places than channels has zero eigenvalues, where a root has no derivative; this much moves
# a root by .3 % of the mean root at most and is above the rounding of float32 on a GPU.
RELATIVE_RIDGE = 1e-5


@checked
class GlobalCovariancePool(nn.Module):
    r"""Global covariance pooling (GCP): ``(N, C, H, W)`` to ``(N, d (d + 1) / 2)``.

    With the ``d`` channels of one image, centred over its ``M = H W`` places, as rows of ``X``:

    ``P = X X^T / M``,  ``S = (P + ridges)^(1/2)``, and the upper triangle of ``S`` row by row.

    The root takes the eigenvalues from the scale of squares back to that of the features. So the
    result can replace an average over places.

    Args:
        in_channels: ``C``.
        reduced_channels: ``d`` of a 1x1 convolution without bias, batch norm and ReLU before the
            covariance; None takes the channels as they are, ``d = C``.
        method: How the root is computed, see ``spd_sqrt``.
        gradient: Derivative of the root, see ``spd_sqrt``.
        iterations: Steps of an iterative method or derivative.
        ridge: Added to every eigenvalue of ``P``.
        relative_ridge: This times the mean eigenvalue of ``P`` is added, too.
        shrinkage: ``s`` in [0, 1]: ``P <- (1 - s) P + s (trace(P) / d) 1``, for maps with few
            places per channel. It keeps the trace.

    Attributes:
        reduce: The reduction, ``nn.Sequential(conv, norm, relu)``, or ``nn.Identity``.

    Shape:
        The dtype of the input comes out; under autocast float32, and the reduction alone follows
        autocast. Covariance and root are in float64 on CPU and float32 on a GPU.

        With no more places than channels (``M <= d``) ``P`` has rank ``M - 1`` at most. Its root
        is still defined, and the layer returns it; see the note. A map without any variance
        gives zeros, with a zero derivative.

    Raises:
        ConfigError: No channel, a ridge or shrinkage out of its range, or a setting of the root
            that ``spd_sqrt`` does not take.
        ShapeError: Another shape, or a map of a single place, which has no covariance.
        NonFiniteError: NaN or infinity in the features.

    Note:
        At a zero eigenvalue the root itself has no derivative. The gradient at the features has
        one and stays bounded, because null directions of ``P`` are null directions of ``X``.
        The small default of ``relative_ridge`` makes both finite.

    Source:
        Li, Xie, Wang and Zuo (2017), arXiv:1703.08050; protocol and reduction as in Li, Xie,
        Wang and Gao (2018), arXiv:1712.01034. Shrinkage: Ledoit and Wolf (2004), J. Multivariate
        Anal. 88(2), with a fixed weight.

    Example:
        >>> pool = GlobalCovariancePool(16, reduced_channels=4)
        >>> pool(torch.randn(2, 16, 7, 7)).shape
        torch.Size([2, 10])
    """

    def __init__(  # noqa: PLR0913 - the settings of a pool and of a root, all by name
        self,
        in_channels: int,
        *,
        reduced_channels: int | None = None,
        method: RootMethod = "auto",
        gradient: RootGradient = "exact",
        iterations: int | None = None,
        ridge: float = 0.0,
        relative_ridge: float = RELATIVE_RIDGE,
        shrinkage: float = 0.0,
    ) -> None:
        super().__init__()
        channels = in_channels if reduced_channels is None else reduced_channels
        if min(in_channels, channels) < 1:
            raise ConfigError(
                f"GlobalCovariancePool needs at least one channel, got in_channels={in_channels} "
                f"and reduced_channels={reduced_channels}; leave reduced_channels out to keep all"
            )
        require_number("GlobalCovariancePool", "ridge", ridge, least=0)
        require_number("GlobalCovariancePool", "relative_ridge", relative_ridge, least=0)
        require_share("GlobalCovariancePool", "shrinkage", shrinkage, zero=True, one=True)
        require_root_settings(f"GlobalCovariancePool({in_channels})", method, gradient, iterations)
        self.in_channels = in_channels
        self.reduced_channels = reduced_channels
        self.channels = channels
        self.method: RootMethod = method
        self.gradient: RootGradient = gradient
        self.iterations = iterations
        self.ridge = float(ridge)
        self.relative_ridge = float(relative_ridge)
        self.shrinkage = float(shrinkage)
        self.reduce: nn.Module = nn.Identity()
        if reduced_channels is not None:
            self.reduce = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            )

    @property
    def out_features(self) -> int:
        """``d (d + 1) / 2``."""
        return self.channels * (self.channels + 1) // 2

    @checked
    def forward(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch features"]:
        """Upper triangles of the roots, row by row: ``S_11, S_12, ..., S_1d, S_22, ...``."""
        if isinstance(x, torch.fx.Proxy):
            return leaf(self, x)
        require_values(self._name(), "x", x)
        autocast = torch.is_autocast_enabled(x.device.type)
        p = self.covariance(x)
        with torch.autocast(device_type=x.device.type, enabled=False):
            # A zero matrix has a zero root, and no other matrix is changed.
            dead = (p.diagonal(dim1=-2, dim2=-1).sum(dim=-1) == 0)[:, None, None]
            unit = torch.eye(self.channels, dtype=p.dtype, device=p.device)
            root: Tensor = root_in_layer(
                self._name(), spd_sqrt, p + unit * dead, method=self.method,
                gradient=self.gradient, ridge=self.ridge, relative_ridge=self.relative_ridge,
                iterations=self.iterations, training=self.training,
            )  # fmt: skip
            root = root * ~dead
            # In a network of half precision the next layer takes half precision; under autocast
            # it casts for itself.
            dtype = torch.promote_types(x.dtype, torch.float32) if autocast else x.dtype
            rows, columns = torch.triu_indices(self.channels, self.channels, device=x.device)
            upper = rows * self.channels + columns
            return root.flatten(1).index_select(1, upper).to(dtype)

    def covariance(self, x: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch d d"]:
        """Covariance that enters the root: reduced, centred, biased, shrunk, without ridges."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ShapeError(
                f"{self._name()} needs x of shape (batch, {self.in_channels}, h, w), got "
                f"{tuple(x.shape)}; pool the feature map before it is flattened"
            )
        if x.shape[2] * x.shape[3] < 2:
            raise ShapeError(
                f"{self._name()} needs at least two places (h * w) to form a covariance, got x of "
                f"shape {tuple(x.shape)}; use larger images or a smaller stride"
            )
        features: Tensor = self.reduce(x)
        with torch.autocast(device_type=x.device.type, enabled=False):
            return place_covariance(features.to(working_dtype(x)), shrinkage=self.shrinkage)

    def extra_repr(self) -> str:
        """Sizes and settings; those of the root only where they were chosen."""
        text = f"{self.in_channels}, features={self.out_features}"
        chosen = {
            "method": (self.method, "auto"),
            "gradient": (self.gradient, "exact"),
            "iterations": (self.iterations, None),
            "ridge": (self.ridge, 0.0),
            "relative_ridge": (self.relative_ridge, RELATIVE_RIDGE),
            "shrinkage": (self.shrinkage, 0.0),
        }
        for name, (value, default) in chosen.items():
            text += "" if value == default else f", {name}={value!r}"
        return text

    def _name(self) -> str:
        return f"GlobalCovariancePool({self.in_channels})"


def place_covariance(
    features: Float[Tensor, "batch d h w"], *, shrinkage: float
) -> Float[Tensor, "batch d d"]:
    """Biased covariance of the channels of each map over its places, shrunk; in the dtype given.

    Args:
        features: ``(batch, d, h, w)``.
        shrinkage: Share of the mean eigenvalue times the identity in the result.
    """
    rows = features.flatten(2)
    rows = rows - rows.mean(dim=-1, keepdim=True)
    p: Tensor = rows @ rows.mT / rows.shape[-1]
    p = (p + p.mT) / 2
    if shrinkage:
        mean = p.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[:, None, None]
        unit = torch.eye(p.shape[-1], dtype=p.dtype, device=p.device)
        p = (1 - shrinkage) * p + shrinkage * mean * unit
    return p
