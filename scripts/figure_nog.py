"""The figure of docs/nog.md: what NOG makes of the executed step, and of the weight's norm.

Usage: python scripts/figure_nog.py docs/images/nog.png
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import orthotrain
from orthotrain.data.digits import load_digits
from orthotrain.lab.report.style import LIGHT, new_figure, styled, to_png
from orthotrain.linalg import polar_factor
from orthotrain.methods import Method

STEPS = 150
BATCH = 64
LEARNING_RATE = 0.05
WATCHED = "2"  # the second convolution: a 32x144 matrix


@dataclass(frozen=True)
class Training:
    """What a run leaves for a figure, all of the watched weight."""

    norms: list[float]
    defects: list[float]
    gradient: Tensor
    update: Tensor
    records: list[dict]

    def median(self, key: str) -> float:
        """Median of a recorded number over the run, steps without it left out."""
        return statistics.median(abs(r[key]) for r in self.records if r.get(key) is not None)


def train(methods: Sequence[Method], *, norm: bool = True, orthonormal: bool = False) -> Training:
    """Two convolutions on the digits with SGD and momentum, the same start and batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32) if norm else nn.Identity(),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 16, 10),
        )
    weight = model[int(WATCHED)].weight
    if orthonormal:
        with torch.no_grad():
            weight.copy_(polar_factor(weight.flatten(1)).view_as(weight))
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    handle = orthotrain.attach(model, optimizer, *methods, records=None) if methods else None
    data = load_digits().train
    generator = torch.Generator().manual_seed(1)
    norms, defects = [], []
    for _ in range(STEPS):
        batch = torch.randint(len(data), (BATCH,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(data.images[batch]), data.labels[batch]).backward()
        gradient, before = weight.grad.flatten(1).clone(), weight.detach().flatten(1).clone()
        optimizer.step()
        w = weight.detach().flatten(1)
        norms.append(float(w.norm()))
        defects.append(float((w @ w.mT - torch.eye(len(w))).norm()))
    return Training(norms, defects, gradient, w - before, handle.records if handle else [])


def plain_numbers(axes: Axes, ticks: Sequence[float]) -> None:
    """Ticks of a logarithmic axis as plain numbers: the style does not set mathematics."""
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def draw(runs: dict[str, Training]) -> Figure:
    """Spectra of the last step on the left, norms over the run on the right."""
    figure = new_figure(4.2)
    spectra, norms = figure.subplots(1, 2)
    plain = runs["without NOG"]
    shown = {
        "gradient": plain.gradient,
        "step without NOG": plain.update,
        "step, NOG on the gradient": runs["NOG"].update,
        "step, NOG on the update": runs["NOG on the update"].update,
    }
    for (label, matrix), color in zip(shown.items(), (LIGHT.muted, *LIGHT.cycle), strict=False):
        s = torch.linalg.svdvals(matrix.double())
        spectra.plot(range(1, len(s) + 1), s / s[0], color=color, label=label)
    spectra.set(
        yscale="log",
        xlabel="direction",
        ylabel="singular value over the largest",
        title=f"Spectra at step {STEPS}",
    )
    plain_numbers(spectra, [0.03, 0.1, 0.3, 1])
    for (label, run), color in zip(runs.items(), (LIGHT.ink, *LIGHT.cycle), strict=False):
        norms.plot(range(1, STEPS + 1), run.norms, color=color, label=label)
    norms.set(xlabel="step", ylabel="Frobenius norm", title="Norm of the weight", ylim=(0, None))
    for axes in (spectra, norms):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def main() -> None:
    """Train, print the numbers that the page quotes, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    nog = partial(orthotrain.NearestOrthogonalGradient, record_every=1)
    runs = {
        "without NOG": train([]),
        "NOG": train([nog(WATCHED)]),
        "NOG, scale=gradient_norm": train([nog(WATCHED, scale="gradient_norm")]),
        "NOG on the update": train([nog(WATCHED, when="update")]),
    }
    for label, run in runs.items():
        line = f"{label}: norm {run.norms[0]:.2f} to {run.norms[-1]:.2f}"
        if run.records:
            line += (
                f", median condition of the gradient {run.median('gradient_condition'):.3g}, "
                f"of the executed step {run.median('update_condition'):.3g}"
            )
        print(line)
    with styled(LIGHT):
        arguments.picture.write_bytes(to_png(draw(runs)))


if __name__ == "__main__":
    main()
