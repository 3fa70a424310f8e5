"""Generators whose scores are known: linear ones, disjoint pixels, none at all."""

import torch
from torch import Tensor, nn

from reference.matrices import generator


class Linear(nn.Module):
    """Images ``z @ weight``; ``weight`` is (latent, c h w). Unbounded, so of range "any"."""

    def __init__(self, weight: Tensor, shape: tuple[int, int, int]):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.shape = shape

    def forward(self, z):
        return (z @ self.weight).reshape(-1, *self.shape)


def linear(latent_dim=3, shape=(1, 4, 4), seed=0, dtype=torch.float64):
    pixels = shape[0] * shape[1] * shape[2]
    weight = torch.randn(latent_dim, pixels, generator=generator(seed), dtype=torch.float64)
    return Linear(weight.to(dtype), shape)


class Normed(nn.Module):
    """A convolution behind batch norm and dropout: training mode would show."""

    def __init__(self, latent_dim=3, channels=3):
        super().__init__()
        self.grow = nn.ConvTranspose2d(latent_dim, 4, 4)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Conv2d(4, channels, 3, padding=1)
        random = generator(1)
        with torch.no_grad():
            for p in self.parameters():
                p.normal_(generator=random)

    def forward(self, z):
        return torch.tanh(self.out(self.drop(self.norm(self.grow(z[:, :, None, None])))))


def disjoint(z, side=12):
    """Each of up to four coordinates fills a quarter of the image with a wave of its own phase.

    The frequencies are so high that two values of a coordinate nearly always give patterns that
    have nothing in common.
    """
    half = side // 2
    frequencies = torch.linspace(300, 900, half * half)
    images = torch.zeros(len(z), 1, side, side)
    for i, column in enumerate(z.T):
        top, left = (half * k for k in divmod(i, 2))
        pattern = torch.cos(column[:, None] * frequencies).reshape(-1, 1, half, half)
        images[:, :, top : top + half, left : left + half] = pattern
    return images


def constant(z):
    """The same grey image whatever the latent."""
    return torch.full((len(z), 1, 8, 8), 0.25)
