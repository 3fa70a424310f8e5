"""EigenGAN: a generator whose every level adds directions of its own, and its discriminator."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from orthotrain._doors import checked
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.layers import EigenSubspace
from orthotrain.models._images import (
    SLOPE,
    START_SIDE,
    doublings,
    draw_normal,
    require_at_least_one,
    require_images,
    reset_as_torch_,
)

_MAX_CHANNELS = 512
_SMALLEST = 8


class EigenBlock(nn.Module):
    """One level: a subspace enters twice, before and after the map is doubled.

    Args:
        in_channels: Channels of the incoming map.
        out_channels: Channels of the map of twice the side.
        side: Side of the incoming map.
        num_basis: Directions of the subspace.

    Attributes:
        subspace: The :class:`~orthotrain.layers.EigenSubspace` of ``(in_channels, side, side)``.
    """

    def __init__(self, in_channels: int, out_channels: int, *, side: int, num_basis: int) -> None:
        super().__init__()
        self.subspace = EigenSubspace(num_basis, out_shape=(in_channels, side, side))
        self.subspace_same = nn.ConvTranspose2d(in_channels, in_channels, 1)
        self.subspace_up = _doubling(in_channels, out_channels)
        self.up = _doubling(in_channels, out_channels)
        self.same = nn.ConvTranspose2d(out_channels, out_channels, 3, padding=1)

    @checked
    def forward(
        self, z: Float[Tensor, "n k"], h: Float[Tensor, "n c s s"]
    ) -> Float[Tensor, "n d t t"]:
        """``(n, in_channels, s, s)`` to ``(n, out_channels, 2 s, 2 s)``, moved along ``z``."""
        phi = self.subspace(z)
        h = self.up(F.leaky_relu(h + self.subspace_same(phi), SLOPE))
        h = self.same(F.leaky_relu(h + self.subspace_up(phi), SLOPE))
        return h


@checked
class EigenGenerator(nn.Module):
    """EigenGAN's generator: ``num_basis`` latent coordinates per level, besides a noise vector.

    The noise ``e`` makes a 4x4 map; without noise the map is learned. Each of the
    ``log2(size) - 2`` blocks doubles its side and adds its own directions, from coarse to fine.
    There are no norms: samples do not influence each other, and training equals evaluation.

    Args:
        size: Side of the images in pixels, a power of two from 8 up.
        noise_dim: Length of ``e``. 0 leaves ``e`` out and learns the 4x4 map: with noise, factors
            of a small data set may all go there and leave the coordinates without a meaning.
        num_basis: Coordinates per block.
        base_channels: Channels of the last map; each level down has twice as many, up to 512.
        channels: Image channels.
        generator: Source of the initial weights; torch's global state then stays as it is. None
            takes the global state.

    Attributes:
        blocks: The blocks, coarse to fine; ``blocks[i].subspace.u`` are the directions of a level,
            and ``"*.u"`` names those of all.
        image_shape: ``(channels, size, size)``.
        noise_dim: Length of ``e``.

    Raises:
        ConfigError: A size that is no power of two from 8 up, or a setting out of its range.

    Source:
        He, Kan and Shan (2021), arXiv:2104.12476; sizes as in the code of Song, Sebe and Wang,
        arXiv:2212.05599. Initial weights: torch's own; the 4x4 map standard normal, as in Karras
        et al. (2020), arXiv:1912.04958.

    Example:
        >>> model = EigenGenerator(16, noise_dim=0, base_channels=4)
        >>> model.latent_dim
        12
        >>> model.sample(2, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 16, 16])
    """

    start: nn.Linear | None
    constant: nn.Parameter | None

    def __init__(
        self,
        size: int,
        *,
        noise_dim: int = 512,
        num_basis: int = 6,
        base_channels: int = 16,
        channels: int = 3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        levels = doublings("EigenGenerator", size, smallest=_SMALLEST)
        _require_channels("EigenGenerator", base_channels, channels)
        if noise_dim < 0 or num_basis < 1:
            raise ConfigError(
                f"EigenGenerator: got noise_dim={noise_dim} and num_basis={num_basis}, need "
                "noise_dim of at least 0 (0: no noise) and num_basis of at least 1"
            )
        self.image_shape = (channels, size, size)
        self.noise_dim = noise_dim
        self.num_basis = num_basis
        widths = [min(_MAX_CHANNELS, base_channels << (levels - i)) for i in range(levels + 1)]
        self._start_shape = (widths[0], START_SIDE, START_SIDE)
        # Layers draw from the global state when they are made; all of it is drawn again below.
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            numbers = widths[0] * START_SIDE**2
            self.start = nn.Linear(noise_dim, numbers) if noise_dim else None
            self.constant = None if noise_dim else nn.Parameter(torch.empty(self._start_shape))
            self.blocks = nn.ModuleList(
                EigenBlock(widths[i], widths[i + 1], side=START_SIDE << i, num_basis=num_basis)
                for i in range(levels)
            )
            self.to_image = nn.Conv2d(widths[-1], channels, 7, padding=3)
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew: orthonormal directions, everything else as torch does."""
        reset_as_torch_(self, generator=generator)
        if self.constant is not None:
            nn.init.normal_(self.constant, generator=generator)
        for module in self.modules():
            if isinstance(module, EigenSubspace):
                module.reset_parameters(generator=generator)

    @property
    def latent_dim(self) -> int:
        """Coordinates of all blocks, the coarse block's first."""
        return len(self.blocks) * self.num_basis

    @checked
    def forward(
        self,
        z: Float[Tensor, "n ..."],
        e: Float[Tensor, "n noise"] | None = None,
    ) -> Float[Tensor, "n c size size"]:
        """Images in [-1, 1] of coordinates and noise.

        Args:
            z: ``(n, latent_dim)``, or the same as ``(n, blocks, num_basis)``.
            e: ``(n, noise_dim)``; None if, and only if, ``noise_dim`` is 0. Nothing is drawn here:
                :meth:`latents` draws.

        Returns:
            ``(n, channels, size, size)``.

        Raises:
            ShapeError: ``z`` or ``e`` has another shape, or is empty.
            ConfigError: ``e`` is missing, or there although ``noise_dim`` is 0.
        """
        codes = self._codes(z)
        h = self._start(e, codes.shape[0])
        for i, block in enumerate(self.blocks):
            h = block(codes[:, i], h)
        return torch.tanh(self.to_image(F.leaky_relu(h, SLOPE)))

    def latents(
        self, n: int, *, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n latent"], Float[Tensor, "n noise"] | None]:
        """``z`` and ``e`` of the prior, standard normal, ``z`` drawn first; ``model(*latents)``.

        Drawn on the generator's device in float32, then moved to the model's.
        """
        like = self.to_image.weight
        z = draw_normal(n, self.latent_dim, generator=generator, like=like)
        if not self.noise_dim:
            return z, None
        return z, draw_normal(n, self.noise_dim, generator=generator, like=like)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator) -> Float[Tensor, "n c size size"]:
        """``n`` images of the prior; the same generator state gives the same images."""
        images: Tensor = self(*self.latents(n, generator=generator))
        return images

    def joint(self, latents: Float[Tensor, "n d"]) -> Float[Tensor, "n c size size"]:
        """Images of coordinates and noise in one vector, which is what measures take.

        ``evaluate(model.joint, latent_dim=model.latent_dim + model.noise_dim,
        factors=model.latent_dim, ...)`` draws the noise as the prior does and moves the
        coordinates alone.

        Args:
            latents: ``(n, latent_dim + noise_dim)``, the coordinates first.

        Raises:
            ShapeError: Another shape.
        """
        d = self.latent_dim
        if latents.ndim != 2 or latents.shape[1] != d + self.noise_dim:
            raise ShapeError(
                f"EigenGenerator.joint: got latents of shape {tuple(latents.shape)}, need (n, "
                f"{d + self.noise_dim}): {d} coordinates, then {self.noise_dim} of noise"
            )
        images: Tensor = self(latents[:, :d], latents[:, d:] if self.noise_dim else None)
        return images

    def extra_repr(self) -> str:
        """Sizes of image and latents."""
        return f"{self.image_shape[1]}, latent_dim={self.latent_dim}, noise_dim={self.noise_dim}"

    def _codes(self, z: Tensor) -> Tensor:
        shape = (len(self.blocks), self.num_basis)
        if z.shape[1:] not in ((self.latent_dim,), shape) or z.shape[0] == 0:
            raise ShapeError(
                f"EigenGenerator: got z of shape {tuple(z.shape)}, need (n, {self.latent_dim}) or "
                f"(n, {shape[0]}, {shape[1]}), blocks by coordinates, with n of at least 1"
            )
        return z.reshape(z.shape[0], *shape)

    def _start(self, e: Tensor | None, n: int) -> Tensor:
        if self.start is None:
            assert self.constant is not None
            if e is not None:
                raise ConfigError(
                    "EigenGenerator: got noise e, but was made with noise_dim=0; leave it out"
                )
            return self.constant.expand(n, -1, -1, -1)
        if e is None:
            raise ConfigError(
                f"EigenGenerator needs noise e of shape ({n}, {self.noise_dim}); draw it with "
                "latents(n, generator=...), or pass both in one vector to joint(...)"
            )
        if e.shape != (n, self.noise_dim):
            raise ShapeError(
                f"EigenGenerator: got e of shape {tuple(e.shape)}, need ({n}, {self.noise_dim}), "
                "one row for each row of z"
            )
        h: Tensor = self.start(e)
        return h.view(n, *self._start_shape)


@checked
class EigenDiscriminator(nn.Module):
    """The discriminator that EigenGAN is trained against: plain convolutions down to 4x4.

    Conv7x7, then per level Conv3x3 and a Conv3x3 of stride 2 that doubles the channels up to 512,
    Conv3x3 and two linear layers, with a leaky ReLU after each but the last. No norms.

    Args:
        size: Side of the images in pixels, a power of two from 8 up.
        base_channels: Channels at full size.
        channels: Image channels.
        generator: Source of the initial weights; torch's global state then stays as it is. None
            takes the global state.

    Raises:
        ConfigError: A size that is no power of two from 8 up, or a setting out of its range.

    Source:
        As :class:`EigenGenerator`.
    """

    def __init__(
        self,
        size: int,
        *,
        base_channels: int = 16,
        channels: int = 3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        levels = doublings("EigenDiscriminator", size, smallest=_SMALLEST)
        _require_channels("EigenDiscriminator", base_channels, channels)
        self.image_shape = (channels, size, size)
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            width = base_channels
            convolutions = [nn.Conv2d(channels, width, 7, padding=3)]
            for _ in range(levels):
                wider = min(_MAX_CHANNELS, 2 * width)
                convolutions.append(nn.Conv2d(width, width, 3, padding=1))
                convolutions.append(nn.Conv2d(width, wider, 3, stride=2, padding=1))
                width = wider
            convolutions.append(nn.Conv2d(width, width, 3, padding=1))
            self.convolutions = nn.ModuleList(convolutions)
            self.hidden = nn.Linear(width * START_SIDE**2, width)
            self.head = nn.Linear(width, 1)
        self.reset_parameters(generator=generator)

    def reset_parameters(self, *, generator: torch.Generator | None = None) -> None:
        """Draw all weights anew, as torch does."""
        reset_as_torch_(self, generator=generator)

    @checked
    def forward(self, images: Float[Tensor, "n c size size"]) -> Float[Tensor, " n"]:
        """Logits ``(n,)``, large for real, of images ``(n, channels, size, size)``.

        Raises:
            ShapeError: The images have another shape, or there is none.
        """
        require_images("EigenDiscriminator", images, self.image_shape)
        h = images
        for convolution in self.convolutions:
            h = F.leaky_relu(convolution(h), SLOPE)
        logits: Tensor = self.head(F.leaky_relu(self.hidden(h.flatten(1)), SLOPE))
        return logits.squeeze(1)


def _doubling(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)


def _require_channels(model: str, base_channels: int, channels: int) -> None:
    require_at_least_one(model, base_channels=base_channels, channels=channels)
    if base_channels > _MAX_CHANNELS:
        raise ConfigError(
            f"{model}: base_channels={base_channels} must be at most {_MAX_CHANNELS}, the limit "
            "of channels per level"
        )
