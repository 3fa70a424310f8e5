"""What a generator imitates: Gaussian vectors whose directions are known, or images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from orthotrain.data.image_sets import ImageSet

# Directions of the Gaussian data belong to the data, not to a run: every seed sees the same.
_DIRECTIONS_SEED: Final = 20240807
#: Standard deviation of the Gaussian data along its directions.
SCALES: Final = (12.0, 10.0, 8.0, 6.0, 4.0, 2.0)
#: And in every direction besides.
NOISE: Final = 0.5


class Source(Protocol):
    """Real samples."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""

    def batch(self, n: int, *, generator: torch.Generator) -> Tensor:
        """``n`` samples drawn by ``generator``, in the range of the generator's output."""


@dataclass(frozen=True)
class GaussianSource:
    """Vectors ``V^T (scales * z) + NOISE * e`` of standard normal ``z`` and ``e``.

    Attributes:
        directions: ``V``, ``(6, size)`` with orthonormal rows: the principal directions.
        scales: ``(6,)``, standard deviations along them.
        device: Where samples go.
    """

    directions: Float[Tensor, "k size"]
    scales: Float[Tensor, " k"]
    device: torch.device

    @staticmethod
    def of(size: int, *, device: torch.device) -> GaussianSource:
        """The Gaussian data of vectors of length ``size``."""
        random = torch.Generator().manual_seed(_DIRECTIONS_SEED)
        directions = nn.init.orthogonal_(torch.empty(len(SCALES), size), generator=random)
        return GaussianSource(directions, torch.tensor(SCALES), device)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(size,)``."""
        return (self.directions.shape[1],)

    def batch(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n size"]:
        """``n`` vectors."""
        z = torch.randn(n, len(self.scales), generator=generator)
        e = torch.randn(n, *self.shape, generator=generator)
        return ((z * self.scales) @ self.directions + NOISE * e).to(self.device)

    def covariance(self) -> Float[Tensor, "size size"]:
        """Covariance of the data, in float64; its mean is zero."""
        weight = (self.scales[:, None] * self.directions).double()
        return weight.mT @ weight + NOISE**2 * torch.eye(self.shape[0], dtype=torch.float64)


@dataclass(frozen=True)
class ImageSource:
    """Images drawn with replacement, in [-1, 1].

    Attributes:
        images: Where they come from.
        device: Where they go.
    """

    images: ImageSet
    device: torch.device

    @property
    def shape(self) -> tuple[int, ...]:
        """``(channels, size, size)``."""
        return self.images.image_shape

    def batch(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n c h w"]:
        """``n`` images."""
        index = torch.randint(len(self.images), (n,), generator=generator)
        return self.images[index].to(self.device).float() / 127.5 - 1
