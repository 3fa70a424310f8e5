"""The linear EigenGAN: one subspace, noise, and a quadratic critic. All of it can be solved."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from orthotrain._checks import require_count
from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers import EigenSubspace
from orthotrain.models._images import draw_normal


@checked
class LinearGenerator(nn.Module):
    """Vectors ``U^T (scale * z) + mean + noise * e`` of standard normal ``z`` and ``e``.

    What it makes is Gaussian with covariance ``U^T diag(scale)^2 U + noise^2``, so its distance
    to Gaussian data and the directions it should find are known in closed form. With an
    orthonormal ``U`` at the optimum its rows are the principal directions of the data; without,
    any rotation of ``z`` fits as well.

    Args:
        size: Length of the vectors.
        latent_dim: Coordinates ``z``, at most ``size``.
        noise: Standard deviation of what is in every direction, held fixed.
        generator: Source of the initial directions; None takes torch's global state.

    Attributes:
        subspace: The :class:`~orthotrain.layers.EigenSubspace`.

    Raises:
        ConfigError: More coordinates than numbers, or ``noise`` below zero.
    """

    def __init__(
        self,
        size: int,
        *,
        latent_dim: int = 6,
        noise: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if noise < 0:
            raise ConfigError(f"LinearGenerator: noise={noise} must not be negative")
        self.latent_dim = latent_dim
        self.noise_dim = size
        self.noise = noise
        self.subspace = EigenSubspace(latent_dim, out_shape=(size,), generator=generator)

    @checked
    def forward(
        self, z: Float[Tensor, "n latent"], e: Float[Tensor, "n size"] | None = None
    ) -> Float[Tensor, "n size"]:
        """Vectors of coordinates and noise; without ``e`` their mean over the noise."""
        x: Tensor = self.subspace(z)
        return x if e is None else x + self.noise * e

    def latents(
        self, n: int, *, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n latent"], Float[Tensor, "n size"]]:
        """``z`` and ``e`` of the prior, standard normal; ``model(*latents)``."""
        like = self.subspace.u
        z = draw_normal(n, self.latent_dim, generator=generator, like=like)
        return z, draw_normal(n, self.noise_dim, generator=generator, like=like)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n size"]:
        """``n`` vectors of the prior; the same generator state gives the same ones."""
        vectors: Tensor = self(*self.latents(n, generator=generator))
        return vectors

    @torch.no_grad()
    def covariance(self) -> Float[Tensor, "size size"]:
        """Covariance of what it makes, in float64."""
        weight = (self.subspace.scale[:, None] * self.subspace.u).double()
        eye = torch.eye(self.noise_dim, dtype=torch.float64, device=weight.device)
        return weight.mT @ weight + self.noise**2 * eye


@checked
class QuadraticCritic(nn.Module):
    """``x^T A x / size + b^T x / sqrt(size) + c``: all it takes to tell two Gaussians apart.

    Zero at the start. The factors keep its values of the order of those of ``A`` and ``b``
    whatever the length of ``x``.

    Args:
        size: Length of the vectors.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        require_count("QuadraticCritic", "size", size)
        self.size = size
        self.quadratic = nn.Parameter(torch.zeros(size, size))
        self.linear = nn.Parameter(torch.zeros(size))
        self.constant = nn.Parameter(torch.zeros(()))

    @checked
    def forward(self, x: Float[Tensor, "n size"]) -> Float[Tensor, " n"]:
        """Logits, large for real."""
        if x.ndim != 2 or x.shape[1] != self.size:
            raise ShapeError(
                f"QuadraticCritic: got x of shape {tuple(x.shape)}, need (n, {self.size})"
            )
        quadratic = (x @ self.quadratic * x).sum(dim=1) / self.size
        logits: Tensor = quadratic + x @ self.linear / self.size**0.5 + self.constant
        return logits
