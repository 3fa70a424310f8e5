"""The figure of docs/conditioning.md: one covariance, read in four senses, and over a training.

Usage: python scripts/figure_conditioning.py docs/images/conditioning.png
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import orthotrain
from orthotrain.data.digits import load_digits
from orthotrain.lab.report.style import LIGHT, new_figure, styled, to_png
from orthotrain.layers import DecorrelatedBatchNorm2d

STEPS = 200
BATCH = 64
CHANNELS = 64
RIDGE = 1e-2
# What a reading is called, and where its label stands free of the curves.
SENSES = {
    "condition_float64": ("naive, float64", 1e14),
    "condition_float32": ("naive, float32", 1e7),
    "condition_range": ("on the range", 1e4),
    "condition_ridge": ("with the ridge", 1e1),
}


@dataclass(frozen=True)
class Trained:
    """What a run leaves for the figure."""

    covariance: Tensor
    records: list[dict]


def train() -> Trained:
    """Digits in random colours through a 3x3 stem of 64 channels, whitened behind it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, padding=1, bias=False),
            DecorrelatedBatchNorm2d(CHANNELS, ridge=RIDGE),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 10),
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    monitor = orthotrain.ConditionMonitor("0", every_steps=2)
    handle = orthotrain.attach(model, optimizer, monitor, records=None)
    data = load_digits().train
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        batch = torch.randint(len(data), (BATCH,), generator=generator)
        colors = torch.rand(BATCH, 3, 1, 1, generator=generator)
        images = data.images[batch] * colors
        optimizer.zero_grad()
        F.cross_entropy(model(images), data.labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        covariance = model[1].covariance(model[0](images).double())[0]
    return Trained(covariance, [r for r in handle.records if r["what"] == "covariance"])


def powers(axes: Axes, low: int, high: int, step: int) -> None:
    """Ticks of a logarithmic axis as plain powers: the style does not set mathematics."""
    ticks = range(low, high + 1, step)
    axes.set_yticks([10.0**k for k in ticks], [f"1e{k}" for k in ticks])
    axes.set_ylim(10.0 ** (low - 0.5), 10.0 ** (high + 0.5))
    axes.minorticks_off()


def draw_spectrum(axes: Axes, covariance: Tensor, rtol: float) -> None:
    """Eigenvalues as each precision finds them, with the ridge and the tolerance."""
    index = range(1, CHANNELS + 1)
    wide = torch.linalg.eigvalsh(covariance).flip(0)
    narrow = torch.linalg.eigvalsh(covariance.float()).flip(0)
    largest = wide[0].item()
    axes.set_yscale("log")
    for values, color, label in (
        (narrow, LIGHT.cycle[1], "found in float32"),
        (wide, LIGHT.cycle[0], "found in float64"),
    ):
        # A negative one is rounding, too; its size is what a condition number divides by.
        axes.plot(index, values.abs(), "o", markersize=3.5, color=color, label=label)
    for level, name in ((RIDGE, "ridge"), (rtol * largest, "rtol times the largest")):
        axes.axhline(level, color=LIGHT.muted, linestyle="--", linewidth=1.2)
        axes.text(CHANNELS, level * 1.6, name, color=LIGHT.muted, ha="right", fontsize=8.5)
    powers(axes, -18, 0, 3)
    axes.set_ylim(top=30)
    axes.set_title("Eigenvalues: 27 inputs behind 64 channels")
    axes.set_xlabel("index")
    axes.legend(loc="lower left")


def draw_senses(axes: Axes, records: list[dict]) -> None:
    """The four condition numbers over the training."""
    steps = [record["step"] for record in records]
    axes.set_yscale("log")
    for color, (key, (label, height)) in zip(LIGHT.cycle, SENSES.items(), strict=False):
        values = [math.nan if r[key] is None else r[key] for r in records]
        axes.plot(steps, values, color=color)
        words = f"{label}: {values[-1]:.1e} at the end"
        axes.text(STEPS, height, words, color=color, ha="right")
    powers(axes, 0, 18, 3)
    axes.set_ylim(top=1e20)
    axes.set_title("Its condition over a training")
    axes.set_xlabel("step")


def draw(trained: Trained) -> Figure:
    """The spectrum on the left, what is read from it on the right."""
    figure = new_figure(4.2)
    left, right = figure.subplots(1, 2)
    draw_spectrum(left, trained.covariance, trained.records[-1]["rtol"])
    draw_senses(right, trained.records)
    return figure


def main() -> None:
    """Train, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    trained = train()
    with styled(LIGHT):
        picture = to_png(draw(trained))
    arguments.picture.parent.mkdir(parents=True, exist_ok=True)
    arguments.picture.write_bytes(picture)
    last = trained.records[-1]
    for key in ("step", "rank", "size", "rtol", "largest", "ridge", *SENSES):
        print(f"{key} {last[key]}")


if __name__ == "__main__":
    main()
