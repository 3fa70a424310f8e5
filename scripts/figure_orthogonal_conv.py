"""The figure of docs/orthogonal_weights.md: Jacobians of convolutions, covariances behind them.

Usage: python scripts/figure_orthogonal_conv.py docs/images/orthogonal_conv.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.ticker import FuncFormatter
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from orthotrain.lab.report.style import LIGHT, new_figure, styled, to_png
from orthotrain.layers import OrthogonalConv2d, orthogonal_weight

CHANNELS, SIDE = 16, 8
STEM, IMAGES, RIDGE = 64, 128, 1e-2


def drawn(layer: nn.Conv2d, generator: torch.Generator) -> nn.Conv2d:
    """A convolution with He's initial weight, as ResNets have it."""
    nn.init.kaiming_normal_(
        layer.weight, mode="fan_out", nonlinearity="relu", generator=generator
    )  # fmt: skip
    return layer


def layers(inputs: int, outputs: int, generator: torch.Generator) -> dict[str, nn.Module]:
    """The same convolution, free and constrained in three ways."""

    def plain() -> nn.Conv2d:
        return drawn(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), generator)

    return {
        "nn.Conv2d": plain(),
        "torch's parametrisation, 4-D": parametrizations.orthogonal(plain()),
        "orthogonal_weight": orthogonal_weight(plain()),
        "OrthogonalConv2d": OrthogonalConv2d(
            inputs, outputs, 3, bias=False, generator=generator, method="skew"
        ).eval(),
        "OrthogonalConv2d, max_norm=2.1": OrthogonalConv2d(
            inputs, outputs, 3, bias=False, max_norm=2.1, generator=generator
        ).eval(),
    }  # fmt: skip


@torch.no_grad()
def jacobian_values(layer: nn.Module) -> Tensor:
    """Singular values of the layer as a linear map of whole images."""
    size = CHANNELS * SIDE**2
    pixels = torch.eye(size, dtype=torch.float64).view(size, CHANNELS, SIDE, SIDE)
    return torch.linalg.svdvals(layer.double()(pixels).flatten(1).T)


def images(generator: torch.Generator) -> Tensor:
    """Noise with the spectrum of photographs, one over frequency, and correlated colors."""
    noise = torch.randn(IMAGES, 3, 32, 32, generator=generator, dtype=torch.float64)
    frequency = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)[None])
    frequency[0, 0] = 1 / 32
    x = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, s=(32, 32))
    colors = torch.tensor([[1.0, 0.9, 0.8], [0.9, 1.0, 0.9], [0.8, 0.9, 1.0]]).double()
    x = torch.einsum("ij,njhw->nihw", torch.linalg.cholesky(colors), x)
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


@torch.no_grad()
def covariance(layer: nn.Module, x: Tensor) -> Tensor:
    """What enters the whitening behind the layer, without the ridge."""
    y = layer.double()(x).transpose(0, 1).flatten(1)
    y = y - y.mean(dim=1, keepdim=True)
    return y @ y.T / y.shape[1]


def say(sentence: str) -> None:
    """A line of numbers for the page."""
    sys.stdout.write(sentence + "\n")


def main() -> None:
    """Draw both panels; print the numbers behind them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, help="file to write")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    with styled(LIGHT):
        figure = new_figure(4.2)
        left, right = figure.subplots(1, 2)
        colors = [LIGHT.ink, *LIGHT.cycle]
        kinds = layers(CHANNELS, CHANNELS, generator)
        for color, (name, layer) in zip(colors, kinds.items(), strict=False):
            s = jacobian_values(layer)
            left.plot(s, color=color, label=name)
            say(f"Jacobian, {name}: {s[0]:.6f} to {s[-1]:.6f}")
        left.set(
            title=f"Jacobian on images of {CHANNELS}x{SIDE}x{SIDE}",
            xlabel="singular values, by size", yscale="log", ylim=(1e-2, 20),
        )  # fmt: skip
        x = images(generator)
        say(f"mean square of a pixel's colors: {float(x.pow(2).sum(1).mean()):.2f}")
        for color, (name, layer) in zip(colors, layers(3, STEM, generator).items(), strict=False):
            p = covariance(layer, x)
            values = torch.linalg.eigvalsh(p).flip(0).clamp(min=1e-16)
            right.plot(values, color=color)
            with_ridge = float((values[0] + RIDGE) / (values[-1] + RIDGE))
            rank = int((values > 1e-10 * values[0]).sum())
            on_range = float(values[0] / values[rank - 1])
            say(
                f"covariance, {name}: trace {float(p.trace()):.2f}, largest {values[0]:.2f}, rank "
                f"{rank} of {STEM}, condition on the range {on_range:.2g}, with the ridge "
                f"{with_ridge:.4g}"
            )
        right.axhline(RIDGE, color=LIGHT.muted, linestyle=":", linewidth=1.2)
        right.annotate(f"ridge {RIDGE}", (STEM - 1, RIDGE), ha="right", va="bottom")
        right.set(
            title=f"Covariance behind a stem, 3 to {STEM} channels",
            xlabel="eigenvalues, by size", yscale="log", ylim=(1e-8, 1e3),
        )  # fmt: skip
        for axes in (left, right):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        figure.legend(loc="outside upper left", ncols=3, columnspacing=1.6)
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        arguments.picture.write_bytes(to_png(figure))


if __name__ == "__main__":
    main()
