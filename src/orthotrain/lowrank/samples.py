"""A layer's inputs and outputs as samples: tokens of a linear layer, places of a convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def count_samples(module: nn.Module, output: Tensor) -> int:
    """Samples in one call of a layer: rows of a linear layer, output places of a convolution."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return output.numel() // module.out_channels
    return output.numel() // output.shape[-1]


def chosen_samples(count: int, most: int, generator: torch.Generator) -> Tensor:
    """Indices of all samples, or of ``most`` of them: one at random of each equal stretch.

    Args:
        count: Samples there are.
        most: Samples to take at most.
        generator: On the CPU; not drawn from where all are taken.
    """
    if count <= most:
        return torch.arange(count)
    jitter = torch.rand(most, generator=generator, dtype=torch.float64)
    return ((torch.arange(most) + jitter) * (count / most)).long().clamp_(max=count - 1)


def input_samples(module: nn.Module, x: Tensor, output: Tensor, index: Tensor) -> Tensor:
    """``(samples, n)`` of what entered a layer, as its weight multiplies it; a copy.

    Args:
        module: A linear layer, or a convolution, whose patches are ``groups`` times ``n`` wide.
        x: Its input.
        output: Its output for it.
        index: Which samples, on the CPU.
    """
    index = index.to(x.device)
    if not isinstance(module, nn.modules.conv._ConvNd):
        return x.reshape(-1, x.shape[-1])[index]
    dims = len(module.kernel_size)
    x = x if x.ndim == dims + 2 else x.unsqueeze(0)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    # Every patch as a view; only those of the chosen places are copied.
    size, (batch, channels, *places) = output.shape[-dims:], x.stride()
    steps = [s * step for s, step in zip(places, module.stride, strict=True)]
    taps = [s * step for s, step in zip(places, module.dilation, strict=True)]
    patches = x.as_strided(
        (len(x), *size, x.shape[1], *module.kernel_size), (batch, *steps, channels, *taps)
    )
    return patches[torch.unravel_index(index, patches.shape[: dims + 1])].flatten(1)


def output_samples(module: nn.Module, output: Tensor, index: Tensor) -> Tensor:
    """``(samples, m)`` of a layer's output, or of the gradient there; a copy.

    Args:
        module: A linear layer or a convolution.
        output: Its output, or a tensor of that shape.
        index: Which samples, on the CPU.
    """
    index = index.to(output.device)
    if not isinstance(module, nn.modules.conv._ConvNd):
        return output.reshape(-1, output.shape[-1])[index]
    if output.ndim == len(module.kernel_size) + 1:
        output = output.unsqueeze(0)
    places = output.movedim(1, -1)
    return places[torch.unravel_index(index, places.shape[:-1])]
