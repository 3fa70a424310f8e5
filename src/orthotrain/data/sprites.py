"""Sprites (re-rendered): small shapes whose factors of variation are known."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import overload

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from orthotrain._doors import checked
from orthotrain.data._correlated import correlated_uniforms
from orthotrain.data._sprite_factors import (
    FACTORS,
    class_values,
    holds_integers,
    require_classes,
    require_factor,
    require_values,
    require_within,
    uniform_to_classes,
    uniform_to_values,
)
from orthotrain.data._sprite_shapes import coverage
from orthotrain.errors import ConfigError, ShapeError

MIN_SIZE, MAX_SIZE = 16, 64
MAX_SUPERSAMPLE = 8


@checked
class Sprites:
    """The published grid of a white shape on black, drawn from its geometry as it is indexed.

    Three shapes, six scales, 40 orientations and 32 x 32 positions: 737,280 images, the last
    factor fastest, ``index = (((shape * 6 + scale) * 40 + orientation) * 32 + x) * 32 + y``.
    Nothing is stored or downloaded; the same index gives the same image. In text and tables this
    is "sprites (re-rendered)", for it is not the published file.

    ======================  ======================================  ========================
    factor                  class                                   value
    ======================  ======================================  ========================
    ``color`` (if asked)    red, yellow, green, cyan, blue, magenta hue, ``k / 6``
    ``shape``               square, ellipse, heart                  the class itself
    ``scale``               0 to 5                                  .5 to 1
    ``orientation``         0 to 39                                 0 to ``2 pi``, both ends
    ``x``, ``y``            0 to 31                                 0 to 1; ``y`` goes down
    ======================  ======================================  ========================

    Position 0 to 1 is a centre from .25 to .75 of the side. The first and the last orientation
    are one angle, the square looks alike each quarter turn and the ellipse each half: no code
    can tell the orientation from the image, so leave it out of scores.

    Args:
        size: Side of the images in pixels, 16 to 64.
        supersample: Edges are the mean of ``supersample**2`` samples per pixel, 1 to 8.
        binary: One sample, at the pixel's centre, whatever ``supersample``: images of 0 and 1.
        color: Add the factor ``color``, before the others, and give RGB.
        doubled_orientation: Whether the grid holds the angle ``2 pi`` beside 0. Off, there are
            39 orientations, the same angles otherwise, and no two sprites of the grid are one,
            turns of the square and the ellipse included.
        held: Class of each factor that does not vary, by name. Such a factor is part of neither
            ``factor_names`` nor ``factor_sizes``, and has no column in ``factors``.

    Attributes:
        factor_names: The factors that vary, slowest first; the columns of ``factors``.
        factor_sizes: Number of classes of each: ``(3, 6, 40, 32, 32)`` unless changed.
        factor_values: Name to ``(classes,)`` float64, the value of each class.
        image_shape: ``(channels, size, size)``.

    Raises:
        ConfigError: A setting is out of its range, or no factor is left to vary.

    Source:
        Matthey, Higgins, Hassabis and Lerchner (2017), dSprites, github.com/deepmind (the
        grid). The geometry was fitted to its published animation.

    Example:
        >>> sprites = Sprites(16, held={"orientation": 0})
        >>> images, factors = sprites[torch.tensor([0, len(sprites) - 1])]
        >>> images.shape, factors.tolist(), sprites.index_of(factors).tolist()
        (torch.Size([2, 1, 16, 16]), [[0, 0, 0, 0], [2, 5, 31, 31]], [0, 18431])
    """

    title = "sprites (re-rendered)"

    def __init__(
        self,
        size: int = 64,
        *,
        supersample: int = 2,
        binary: bool = False,
        color: bool = False,
        doubled_orientation: bool = True,
        held: Mapping[str, int] | None = None,
    ) -> None:
        require_within("size", size, MIN_SIZE, MAX_SIZE)
        require_within("supersample", supersample, 1, MAX_SUPERSAMPLE)
        self._samples = 1 if binary else supersample
        self._color = color
        grid = class_values(doubled_orientation=doubled_orientation)
        names = FACTORS if color else FACTORS[1:]
        held = dict(held or {})
        for name, value in held.items():
            require_factor(name, names)
            require_within(f"held[{name!r}]", value, 0, len(grid[name]) - 1)
        self.factor_names = tuple(name for name in names if name not in held)
        if not self.factor_names:
            raise ConfigError("Sprites: held fixes every factor; leave at least one out of it")
        self.factor_values = {name: grid[name] for name in self.factor_names}
        self.factor_sizes = tuple(len(values) for values in self.factor_values.values())
        self.image_shape = (3 if color else 1, size, size)
        # All six factors of a sprite; those that vary are written over.
        self._at_rest = torch.stack([grid[name][held.get(name, 0)] for name in FACTORS])
        self._columns = [FACTORS.index(name) for name in self.factor_names]

    def __repr__(self) -> str:
        sizes = zip(self.factor_names, self.factor_sizes, strict=True)
        return (
            f"Sprites({self.image_shape[-1]}, supersample={self._samples}, color={self._color}: "
            f"{', '.join(f'{name} {size}' for name, size in sizes)})"
        )

    def __len__(self) -> int:
        """Number of images in the grid."""
        return math.prod(self.factor_sizes)

    @overload
    def __getitem__(
        self, index: int
    ) -> tuple[Float[Tensor, "c size size"], Int64[Tensor, " f"]]: ...

    @overload
    def __getitem__(
        self, index: slice | Int64[Tensor, " k"]
    ) -> tuple[Float[Tensor, "k c size size"], Int64[Tensor, "k f"]]: ...

    def __getitem__(self, index: int | slice | Int64[Tensor, "*k"]) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and classes of their factors, one or, for many indices, a batch.

        Args:
            index: A number, a slice, or an integer tensor of any length; negative ones count
                from the end.

        Returns:
            Image ``(c, size, size)`` float32 and factors ``(f,)`` int64; for a slice or a
            tensor ``(k,)``, ``(k, c, size, size)`` and ``(k, f)`` on the tensor's device.

        Raises:
            IndexError: An index is outside the grid.
            ShapeError: The tensor has more than one dimension or does not hold integers.
        """
        if isinstance(index, slice):
            index = torch.arange(*index.indices(len(self)))
        elif not isinstance(index, Tensor):
            index = torch.tensor(operator.index(index))
        if index.ndim > 1 or not holds_integers(index):
            raise ShapeError(
                f"Sprites: got indices {tuple(index.shape)} of {index.dtype}, need (k,) of int64"
            )
        factors = self.factors_of(index.reshape(-1))
        images = self.render(factors)
        return (images, factors) if index.ndim else (images[0], factors[0])

    def factors_of(self, index: Int64[Tensor, " k"]) -> Int64[Tensor, "k f"]:
        """Classes of the factors of each index.

        Raises:
            IndexError: An index is outside the grid.
        """
        count = len(self)
        index = index.to(torch.int64)
        outside = (index < -count) | (index >= count)
        if outside.any():
            raise IndexError(
                f"Sprites: index {int(index[outside][0])} is outside of {count} images"
            )
        return torch.stack(torch.unravel_index(index % count, self.factor_sizes), dim=1)

    def index_of(self, factors: Int64[Tensor, "n f"]) -> Int64[Tensor, " n"]:
        """Index in the grid of each row of classes.

        Raises:
            ShapeError: Not two-dimensional, another number of factors, or no integers.
            ConfigError: A class does not exist.
        """
        require_classes(factors, names=self.factor_names, sizes=self.factor_sizes)
        index = torch.zeros_like(factors[:, 0], dtype=torch.int64)
        for column, size in enumerate(self.factor_sizes):
            index = index * size + factors[:, column]
        return index

    def values(self, factors: Int64[Tensor, "n f"]) -> Float64[Tensor, "n f"]:
        """Value of each class: hue, shape, scale, angle in radians, position; see the class.

        Raises:
            ShapeError: Not two-dimensional, another number of factors, or no integers.
            ConfigError: A class does not exist.
        """
        require_classes(factors, names=self.factor_names, sizes=self.factor_sizes)
        tables = (table.to(factors.device) for table in self.factor_values.values())
        columns = [table[factors[:, j].to(torch.int64)] for j, table in enumerate(tables)]
        return torch.stack(columns, dim=1)

    def render(self, factors: Int64[Tensor, "n f"]) -> Float[Tensor, "n c size size"]:
        """Draw the sprites with these classes: float32 in [0, 1] on the device of ``factors``.

        About 7,000 images per second at 64 pixels on one thread. An image does not depend on what
        else is drawn with it.

        Raises:
            ShapeError: Not two-dimensional, another number of factors, or no integers.
            ConfigError: A class does not exist.
        """
        return self._draw(self.values(factors))

    def render_values(self, values: Float[Tensor, "n f"]) -> Float[Tensor, "n c size size"]:
        """Draw sprites between the grid's: the same with values in the place of classes.

        Args:
            values: ``(n, f)``: shape 0, 1 or 2, scale in [.5, 1], position in [0, 1]; any
                orientation in radians, and any hue, of which the whole part is dropped.

        Raises:
            ShapeError: Not two-dimensional or another number of factors.
            ConfigError: A value is out of its range or not finite.
        """
        require_values(values, names=self.factor_names)
        return self._draw(values.to(torch.float64))

    def sample_factors(
        self,
        n: int,
        *,
        generator: torch.Generator,
        correlation: tuple[str, str, float] | None = None,
    ) -> Int64[Tensor, "n f"]:
        """Classes drawn from the grid, uniformly, with replacement; two may go together.

        Args:
            n: Number of rows.
            generator: CPU generator; all chance comes from it.
            correlation: ``(name, name, r)`` with ``r`` in [-1, 1]; None draws all factors
                independently. Each factor is drawn as a uniform number in [0, 1), then cut into
                its classes. The numbers of these two are joined by a Gaussian copula whose
                parameter ``2 sin(pi r / 6)`` makes ``r`` their Pearson (and rank) correlation.
                Each factor alone stays uniform. Cutting weakens it: measured on two million
                pairs, to .975 to .986 ``r`` between scale and a position, and to .999 ``r``
                between orientation and a position.

        Returns:
            ``(n, f)`` for ``render`` and ``index_of``.

        Raises:
            ConfigError: ``n`` is negative, or ``correlation`` names a factor that does not vary,
                one factor twice, or an ``r`` outside [-1, 1].

        Source:
            Kruskal (1958), JASA 53(284), for the correlation of ranks under the normal law.
        """
        uniform = self._uniforms(n, generator, correlation)
        return uniform_to_classes(uniform, self.factor_sizes)

    def sample(
        self,
        n: int,
        *,
        generator: torch.Generator,
        correlation: tuple[str, str, float] | None = None,
    ) -> tuple[Float[Tensor, "n c size size"], Float64[Tensor, "n f"]]:
        """Sprites whose factors are drawn from their ranges, not from the grid.

        Scale is uniform in [.5, 1], orientation in [0, 2 pi], positions and hue in [0, 1]; the
        shape stays one of three.

        Args:
            n: Number of images.
            generator: CPU generator; all chance comes from it.
            correlation: As in ``sample_factors``. Here nothing is cut, so ``r`` is the
                correlation of the values themselves (for a shape, of the number it is cut from).

        Returns:
            Images ``(n, c, size, size)`` float32 and values ``(n, f)``, which
            ``render_values`` turns into the same images.

        Raises:
            ConfigError: As for ``sample_factors``.
        """
        values = uniform_to_values(self._uniforms(n, generator, correlation), self.factor_names)
        return self._draw(values), values

    def _draw(self, values: Tensor) -> Tensor:
        full = self._at_rest.to(values.device).repeat(len(values), 1)
        full[:, self._columns] = values
        share = coverage(full[:, 1:], size=self.image_shape[-1], samples=self._samples)[:, None]
        return share * _rgb(full[:, 0])[:, :, None, None] if self._color else share

    def _uniforms(
        self, n: int, generator: torch.Generator, correlation: tuple[str, str, float] | None
    ) -> Tensor:
        if n < 0:
            raise ConfigError(f"Sprites: n={n} must not be negative")
        uniform = torch.rand(n, len(self.factor_names), dtype=torch.float64, generator=generator)
        if correlation is None:
            return uniform
        one, other, r = correlation
        for name in (one, other):
            require_factor(name, self.factor_names)
        if one == other or not -1 <= r <= 1:
            raise ConfigError(
                f"Sprites: correlation={correlation!r} needs two different factors and a "
                "coefficient in [-1, 1]"
            )
        pair = [self.factor_names.index(name) for name in (one, other)]
        uniform[:, pair] = correlated_uniforms(n, r=r, generator=generator)
        return uniform


def _rgb(hue: Float64[Tensor, " n"]) -> Float[Tensor, "n 3"]:
    """Full saturation and brightness, so the brightest channel is the shape itself."""
    sixth = 6 * (hue % 1.0)
    red, green, blue = (sixth - 3).abs() - 1, 2 - (sixth - 2).abs(), 2 - (sixth - 4).abs()
    return torch.stack([red, green, blue], dim=1).clamp(0, 1).to(torch.float32)
