"""What the image generators and discriminators share: sizes, initial weights, checks, drawing."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from orthotrain.errors import ConfigError, ShapeError

#: Slope of every leaky ReLU in these networks for negative inputs.
SLOPE = 0.2
#: Side of the smallest feature map; each level up doubles it.
START_SIDE = 4


def doublings(model: str, size: int, *, smallest: int, largest: int | None = None) -> int:
    """Levels between a 4x4 map and an image: ``log2(size / 4)``.

    Args:
        model: Class name, for the message.
        size: Side of the image in pixels.
        smallest: Power of two.
        largest: Power of two; None for no limit.

    Raises:
        ConfigError: ``size`` is no power of two, or outside the limits; names the nearest ones.
    """
    whole = isinstance(size, int) and not isinstance(size, bool)
    if whole and size >= smallest and size & (size - 1) == 0 and (not largest or size <= largest):
        return (size // START_SIDE).bit_length() - 1
    below = 1 << (max(int(size), 1).bit_length() - 1)
    near = {max(side, smallest) for side in (below, 2 * below)}
    near = {min(side, largest) if largest else side for side in near}
    limit = f"from {smallest} to {largest}" if largest else f"from {smallest} up"
    raise ConfigError(
        f"{model}: got size={size}, need a power of two {limit}; the nearest: "
        f"{' and '.join(map(str, sorted(near)))}. Resize or pad the images to it"
    )


def require_at_least_one(model: str, **sizes: int) -> None:
    """Raise ConfigError where a size is below one."""
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f"{model}: {name}={size} must be at least 1")


def require_images(model: str, images: Tensor, shape: tuple[int, ...]) -> None:
    """Raise ShapeError unless ``images`` is a batch of images of ``shape``, not an empty one."""
    if images.ndim != 4 or images.shape[1:] != shape or images.shape[0] == 0:
        sizes = ", ".join(map(str, shape))
        raise ShapeError(
            f"{model}: got images {tuple(images.shape)}, need (batch, {sizes}) with at least one "
            "image"
        )


def reset_as_torch_(model: nn.Module, *, generator: torch.Generator | None) -> None:
    """Draw the linear layers and convolutions anew, as torch draws them by default.

    Weights and biases are uniform within ``fan_in ** -0.5``, where for a transposed convolution
    torch takes the outputs times the taps for the fan-in. Norms start neutral.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        elif isinstance(module, nn.InstanceNorm2d):
            module.reset_parameters()


def draw_normal(n: int, dim: int, *, generator: torch.Generator, like: Tensor) -> Tensor:
    """``(n, dim)`` standard normal numbers with the device and dtype of ``like``.

    Drawn in float32 on the generator's own device, so that a copy of a model on another device
    or in another dtype gets the same ones.

    Raises:
        ConfigError: ``n`` is below one.
    """
    if n < 1:
        raise ConfigError(f"need at least one sample, got n={n}")
    drawn = torch.randn(n, dim, generator=generator, device=generator.device)
    return drawn.to(like)
