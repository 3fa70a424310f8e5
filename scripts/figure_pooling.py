"""The figure of docs/pooling.md: what the root and shrinkage do, and why few places do no harm.

Usage: python scripts/figure_pooling.py docs/images/pooling.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter
from torch import Tensor

from orthotrain.lab.report.style import LIGHT, new_figure, styled, to_png
from orthotrain.layers import GlobalCovariancePool
from orthotrain.linalg import spd_sqrt

CHANNELS, IMAGES, PLACES, SHRINKAGE = 64, 64, 49, 0.2
RIDGES = [10.0**-k for k in range(1, 11)]


def feature_maps(places: int, generator: torch.Generator) -> Tensor:
    """``(IMAGES, CHANNELS, 1, places)`` with eigenvalues of the covariance from 1 to 1e-3."""
    x = torch.randn(IMAGES, places, CHANNELS, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator).double()).Q
    x = (x * torch.logspace(0, -1.5, CHANNELS, dtype=torch.float64)) @ turn.mT
    return x.mT.unsqueeze(2).contiguous()


def mean_spectrum(p: Tensor) -> Tensor:
    """Mean over images of the eigenvalues by size."""
    return torch.linalg.eigvalsh(p).flip(-1).mean(0)


def draw_spectra(axes: Axes, generator: torch.Generator) -> None:
    """Eigenvalues of what goes in and what comes out, over the largest."""
    x = feature_maps(PLACES, generator)
    covariance = GlobalCovariancePool(CHANNELS).covariance(x)
    shrunk = GlobalCovariancePool(CHANNELS, shrinkage=SHRINKAGE).covariance(x)
    lines = {
        "true covariance": torch.logspace(0, -3, CHANNELS, dtype=torch.float64),
        f"covariance of {PLACES} places": mean_spectrum(covariance),
        "its root": mean_spectrum(spd_sqrt(covariance, relative_ridge=1e-5)),
        f"root with shrinkage {SHRINKAGE}": mean_spectrum(spd_sqrt(shrunk)),
    }
    colors = (LIGHT.muted, LIGHT.ink, *LIGHT.cycle)
    for color, (name, values) in zip(colors, lines.items(), strict=False):
        axes.plot((values / values[0]).clamp(min=1e-9), color=color, label=name)
        say(
            f"{name}: largest {values[0]:.3g}, over it the 48th {values[47] / values[0]:.2g}, "
            f"the last {values[-1] / values[0]:.2g}"
        )
    axes.set(
        title=f"Eigenvalues, {CHANNELS} channels of {PLACES} places",
        xlabel="by size, over the largest", yscale="log", ylim=(1e-5, 30),
    )  # fmt: skip
    axes.legend(loc="upper right", ncols=2, columnspacing=1.2)


def gradient_norms(
    places: int, relative_ridge: float, generator: torch.Generator
) -> tuple[float, float]:
    """Norm of the gradient at the covariance and at the features, for a random upstream."""
    x = feature_maps(places, generator).requires_grad_()
    pool = GlobalCovariancePool(CHANNELS, relative_ridge=relative_ridge)
    g = torch.randn(IMAGES, pool.out_features, generator=generator, dtype=torch.float64)
    (at_features,) = torch.autograd.grad((pool(x) * g).sum(), x)
    p = pool.covariance(x).detach().requires_grad_()
    rows, columns = torch.triu_indices(CHANNELS, CHANNELS)
    root = spd_sqrt(p, relative_ridge=relative_ridge)[:, rows, columns]
    (at_covariance,) = torch.autograd.grad((root * g).sum(), p)
    mean_eigenvalue = p.detach().diagonal(dim1=1, dim2=2).mean(1).sqrt()[:, None, None]
    return (
        float((at_covariance * mean_eigenvalue).norm() / g.norm()),
        float(at_features.norm() * places**0.5 / g.norm()),
    )


def draw_gradients(axes: Axes) -> None:
    """Gradient over the relative ridge, for few and for many places."""
    for i, places in enumerate((PLACES, 4 * PLACES)):
        norms = torch.tensor(
            [gradient_norms(places, ridge, torch.Generator().manual_seed(1)) for ridge in RIDGES]
        )
        for j, (where, color) in enumerate(
            (("covariance", LIGHT.cycle[1]), ("features", LIGHT.cycle[0]))
        ):
            line = "-" if i == 0 else "--"
            axes.plot(
                RIDGES, norms[:, j], color=color, linestyle=line,
                label=f"at the {where}, {places} places",
            )  # fmt: skip
            values = ", ".join(f"{value:.3g}" for value in norms[:, j].tolist())
            say(f"gradient at the {where}, {places} places: {values}")
    axes.axvline(1e-5, ymax=0.7, color=LIGHT.muted, linestyle=":", linewidth=1.2)
    axes.annotate("default", (1e-5, 0.12), color=LIGHT.muted, ha="right", va="bottom")
    axes.set(
        title="Norm of the gradient, for an upstream of norm one",
        xlabel="relative ridge", xscale="log", yscale="log", ylim=(0.1, 1e6),
    )  # fmt: skip
    axes.invert_xaxis()
    axes.legend(loc="upper left")


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
        figure = new_figure(4.0)
        left, right = figure.subplots(1, 2)
        draw_spectra(left, generator)
        draw_gradients(right)
        for axes in (left, right):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        arguments.picture.parent.mkdir(parents=True, exist_ok=True)
        arguments.picture.write_bytes(to_png(figure))


if __name__ == "__main__":
    main()
