"""The figure of docs/roots.md: error of an inverse root and of its gradient over the condition.

Usage: python scripts/figure_roots.py docs/images/roots.png
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from orthotrain.lab.report.style import LIGHT, new_figure, styled, to_png
from orthotrain.linalg import spd_inv_sqrt

SIZE = 64
EXPONENTS = [k / 4 for k in range(27)]
FLOOR = 1e-9
Result = tuple[Tensor, Tensor]


def covariance(condition: float) -> Tensor:
    """Float32, its eigenvalues evenly spaced in the logarithm."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)).Q
    values = (1 / torch.tensor(condition).double()) ** torch.linspace(0, 1, SIZE).double()
    a = ((q * values) @ q.mT).float()
    return (a + a.mT) / 2


def by(**settings: object) -> Callable[[Tensor, Tensor], Result]:
    """``spd_inv_sqrt`` with these settings, and its gradient."""

    def run(a: Tensor, g: Tensor) -> Result:
        x = a.clone().requires_grad_()
        root = spd_inv_sqrt(x, **settings)
        root.backward(g)
        return root.detach(), x.grad

    return run


def float32_eigh(a: Tensor, g: Tensor) -> Result:
    """The formulas of the exact gradient with all of it in float32."""
    values, vectors = torch.linalg.eigh(a)
    s = values.clamp(min=torch.finfo(a.dtype).eps * float(values[-1])).sqrt()
    factors = -1 / (torch.outer(s, s) * (s.unsqueeze(-1) + s))
    inner = vectors.mT @ ((g + g.mT) / 2) @ vectors
    return (vectors / s) @ vectors.mT, vectors @ (factors * inner) @ vectors.mT


NEWTON = {"method": "newton_schulz", "gradient": "newton_schulz"}
METHODS = {
    "auto: eigh in float64, exact gradient": by(),
    "eigh in float32, exact gradient": float32_eigh,
    "Polar Express 8, Lyapunov gradient": by(method="polar_express", gradient="lyapunov"),
    "Newton-Schulz 15, its own gradient": by(iterations=15, **NEWTON),
    "Newton-Schulz 5, its own gradient": by(iterations=5, **NEWTON),
    "MPA, Lyapunov gradient": by(method="mpa", gradient="lyapunov"),
    "MTP, Lyapunov gradient": by(method="mtp", gradient="lyapunov"),
}


def errors() -> dict[str, list[tuple[float, float]]]:
    """Relative Frobenius errors of root and gradient, over the conditions."""
    g = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for exponent in EXPONENTS:
        a = covariance(10**exponent)
        exact = by()(a.double(), g.double())
        for name, method in METHODS.items():
            pairs = zip(method(a, g), exact, strict=True)
            found[name].append(tuple(relative(mine, true) for mine, true in pairs))
    return found


def relative(actual: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error."""
    return float((actual.double() - expected).norm() / expected.norm())


def decades(axes: Axes) -> None:
    """Plain numbers at decades: the style does not set mathematics."""
    axes.set_xticks([10.0**k for k in range(0, 8)], [f"1e{k}" for k in range(0, 8)])
    axes.set_yticks([10.0**k for k in range(-8, 1, 2)], [f"1e{k}" for k in range(-8, 1, 2)])
    axes.minorticks_off()


def draw(found: dict[str, list[tuple[float, float]]]) -> Figure:
    """The root on the left, its gradient on the right."""
    figure = new_figure(4.8)
    conditions = [10**exponent for exponent in EXPONENTS]
    titles = ("Error of the inverse root", "Error of its gradient")
    for part, (axes, title) in enumerate(zip(figure.subplots(1, 2), titles, strict=True)):
        for (name, pairs), color in zip(found.items(), (LIGHT.ink, *LIGHT.cycle), strict=True):
            heights = [max(pair[part], FLOOR) for pair in pairs]
            axes.plot(conditions, heights, color=color, label=name)
        axes.axhline(1e-6, color=LIGHT.muted, linestyle=":", linewidth=1.2)
        axes.set(
            xscale="log",
            yscale="log",
            ylim=(FLOOR * 3, 5),
            xlabel="condition number",
            ylabel="relative error (Frobenius)",
            title=title,
        )
        decades(axes)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def main() -> None:
    """Measure, print the numbers that the page quotes, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = errors()
    for name, pairs in found.items():
        shown = ((k, pairs[EXPONENTS.index(k)]) for k in (2, 4, 6))
        print(name, *(f"1e{k}: {root:.1e} / {gradient:.1e}" for k, (root, gradient) in shown))
    with styled(LIGHT):
        arguments.picture.write_bytes(to_png(draw(found)))


if __name__ == "__main__":
    main()
