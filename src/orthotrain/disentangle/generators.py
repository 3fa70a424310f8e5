"""A generator as the scores see it: latents from the prior in, checked images out.

Every score draws, batches and checks through this file, so that what counts as an image, and in
which range it is measured, is decided once. A generator can also be turned first: N(0, 1) looks
the same from every side, so a turned generator draws the same set of images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, assert_never, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from orthotrain._checks import REAL_DTYPES, require_count, require_values
from orthotrain._doors import checked
from orthotrain.disentangle.samples import stream
from orthotrain.errors import ConfigError, NonFiniteError, ShapeError
from orthotrain.linalg.orthonormality import gram_deviation

#: Latents ``(n, latent_dim)`` in, images ``(n, c, h, w)`` out.
Generate = Callable[[Tensor], Tensor]

#: ``"signed"`` is [-1, 1], as tanh gives it; ``"unit"`` is [0, 1]; ``"any"`` is not checked.
ValueRange = Literal["signed", "unit", "any"]

# Above the rounding of a tanh or sigmoid in half precision (4e-3 at one, rounded towards it), and
# far below a wrong range, which is off by one.
_RANGE_SLACK = 1e-2
# Directions in half precision are orthonormal to 4e-3; a transposed or scaled mistake is far off.
_ORTHONORMALITY = 1e-2


@dataclass(frozen=True)
class Source:
    """Draws latents for, calls and checks one generator.

    Attributes:
        function: The public function the user called, for messages.
        generate: The generator.
        latent_dim: Length of a latent.
        factors: How many coordinates, from the first, are moved; the others are drawn and kept.
        batch_size: Images per call.
        value_range: Of the images that ``generate`` returns.
    """

    function: str
    generate: Generate
    latent_dim: int
    factors: int
    batch_size: int
    value_range: ValueRange

    @classmethod
    def of(
        cls,
        function: str,
        generate: Generate,
        latent_dim: int,
        factors: int | None,
        batch_size: int,
        value_range: ValueRange,
    ) -> Source:
        """Check the settings; ``factors=None`` stands for all coordinates."""
        require_count(function, "latent_dim", latent_dim, least=1)
        require_count(function, "batch_size", batch_size, least=1)
        require_range(function, value_range)
        if not callable(generate):
            raise ConfigError(
                f"{function} needs generate as a callable from latents (n, latent_dim) to images, "
                f"got {type(generate).__name__}; pass the generator itself or a function around it"
            )
        if factors is None:
            factors = latent_dim
        if isinstance(factors, bool) or not 1 <= factors <= latent_dim:
            raise ConfigError(
                f"{function} needs factors between 1 and latent_dim = {latent_dim}, got {factors}; "
                f"leave it out to move every coordinate"
            )
        return cls(function, generate, latent_dim, factors, batch_size, value_range)

    @property
    def settings(self) -> dict[str, Any]:
        """What another score of the same generator is called with."""
        return {
            "factors": self.factors, "batch_size": self.batch_size, "value_range": self.value_range,
        }  # fmt: skip

    def latents(self, n: int, random: torch.Generator) -> Float[Tensor, "n d"]:
        """``n`` latents from the prior N(0, 1), in the generator's dtype, on the CPU.

        Drawn in float64 and rounded, so that a generator's dtype does not change the draw, and by
        sixteen rows, since torch draws its last numbers anew where sixteen does not divide them:
        the first latents are the same however many are asked for.
        """
        rows = -(-n // 16) * 16
        z = torch.randn(rows, self.latent_dim, generator=random, dtype=torch.float64)
        return z[:n].to(self._place()[1])

    def images(self, z: Float[Tensor, "n d"]) -> Float[Tensor, "n c h w"]:
        """Images of one batch of latents, in [-1, 1] unless the range is ``"any"``."""
        place, dtype = self._place()
        out = self.generate(z.to(place, dtype))
        self._require_images(out, len(z))
        return signed(out, self.value_range)

    def batches(self, *latents: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The images of several latents, batch by batch; row ``i`` of each goes together.

        A generator that gives every row of a batch a nuisance of its own gives it to all alike.
        """
        for parts in zip(*(torch.split(z, self.batch_size) for z in latents), strict=True):
            yield tuple(self.images(z) for z in parts)

    def _place(self) -> tuple[torch.device, torch.dtype]:
        module = module_of(self.generate)
        place = None if module is None else place_of(module)
        return (torch.device("cpu"), torch.float32) if place is None else place

    def _require_images(self, out: object, n: int) -> None:
        if not isinstance(out, Tensor):
            raise ConfigError(
                f"{self.function} needs generate to return one tensor of images, got "
                f"{type(out).__name__}; wrap it in a function that returns the images alone"
            )
        if out.ndim != 4 or len(out) != n or 0 in out.shape:
            raise ShapeError(
                f"{self.function} needs images of shape (n, c, h, w) with n = {n}, got "
                f"{tuple(out.shape)} from generate; view its output as images"
            )
        require_image_values(f"{self.function}: generate", out, self.value_range)


def require_image_values(source: str, images: Tensor, value_range: ValueRange) -> None:
    """Raise unless floating-point ``images`` are finite and in their range."""
    if images.dtype not in REAL_DTYPES:
        raise ConfigError(
            f"{source} needs floating-point images, got {images.dtype}; bytes become [-1, 1] by "
            f"x / 127.5 - 1"
        )
    require_values(source, "images", images)
    low, high = (float(x) for x in torch.aminmax(images))
    if not (abs(low) < torch.inf and abs(high) < torch.inf):
        bad = int((~torch.isfinite(images)).sum())
        raise NonFiniteError(
            f"{source} needs finite images, got {bad} of {images.numel()} numbers that are not, in "
            f"images of shape {tuple(images.shape)}; look at the generator's weights, or take an "
            f"earlier checkpoint"
        )
    bounds = _bounds(value_range)
    if bounds is not None and (low < bounds[0] - _RANGE_SLACK or high > bounds[1] + _RANGE_SLACK):
        raise ConfigError(
            f"{source} needs images in [{bounds[0]:g}, {bounds[1]:g}] for value_range="
            f"{value_range!r}, got values from {low:.4g} to {high:.4g}; name the range the images "
            f"have ({', '.join(get_args(ValueRange))}) or scale them"
        )


def signed(images: Tensor, value_range: ValueRange) -> Tensor:
    """Floating-point images in [-1, 1]; as they are where the range is ``"any"``."""
    return 2 * images - 1 if value_range == "unit" else images


def module_of(function: object) -> nn.Module | None:
    """The module behind a callable: itself, the owner of a bound method, or what is wrapped.

    Wrapped is what ``__wrapped__`` names, as ``functools.wraps`` and ``RotatedGenerator`` set it.
    """
    while not isinstance(function, nn.Module):
        owner = getattr(function, "__self__", None)
        if isinstance(owner, nn.Module):
            return owner
        function = getattr(function, "__wrapped__", None)
        if function is None:
            return None
    return function


def place_of(module: nn.Module) -> tuple[torch.device, torch.dtype] | None:
    """Device and dtype of a module's first floating-point tensor; None where it has none."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            return tensor.device, tensor.dtype
    return None


@contextmanager
def measuring(*functions: object) -> Iterator[None]:
    """No gradient, and modules in evaluation mode; afterwards every submodule is as it was."""
    modules = [m for m in map(module_of, functions) if m is not None]
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        with torch.no_grad():
            for module in modules:
                module.eval()
            yield
    finally:
        for part, training in modes:
            part.training = training


def require_range(function: str, value_range: ValueRange) -> None:
    """Raise ConfigError unless ``value_range`` is one of its names."""


def _bounds(value_range: ValueRange) -> tuple[float, float] | None:
    match value_range:
        case "signed":
            return -1.0, 1.0
        case "unit":
            return 0.0, 1.0
        case "any":
            return None
        case _:
            assert_never(value_range)


@dataclass(frozen=True)
class RotatedGenerator:
    """A generator moved along directions: coordinate ``i`` of its latent walks along row ``i``.

    Attributes:
        generate: The generator.
        directions: ``(k, k)``, orthogonal, one direction per row. Coordinates beyond ``k`` stay.
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


@checked
def rotated(generate: Generate, directions: Float[Tensor, "k k"]) -> RotatedGenerator:
    """The generator with its latent turned, for SeFa and for the rotated control.

    The directions are orthonormal, so ``z @ directions`` is as normal as ``z`` and the set of
    images stays the same. What a single coordinate does changes.

    Args:
        generate: Latents ``(n, d)`` with ``d >= k`` to images.
        directions: ``(k, k)`` orthogonal, one direction per row, as ``sefa_directions`` and
            ``random_rotation`` give them.

    Returns:
        A callable on latents. Differentiable in them and in the generator's parameters.

    Raises:
        ShapeError: ``directions`` is not square.
        ConfigError: ``directions`` is not orthogonal.
    """
    if directions.ndim != 2 or directions.shape[0] != directions.shape[1] or not len(directions):
        raise ShapeError(
            f"rotated needs directions of shape (k, k), one per row, got "
            f"{tuple(directions.shape)}; take all of them, not only the strongest"
        )
    require_values("rotated", "directions", directions)
    error = float(gram_deviation(directions.detach().double()).abs().max())
    if not error <= _ORTHONORMALITY:
        raise ConfigError(
            f"rotated needs orthogonal directions, got max|D D^T - 1| of {error:.3g} in directions "
            f"of shape {tuple(directions.shape)}; others would change the images, not only their "
            f"coordinates"
        )
    return RotatedGenerator(generate, directions)


@checked
def random_rotation(
    dim: int, *, seed: int, blocks: Sequence[int] | None = None
) -> Float[Tensor, "dim dim"]:
    """A rotation drawn evenly from all rotations and reflections (Haar), in float64.

    The control for every disentanglement score: what it gives when the axes mean nothing.

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
    require_count("random_rotation", "dim", dim, least=1)
    sizes = [dim] if blocks is None else list(blocks)
    for size in sizes:
        require_count("random_rotation", "a block", size, least=1)
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
