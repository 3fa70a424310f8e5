"""A plain convolutional GAN: one latent layer, doublings, and its mirror as discriminator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._doors import checked
from orthotrain.errors import ShapeError
from orthotrain.models._images import (
    SLOPE,
    START_SIDE,
    doublings,
    draw_normal,
    require_at_least_one,
    require_images,
    reset_as_torch_,
)

_SMALLEST, _LARGEST = 16, 128
# Channels of the generator from 4x4 to full size. 64 and 128 are published; the smaller ones
# leave out the widest levels of 64, so a map of a given distance from the image stays the same.
_CHANNELS = {
    16: (128, 64, 64),
    32: (256, 128, 64, 64),
    64: (512, 256, 128, 64, 64),
    128: (1024, 1024, 512, 256, 128, 64),
}
_FIRST_CHANNELS = 64


class LatentMap(nn.Module):
    """The first layer of a generator: a transposed convolution of a 1x1 map with ``latent_dim``.

    Its weight is kept as the matrix it is on vectors, one row per coordinate, where
    ``nn.ConvTranspose2d`` on a 1x1 map would keep ``(latent_dim, c, h, w)``. So methods that act
    on matrices, and directions taken from it, see that matrix, not outputs by all the rest.

    Args:
        latent_dim: Coordinates.
        out_shape: ``(c, h, w)`` of the map.

    Attributes:
        weight: ``(latent_dim, c * h * w)``.
        bias: ``(c,)``.

    Note:
        Initial weights are those of ``nn.ConvTranspose2d``: uniform within ``(c h w) ** -0.5``.
    """

    def __init__(self, latent_dim: int, *, out_shape: Sequence[int]) -> None:
        super().__init__()
        self.out_shape = tuple(out_shape)
        self.weight = nn.Parameter(torch.empty(latent_dim, math.prod(self.out_shape)))
        self.bias = nn.Parameter(torch.empty(self.out_shape[0]))
        self.reset_parameters()

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw weight and bias anew."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.bias, -bound, bound, generator=generator)

    @checked
    def forward(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n c h w"]:
        """``(n, latent_dim)`` to ``(n, c, h, w)``."""
        maps = (z @ self.weight).view(z.shape[0], *self.out_shape)
        return maps + self.bias[:, None, None]

    def extra_repr(self) -> str:
        """Number of coordinates and the shape of the map."""
        return f"{len(self.weight)}, out_shape={self.out_shape}"


@checked
class SimpleGenerator(nn.Module):
    """A latent layer to 4x4, then 4x4 transposed convolutions of stride 2 to the image.

    Each doubling has an instance norm with learned affine map and a leaky ReLU; the latent layer
    has neither. Norms are of one sample, without running statistics: samples do not influence
    each other, and training equals evaluation.

    Channels from 4x4 to full size: 512, 256, 128, 64, 64 at 64 pixels and 1024, 1024, 512, 256,
    128, 64 at 128. At 32 and 16 pixels the widest levels of the network for 64 are left out: 256,
    128, 64, 64 and 128, 64, 64.

    Args:
        size: Side of the images: 16, 32, 64 or 128 pixels.
        latent_dim: Length of ``z``; published are 6 for 64 pixels and 30 for 128.
        channels: Image channels.
        generator: Source of the initial weights; torch's global state then stays as it is. None
            takes the global state.

    Attributes:
        latent: The first layer, a :class:`LatentMap`; methods name its weight ``"latent"`` or
            ``"latent.weight"``.
        latent_dim: Length of ``z``.
        image_shape: ``(channels, size, size)``.

    Raises:
        ConfigError: Another size, or a setting below one.

    Source:
        The generator of Wei et al. (2021), arXiv:2108.07668, used by Song, Sebe and Wang,
        arXiv:2212.05599. The sizes 16 and 32 are ours. Initial weights: torch's own.

    Example:
        >>> model = SimpleGenerator(16, latent_dim=4, channels=1)
        >>> model(torch.zeros(2, 4)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(
        self,
        size: int,
        *,
        latent_dim: int,
        channels: int = 3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        doublings("SimpleGenerator", size, smallest=_SMALLEST, largest=_LARGEST)
        require_at_least_one("SimpleGenerator", latent_dim=latent_dim, channels=channels)
        self.latent_dim = latent_dim
        self.image_shape = (channels, size, size)
        widths = _CHANNELS[size]
        # Layers draw from the global state when they are made; all of it is drawn again below.
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            self.latent = LatentMap(latent_dim, out_shape=(widths[0], START_SIDE, START_SIDE))
            self.ups = nn.ModuleList(
                # The norm takes the mean away, so a bias would do nothing.
                nn.ConvTranspose2d(c, d, 4, stride=2, padding=1, bias=False)
                for c, d in pairwise(widths)
            )
            self.norms = nn.ModuleList(nn.InstanceNorm2d(d, affine=True) for d in widths[1:])
            self.to_image = nn.Conv2d(widths[-1], channels, 3, padding=1)
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, as torch does; norms start neutral."""
        self.latent.reset_parameters(generator=generator)
        reset_as_torch_(self, generator=generator)

    @checked
    def forward(self, z: Float[Tensor, "n latent"]) -> Float[Tensor, "n c size size"]:
        """Images ``(n, channels, size, size)`` in [-1, 1] of codes ``(n, latent_dim)``.

        Raises:
            ShapeError: The codes have another shape, or there is none.
        """
        if z.shape[1:] != (self.latent_dim,) or z.shape[0] == 0:
            raise ShapeError(
                f"SimpleGenerator: got z of shape {tuple(z.shape)}, need (n, {self.latent_dim}) "
                "with n of at least 1"
            )
        h = self.latent(z)
        for up, norm in zip(self.ups, self.norms, strict=True):
            h = F.leaky_relu(norm(up(h)), SLOPE)
        return torch.tanh(self.to_image(h))

    def latents(self, n: int, *, generator: torch.Generator) -> tuple[Float[Tensor, "n latent"]]:
        """``z`` of the prior, standard normal, as a tuple of one; ``model(*latents)``.

        Drawn on the generator's device in float32, then moved to the model's.
        """
        like = self.latent.weight
        return (draw_normal(n, self.latent_dim, generator=generator, like=like),)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n c size size"]:
        """``n`` images of the prior; the same generator state gives the same images."""
        images: Tensor = self(*self.latents(n, generator=generator))
        return images

    def extra_repr(self) -> str:
        """Sizes of image and latents."""
        return f"{self.image_shape[1]}, latent_dim={self.latent_dim}"


@checked
class SimpleDiscriminator(nn.Module):
    """The mirror of :class:`SimpleGenerator`: 4x4 convolutions of stride 2 down to 4x4.

    64 channels after the first, twice as many after each further one: 512 at the end for 64
    pixels, 1024 for 128, 256 and 128 for 32 and 16. All but the first have an instance norm with
    learned affine map; then come two linear layers, with a leaky ReLU after each but the last.

    Args:
        size: Side of the images: 16, 32, 64 or 128 pixels.
        channels: Image channels.
        generator: Source of the initial weights; torch's global state then stays as it is. None
            takes the global state.

    Raises:
        ConfigError: Another size, or no channel.

    Source:
        As :class:`SimpleGenerator`, with a leaky ReLU in place of their ReLU, and one between the
        linear layers at every size.
    """

    def __init__(
        self, size: int, *, channels: int = 3, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        levels = doublings("SimpleDiscriminator", size, smallest=_SMALLEST, largest=_LARGEST)
        require_at_least_one("SimpleDiscriminator", channels=channels)
        self.image_shape = (channels, size, size)
        widths = [_FIRST_CHANNELS << i for i in range(levels)]
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            self.first = nn.Conv2d(channels, widths[0], 4, stride=2, padding=1)
            self.downs = nn.ModuleList(
                nn.Conv2d(c, d, 4, stride=2, padding=1, bias=False) for c, d in pairwise(widths)
            )
            self.norms = nn.ModuleList(nn.InstanceNorm2d(d, affine=True) for d in widths[1:])
            self.hidden = nn.Linear(widths[-1] * START_SIDE**2, widths[-1])
            self.head = nn.Linear(widths[-1], 1)
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, as torch does; norms start neutral."""
        reset_as_torch_(self, generator=generator)

    @checked
    def forward(self, images: Float[Tensor, "n c size size"]) -> Float[Tensor, " n"]:
        """Logits ``(n,)``, large for real, of images ``(n, channels, size, size)``.

        Raises:
            ShapeError: The images have another shape, or there is none.
        """
        require_images("SimpleDiscriminator", images, self.image_shape)
        h = F.leaky_relu(self.first(images), SLOPE)
        for down, norm in zip(self.downs, self.norms, strict=True):
            h = F.leaky_relu(norm(down(h)), SLOPE)
        logits: Tensor = self.head(F.leaky_relu(self.hidden(h.flatten(1)), SLOPE))
        return logits.squeeze(1)
