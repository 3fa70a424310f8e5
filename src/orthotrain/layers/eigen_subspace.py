"""The subspace layer of EigenGAN: latent coordinates along learned directions of a feature map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers._tracing import leaf
from orthotrain.linalg import working_dtype
from orthotrain.linalg.orthonormality import gram_deviation

# The start of EigenGAN's importances, 3 k, ..., 6, 3: the first directions move the most.
_SCALE_STEP = 3.0


@checked
class EigenSubspace(nn.Module):
    r"""Subspace of a feature map: ``(n, k)`` coordinates to ``(n, *out_shape)``.

    ``phi = (scale * z) U + mean``, with the directions as rows of ``U``. Each row is what its
    coordinate adds, ``scale`` says how far one unit of the coordinate goes along it, and ``mean``
    is the origin. The rows are orthonormal at the start. They stay so only if something keeps
    them so: a penalty (:meth:`orthonormality_penalty`, or ``OrthogonalPenalty`` on the optimizer)
    or ``Retraction``. Methods find the directions by name, ``"*.u"``, and act on them as a matrix
    of ``k`` rows.

    Args:
        num_basis: Directions ``k``, at least 1 and at most ``prod(out_shape)``.
        out_shape: Shape of one feature map.
        generator: Source of ``u``; None takes torch's global state.
        device: Device of all tensors.
        dtype: Floating-point type of all tensors.

    Attributes:
        u: ``(k, prod(out_shape))``, orthonormal rows at the start.
        scale: ``(k,)``, ``[3 k, ..., 6, 3]`` at the start.
        mean: ``(prod(out_shape),)``, zero at the start.

    Shape:
        ``(n, k)`` to ``(n, *out_shape)`` in the dtype of the parameters, or that of autocast. An
        empty batch gives an empty result.

    Raises:
        ConfigError: No direction, an empty ``out_shape``, or more directions than it has numbers.
        ShapeError: In ``forward``, coordinates of another shape.

    Note:
        Linear in each parameter and in ``z``, so differentiable everywhere, any number of times.

    Source:
        He, Kan and Shan (2021), EigenGAN, arXiv:2104.12476.

    Example:
        >>> layer = EigenSubspace(6, out_shape=(8, 4, 4))
        >>> layer(torch.zeros(2, 6)).shape
        torch.Size([2, 8, 4, 4])
        >>> layer.scale.tolist()
        [18.0, 15.0, 12.0, 9.0, 6.0, 3.0]
    """

    def __init__(
        self,
        num_basis: int,
        *,
        out_shape: Sequence[int],
        generator: torch.Generator | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_basis = num_basis
        self.out_shape = tuple(out_shape)
        size = math.prod(self.out_shape)
        if not self.out_shape or min(self.out_shape) < 1:
            raise ConfigError(
                f"EigenSubspace needs an out_shape of positive sizes, got {self.out_shape}; for "
                "vectors of length m write out_shape=(m,)"
            )
        if not 1 <= num_basis <= size:
            raise ConfigError(
                f"EigenSubspace needs num_basis from 1 to prod(out_shape) = {size}, got "
                f"{num_basis}; no more rows than that can be orthonormal"
            )
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.u = nn.Parameter(torch.empty(num_basis, size, **made))
        self.scale = nn.Parameter(torch.empty(num_basis, **made))
        self.mean = nn.Parameter(torch.empty(size, **made))
        self.reset_parameters(generator=generator)

    @torch.no_grad()
    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw ``u`` anew, uniform among orthonormal rows; scales and mean as at the start."""
        # In double precision where the device has it, so that the rows are orthonormal to the
        # rounding of their own dtype, and half precision can be made at all.
        rows = torch.empty_like(self.u, dtype=working_dtype(self.u))
        self.u.copy_(nn.init.orthogonal_(rows, generator=generator))
        self.scale.copy_(_SCALE_STEP * torch.arange(self.num_basis, 0, -1))
        nn.init.zeros_(self.mean)

    @checked
    def forward(self, z: Float[Tensor, "n k"]) -> Float[Tensor, "n ..."]:
        """Feature maps ``(n, *out_shape)`` of coordinates ``(n, k)``."""
        if isinstance(z, torch.fx.Proxy):
            return leaf(self, z)
        if z.ndim != 2 or z.shape[1] != self.num_basis:
            raise ShapeError(
                f"EigenSubspace needs coordinates of shape (n, {self.num_basis}), got "
                f"{tuple(z.shape)}; each column is the coordinate along one direction"
            )
        phi = torch.addmm(self.mean, z * self.scale, self.u)
        # Not len(z), which fixes a free batch in an exported graph.
        return phi.view(z.shape[0], *self.out_shape)

    def orthonormality_error(self) -> Float[Tensor, ""]:
        """``|U U^T - 1|_F``, without a gradient, in float64 (float32 on an accelerator)."""
        error: Tensor = self._defect(self.u.detach().to(working_dtype(self.u))).norm()
        return error

    def orthonormality_penalty(self) -> Float[Tensor, ""]:
        """``0.5 |U U^T - 1|_F^2``, differentiable; in float32 for half precision and autocast.

        ``OrthogonalPenalty("*.u", weight=0.5 * w)`` adds the gradient of ``w`` times this.
        """
        u = self.u.to(torch.promote_types(self.u.dtype, torch.float32))
        return 0.5 * self._defect(u).square().sum()

    def _defect(self, u: Tensor) -> Tensor:
        with torch.autocast(device_type=u.device.type, enabled=False):
            return gram_deviation(u)

    def extra_repr(self) -> str:
        """Number of directions and the shape they live in."""
        return f"{self.num_basis}, out_shape={self.out_shape}"
