"""Steps of the generators, and NOG on the gradient of a latent weight: at most .15 of its SVD.

A step is one of each player. The simple GAN has its published number of channels at each size.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace

import torch

from _measure import interleaved_seconds, ratio, report, verdict
from orthotrain.lab.experiments.catalog import find_recipe
from orthotrain.lab.experiments.latent.images import build
from orthotrain.lab.experiments.latent.step import adversarial_step
from orthotrain.linalg import polar_factor

TARGET = 0.15
# A latent weight of EigenGAN at 256 pixels, and those of smaller ones.
GRADIENTS = ((6, 32_768), (6, 8_192), (6, 4_096), (6, 524_288))


def nog_against_svd(*, rounds: int) -> list[tuple[object, ...]]:
    """The polar factor as NOG takes it, the SVD, and the product of its factors."""
    rows: list[tuple[object, ...]] = []
    for shape in GRADIENTS:
        g = torch.randn(shape, generator=torch.Generator().manual_seed(0))

        def svd(g: torch.Tensor = g) -> torch.Tensor:
            u, _, vh = torch.linalg.svd(g, full_matrices=False)
            return u @ vh

        seconds = interleaved_seconds(
            {"polar": lambda g=g: polar_factor(g), "svd": svd}, rounds=rounds
        )
        found = ratio(seconds, "polar", "svd")
        medians = [1000 * statistics.median(seconds[name]) for name in ("polar", "svd")]
        said = verdict(found.median, TARGET) if shape == GRADIENTS[0] else ""
        rows.append((f"{shape[0]}x{shape[1]}", *(f"{ms:.2f}" for ms in medians), found, said))
    return rows


def step_of(recipe: str, variant: str, size: int, batch: int):
    """One step of both players; of EigenGAN with half of the recipe's full width."""
    experiment = find_recipe(recipe)
    full = experiment.at("full")
    config = replace(
        full,
        data=replace(full.data, image_size=size, batch_size=batch),
        model=replace(full.model, base_channels=8),
        device="cpu",
    )
    chosen = next(v for v in experiment.variants(config) if v.name == variant)
    state = build(config, chosen, 0).state
    return lambda: adversarial_step(state, config)


def steps(*, rounds: int, batch: int, sizes: list[int]) -> list[tuple[object, ...]]:
    """Seconds per 100 steps of each model, without and with NOG and with the costly rivals."""
    rows: list[tuple[object, ...]] = []
    for size in sizes:
        for recipe in ("sprites-eigengan", "sprites-simplegan"):
            variants = ("baseline", "nog", "hessian", "orojar")
            candidates = {name: step_of(recipe, name, size, batch) for name in variants}
            seconds = interleaved_seconds(candidates, rounds=rounds, warmup=1)
            for name in variants:
                rows.append(
                    (
                        recipe.removeprefix("sprites-"), size, name,
                        f"{100 * statistics.median(seconds[name]):.1f}",
                        ratio(seconds, name, "baseline"),
                    )
                )  # fmt: skip
    return rows


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--step-rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report(
        "NOG on the gradient of a latent weight, against torch.linalg.svd and its product",
        ("gradient", "NOG, ms", "SVD, ms", "ratio", "target"),
        nog_against_svd(rounds=arguments.rounds),
    )
    report(
        f"Seconds per 100 steps of both players, batch {arguments.batch}, 8 base channels",
        ("model", "pixels", "variant", "s / 100", "over baseline"),
        steps(rounds=arguments.step_rounds, batch=arguments.batch, sizes=arguments.sizes),
    )


if __name__ == "__main__":
    main()
