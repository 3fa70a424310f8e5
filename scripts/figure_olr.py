"""The figure of docs/olr.md: what OLR holds, and how little a weight before a norm has of it.

Usage: python scripts/figure_olr.py docs/images/olr.png
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from figure_nog import LEARNING_RATE, STEPS, WATCHED, Training, plain_numbers, train
from matplotlib.figure import Figure

import orthotrain
from orthotrain.lab.report.style import LIGHT, new_figure, styled, to_png


def draw(runs: dict[str, Training], watched: dict[str, Training]) -> Figure:
    """Distance from orthonormal on the left, cosines of weight and gradient on the right."""
    figure = new_figure(4.4)
    defects, cosines = figure.subplots(1, 2)
    steps = range(1, STEPS + 1)
    for (label, run), color in zip(runs.items(), (LIGHT.ink, *LIGHT.cycle), strict=False):
        defects.plot(steps, run.defects, color=color, label=label)
    defects.set(
        yscale="log",
        ylim=(2e-7, 20),
        xlabel="step",
        ylabel="|W W^T - 1|",
        title="Started orthonormal, no norm behind",
    )
    plain_numbers(defects, [1e-6, 1e-4, 1e-2, 1])
    for (label, run), color in zip(watched.items(), LIGHT.cycle, strict=False):
        cosines.plot(
            steps, [abs(r["cosine"] or 0.0) for r in run.records], color=color, label=label
        )
    cosines.set(yscale="log", xlabel="step", ylabel="|cos(w, l)|", title="What OLR has to go by")
    plain_numbers(cosines, [1e-7, 1e-5, 1e-3, 1e-1])
    for axes in (defects, cosines):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return figure


def main() -> None:
    """Train, print the numbers that the page quotes, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, help="file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    olr = partial(orthotrain.OptimalLearningRate, record_every=1)
    chosen = {
        "without OLR": [],
        "OLR": [olr(WATCHED)],
        "matrix, floor .1": [olr(WATCHED, target="matrix", floor=0.1)],
        "matrix, floor .1, update": [olr(WATCHED, target="matrix", direction="update", floor=0.1)],
        "matrix, no floor": [olr(WATCHED, target="matrix")],
    }
    runs = {k: train(m, norm=False, orthonormal=True) for k, m in chosen.items()}
    # Weights do not move apart here: with a floor of nearly one, OLR only watches.
    watched = {
        "no norm behind": train([olr(WATCHED, floor=0.999)], norm=False),
        "batch norm behind": train([olr(WATCHED, floor=0.999)]),
    }
    for label, run in (*runs.items(), *watched.items()):
        line = f"{label}: norm {run.norms[-1]:.3f}, defect {run.defects[-1]:.3g}"
        if run.records:
            used = sum(record["used"] for record in run.records) / len(run.records)
            line += (
                f", used in {used:.0%} of the steps, median |cosine| {run.median('cosine'):.2g}, "
                f"median optimum {run.median('optimum') / LEARNING_RATE:.2g} of lr"
            )
        print(line)
    with styled(LIGHT):
        arguments.picture.write_bytes(to_png(draw(runs, watched)))


if __name__ == "__main__":
    main()
