"""A layer's inputs and outputs as samples: tokens of a linear layer, places of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvTransposeNd


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

    Of an embedding ``(samples,)``, the rows that were asked for.

    Args:
        module: A linear layer, an embedding, or a convolution, transposed or not, whose patches
            are ``groups`` times ``n`` wide.
        x: Its input.
        output: Its output for it.
        index: Which samples, on the CPU.
    """
    index = index.to(x.device)
    if isinstance(module, nn.Embedding):
        return x.reshape(-1)[index]
    if not isinstance(module, nn.modules.conv._ConvNd):
        return x.reshape(-1, x.shape[-1])[index]
    dims, stride = len(module.kernel_size), module.stride
    x, size = x if x.ndim == dims + 2 else x.unsqueeze(0), output.shape[-dims:]
    if isinstance(module, _ConvTransposeNd):
        x, stride = _spread(module, x, size), (1,) * dims
    else:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    # Every patch as a view; only those of the chosen places are copied.
    batch, channels, *places = x.stride()
    steps = [s * step for s, step in zip(places, stride, strict=True)]
    taps = [s * step for s, step in zip(places, module.dilation, strict=True)]
    patches = x.as_strided(
        (len(x), *size, x.shape[1], *module.kernel_size), (batch, *steps, channels, *taps)
    )
    chosen = patches[torch.unravel_index(index, patches.shape[: dims + 1])]
    if isinstance(module, _ConvTransposeNd):
        chosen = chosen.flip(*range(2, 2 + dims))
    return chosen.flatten(1)


def _spread(module: _ConvTransposeNd, x: Tensor, size: Sequence[int]) -> Tensor:
    """The input with zeros between and around: a transposed convolution slides over that."""
    places = x.shape[2:]
    wide = [(n - 1) * step + 1 for n, step in zip(places, module.stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *wide)
    between: Any = (..., *(slice(None, None, step) for step in module.stride))
    spread[between] = x
    around: list[int] = []
    for i in reversed(range(len(places))):
        reach = module.dilation[i] * (module.kernel_size[i] - 1)
        before = reach - int(module.padding[i])
        around += [before, size[i] + reach - wide[i] - before]
    return F.pad(spread, around)


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
