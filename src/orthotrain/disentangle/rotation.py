"""Generators whose latent is turned first: SeFa's directions, and the rotation that scores a floor.

N(0, 1) looks the same from every side, so a turned generator draws the same set of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from orthotrain.disentangle._codes import require_count
from orthotrain.disentangle._generator import Generate, stream
from orthotrain.errors import ConfigError, ShapeError
from orthotrain.linalg.orthonormality import gram_deviation

# Directions in half precision are orthonormal to 4e-3; a transposed or scaled mistake is far off.
_ORTHONORMALITY = 1e-2


@dataclass(frozen=True)
class RotatedGenerator:
    """A generator moved along directions: coordinate ``i`` of its latent walks along row ``i``.

    Attributes:
        generate: The generator.
        directions: ``(k, k)``, orthogonal, one direction a row. Coordinates beyond ``k`` stay.
    """

    generate: Generate
    directions: Float[Tensor, "k k"]

    @property
    def __wrapped__(self) -> Generate:
        """The generator, whose mode and device are looked for through this one."""
        return self.generate

    def __call__(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        """Images of ``sum_i z_i directions_i``."""
        k = len(self.directions)
        if z.ndim != 2 or z.shape[1] < k:
            raise ShapeError(
                f"RotatedGenerator needs latents (n, d) with d >= {k}, got {tuple(z.shape)}; "
                f"directions and latents must be of one generator"
            )
        turned = z[:, :k] @ self.directions.to(z.device, z.dtype)
        return self.generate(torch.cat([turned, z[:, k:]], dim=1))


def rotated(generate: Generate, directions: Float[Tensor, "k k"]) -> RotatedGenerator:
    """The generator with its latent turned, for SeFa and for the rotated control.

    Since the directions are orthonormal, ``z @ directions`` is as normal as ``z``, and the set of
    images is the same: only what a single coordinate does is another.

    Args:
        generate: Latents ``(n, d)`` with ``d >= k`` to images.
        directions: ``(k, k)`` orthogonal, one direction a row, as ``sefa_directions`` and
            ``random_rotation`` give them.

    Returns:
        A callable on latents. Differentiable in them and in the generator's parameters.

    Raises:
        ShapeError: ``directions`` is not square.
        ConfigError: ``directions`` is not orthogonal.
    """
    if directions.ndim != 2 or directions.shape[0] != directions.shape[1] or not len(directions):
        raise ShapeError(
            f"rotated needs directions of shape (k, k), one a row, got {tuple(directions.shape)}; "
            f"take all of them, not only the strongest"
        )
    error = float(gram_deviation(directions.detach().double()).abs().max())
    if not error <= _ORTHONORMALITY:
        raise ConfigError(
            f"rotated needs orthogonal directions, got max|D D^T - 1| of {error:.3g} in directions "
            f"of shape {tuple(directions.shape)}; others would change the images, not only their "
            f"coordinates"
        )
    return RotatedGenerator(generate, directions)


def random_rotation(
    dim: int, *, seed: int, blocks: Sequence[int] | None = None
) -> Float[Tensor, "dim dim"]:
    """A rotation drawn evenly from all rotations and reflections (Haar), in float64.

    The control for every disentanglement score: what is left of it when axes mean nothing.

    Args:
        dim: Its size, at least 1.
        seed: Of the draw.
        blocks: Sizes of groups of coordinates, in order, each of which is turned by itself: such as
            the layers of an EigenGAN, within which SeFa turns, too. None is one group of all.

    Raises:
        ConfigError: ``dim`` or a block is below 1, blocks do not add up to ``dim``, or ``seed`` is
            no whole number.

    Source:
        Mezzadri (2007), Notices of the AMS 54(5): QR of a Gaussian matrix, signs by the diagonal.
    """
    require_count("random_rotation", "dim", dim, at_least=1)
    sizes = [dim] if blocks is None else list(blocks)
    for size in sizes:
        require_count("random_rotation", "a block", size, at_least=1)
    if sum(sizes) != dim:
        raise ConfigError(
            f"random_rotation needs blocks that add up to {dim} coordinates, got {sizes}; "
            f"None turns all of them"
        )
    random = stream("random_rotation", seed)
    rotation: Tensor = torch.block_diag(*(_haar(size, random) for size in sizes))  # type: ignore[no-untyped-call]
    return rotation


def _haar(dim: int, random: torch.Generator) -> Float[Tensor, "dim dim"]:
    q, r = torch.linalg.qr(torch.randn(dim, dim, generator=random, dtype=torch.float64))
    rotation: Tensor = q * r.diagonal().sign()
    return rotation
