"""Loss right after a cut at equal stored size, by what the ranks and the cut are chosen.

The byte-level GPT of ``stdlib-gpt`` is trained on the sources of Python's own standard library and
cut once, with no training afterwards: at the end of its schedule, and in the middle. Four ways: the
same share of every layer's rank, each layer's share of its energy, the metric of each layer's
inputs, and the metric of the loss. Held-out files decide, in bits per byte.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from _measure import report
from orthotrain import StoredBudget, compress
from orthotrain.data.stdlib_text import TextData, load_stdlib
from orthotrain.data.windows import WindowStream
from orthotrain.lab.experiments.branches.start import OwnRate
from orthotrain.lab.experiments.catalog import recipe_config
from orthotrain.lab.experiments.classifier.optim import adamw
from orthotrain.lab.experiments.language.networks import build_gpt
from orthotrain.lab.experiments.language.trainer import bits_per_byte, window_loss
from orthotrain.layers import stored_numbers
from orthotrain.lowrank import Candidate, RankRule

RECIPE = recipe_config("stdlib-gpt", "cpu")
BATCHES_FOR_METRIC, WINDOWS = 16, 1024
# Shares of the whole model at the end of training, and of the linear weights in the middle of it.
SHARES, SHARES_HALFWAY = (0.75, 0.5, 0.35), (0.4,)


@dataclass(frozen=True)
class Uniform(RankRule):
    """The same share of every layer's full rank, as large as the budget allows."""

    share: float

    def ranks(
        self, layers: Sequence[Candidate], *, min_ranks: Sequence[int], other_numbers: int
    ) -> list[int]:
        """The largest share, to a thousandth, that the budget holds."""
        dense = sum(layer.blocks * layer.m * layer.n for layer in layers)
        budget = self.share * (dense + other_numbers) - other_numbers
        for thousandth in range(1000, 0, -1):
            ranks = [max(1, layer.full_rank * thousandth // 1000) for layer in layers]
            pairs = zip(layers, ranks, strict=True)
            if (
                sum(x.blocks * stored_numbers(x.m, x.n, k, bases=x.bases) for x, k in pairs)
                <= budget
            ):
                return ranks
        return list(min_ranks)


class Training:
    """The dense training of the recipe, which can stop on its way."""

    def __init__(self, text: TextData, *, seed: int, steps: int) -> None:
        weights = torch.Generator().manual_seed(seed)
        self.model = build_gpt(RECIPE.model, generator=weights)
        self.batches = WindowStream(
            text.train, batch_size=RECIPE.data.batch_size, length=RECIPE.model.context, seed=seed
        )
        rate = OwnRate(RECIPE.optim.lr, RECIPE.optim.warmup_fraction, RECIPE.optim.weight_decay)
        self.optimizer, self.scheduler = adamw(
            self.model, rate, total_steps=steps, betas=RECIPE.optim.betas
        )
        self.seconds: list[float] = []

    def take(self, steps: int) -> nn.Module:
        """Train on for some steps; the model."""
        for _ in range(steps):
            started = time.perf_counter()
            self.optimizer.zero_grad()
            window_loss(self.model, self.batches.next_batch()).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), RECIPE.optim.clip_norm)
            self.optimizer.step()
            self.scheduler.step()
            self.seconds.append(time.perf_counter() - started)
        return self.model


def linear_share(model: nn.Module, share: float) -> float:
    """The share of the whole model that leaves this share of what ``compress`` can cut."""
    whole = sum(p.numel() for p in model.parameters())
    cut = compress(copy.deepcopy(model), stored_budget=0.999).compression
    linear = sum(layer.stored_before for layer in cut.layers)
    return (whole - linear + share * linear) / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=RECIPE.optim.steps)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = load_stdlib()
    rows: dict[tuple[str, str, str], list[str]] = {}
    seconds: list[float] = []

    def bits(model: nn.Module) -> float:
        return bits_per_byte(model, text.validation, count=WINDOWS, length=RECIPE.model.context)

    def cut(when: str, run: Training, shares: dict[str, float]) -> None:
        dense = run.model
        base = bits(dense)
        rows.setdefault((when, "1.00", "dense"), []).append(f"{base:.3f}")
        data = [run.batches.next_batch() for _ in range(BATCHES_FOR_METRIC)]
        for name, share in shares.items():
            budget = StoredBudget(share)
            ways = {
                "same share of every rank": {"rank": Uniform(share), "only_if_cheaper": False},
                "share of energy": {"rank": budget},
                "metric of inputs": {"rank": budget, "data": [x for x, _ in data]},
                "metric of the loss": {"rank": budget, "data": data, "loss": window_loss},
            }
            for way, settings in ways.items():
                started = time.perf_counter()
                model = compress(copy.deepcopy(dense), **settings)
                if way == "metric of the loss":
                    taken = time.perf_counter() - started
                    seconds.append(taken / statistics.median(run.seconds))
                done = model.compression
                stored = f"{done.stored / done.stored_before:.3f}"
                rows.setdefault((when, name, way), []).append(
                    f"{bits(model) - base:+.3f} ({stored})"
                )

    for seed in range(arguments.seeds):
        run = Training(text, seed=seed, steps=arguments.steps)
        run.take(arguments.steps // 2)
        halfway = {
            f"{share:.2f} of linear": linear_share(run.model, share) for share in SHARES_HALFWAY
        }
        cut("half", run, halfway)
        run.take(arguments.steps - arguments.steps // 2)
        cut("end", run, {f"{share:.2f}": share for share in SHARES})
    report(
        "Bits per byte on held-out files right after a cut, above dense (share of the whole model "
        f"stored); GPT of width {RECIPE.model.width} and depth {RECIPE.model.depth}, "
        f"{arguments.steps} steps",
        ("cut at", "stored", "cut by", *(f"seed {seed}" for seed in range(arguments.seeds))),
        [(*key, *values) for key, values in rows.items()],
    )
    print(f"measuring and cutting by the loss took {statistics.median(seconds):.0f} dense steps")


if __name__ == "__main__":
    main()
