"""The figure of docs/whitening.md: what whitening does to a covariance, and what to keep running.

Usage: python scripts/figure_whitening.py docs/images/whitening.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from torch import Tensor, nn

from orthotrain.lab.report.style import LIGHT, new_figure, styled, to_png
from orthotrain.layers import DecorrelatedBatchNorm1d, DecorrelatedBatchNorm2d
from orthotrain.linalg import spd_inv_sqrt

STEM, IMAGES, RIDGE = 64, 128, 1e-2
CHANNELS, BATCHES, DRAWS = 64, 100, 2
SAMPLES = (96, 128, 256, 512, 1024)
CONDITION = 1e2


def images(generator: torch.Generator) -> Tensor:
    """Noise with the spectrum of photographs, one over frequency, and correlated colors."""
    noise = torch.randn(IMAGES, 3, 32, 32, generator=generator, dtype=torch.float64)
    frequency = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)[None])
    frequency[0, 0] = 1 / 32
    x = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, s=(32, 32))
    colors = torch.tensor([[1.0, 0.9, 0.8], [0.9, 1.0, 0.9], [0.8, 0.9, 1.0]]).double()
    x = torch.einsum("ij,njhw->nihw", torch.linalg.cholesky(colors), x)
    return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


def covariance(samples: Tensor) -> Tensor:
    """Of ``(n, c)``."""
    centred = samples - samples.mean(0)
    return centred.mT @ centred / len(samples)


@torch.no_grad()
def behind_a_stem(generator: torch.Generator) -> dict[str, Tensor]:
    """Eigenvalues of the covariance of a stem's output, as it is and behind three norms."""
    stem = nn.Conv2d(3, STEM, 3, padding=1, bias=False).double()
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    x = stem(images(generator))
    kinds: dict[str, nn.Module] = {
        "as it is": nn.Identity(),
        "batch norm": nn.BatchNorm2d(STEM).double(),
        f"whitening, ridge {RIDGE}": DecorrelatedBatchNorm2d(STEM, ridge=RIDGE),
        f"whitening, ridge {RIDGE}, groups of 16": DecorrelatedBatchNorm2d(
            STEM, group_size=16, ridge=RIDGE
        ),
    }
    return {
        name: torch.linalg.eigvalsh(covariance(norm(x).transpose(0, 1).flatten(1).mT)).flip(0)
        for name, norm in kinds.items()
    }


@torch.no_grad()
def errors_in_evaluation(samples: int, generator: torch.Generator) -> tuple[float, float]:
    """Distance of the covariance of the evaluated output from one: running covariance, and root.

    Both are means over many batches; the samples have a covariance of condition 100.
    """
    scales = torch.logspace(0, -0.5 * torch.tensor(CONDITION).log10().item(), CHANNELS).double()
    turn = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator).double()).Q
    exact = (turn * scales**2) @ turn.mT
    layer = DecorrelatedBatchNorm1d(
        CHANNELS, ridge=0.0, momentum=None, affine=False, dtype=torch.float64
    )
    root = torch.zeros(CHANNELS, CHANNELS, dtype=torch.float64)
    for _ in range(BATCHES):
        x = torch.randn(samples, CHANNELS, generator=generator, dtype=torch.float64)
        x = (x * scales) @ turn.mT
        layer(x)
        root += spd_inv_sqrt(covariance(x)) / BATCHES
    assert layer.running_covariance is not None
    whitenings = spd_inv_sqrt(layer.running_covariance[0]), root
    unit = torch.eye(CHANNELS, dtype=torch.float64)
    mine, other = (float((z @ exact @ z - unit).norm() / CHANNELS**0.5) for z in whitenings)
    return mine, other


def say(sentence: str) -> None:
    """A line of numbers for the page."""
    sys.stdout.write(sentence + "\n")


def draw_spectra(axes: Axes, generator: torch.Generator) -> None:
    """Eigenvalues by size, one line a norm."""
    colors = (LIGHT.muted, LIGHT.ink, *LIGHT.cycle)
    for color, (name, values) in zip(colors, behind_a_stem(generator).items(), strict=False):
        axes.plot(values.clamp(min=1e-16), color=color, label=name)
        say(
            f"{name}: largest {values[0]:.3g}, 10th {values[9]:.3g}, 27th {values[26]:.3g}, "
            f"28th {values[27]:.1g}"
        )
    axes.set(
        title=f"Covariance behind a stem, 3 to {STEM} channels",
        xlabel="eigenvalues, by size", yscale="log", ylim=(1e-4, 1e2),
    )  # fmt: skip
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(loc="upper right")


def draw_errors(axes: Axes, generator: torch.Generator) -> None:
    """Whitening error in evaluation over samples a batch; a band over the draws."""
    found = torch.tensor(
        [[errors_in_evaluation(n, generator) for _ in range(DRAWS)] for n in SAMPLES]
    )
    for i, (name, color) in enumerate(
        (("running covariance", LIGHT.cycle[0]), ("running inverse root", LIGHT.cycle[1]))
    ):
        mean, low, high = found[..., i].mean(1), found[..., i].amin(1), found[..., i].amax(1)
        axes.plot(SAMPLES, mean, color=color, marker="o", label=name)
        axes.fill_between(SAMPLES, low, high, color=color, alpha=0.16, linewidth=0)
        for n, value in zip(SAMPLES, mean.tolist(), strict=True):
            say(f"{name}, {n} samples a batch: {value:.3f}")
    axes.set(
        title=f"Error of whitening in evaluation, {CHANNELS} channels",
        xlabel="samples a batch", xscale="log", yscale="log", ylim=(0.01, 2),
    )  # fmt: skip
    axes.set_xticks(SAMPLES, [str(n) for n in SAMPLES])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.legend(loc="upper right")


def main() -> None:
    """Draw both panels; print the numbers behind them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, help="file to write")
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    with styled(LIGHT):
        figure = new_figure(4.0)
        left, right = figure.subplots(1, 2)
        draw_spectra(left, generator)
        draw_errors(right, generator)
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        arguments.picture.write_bytes(to_png(figure))


if __name__ == "__main__":
    main()
