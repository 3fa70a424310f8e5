"""What watching and cutting cost a branch, in steps of the training that follows.

A byte-level GPT is attached with ``delay_steps=0``: eight steps are watched, then it is cut to half
of its numbers. The same steps of a twin with nothing attached are taken in turn with them, one
by one. The extra time is given in steps after the cut, and as a share of branches of several
lengths. A third twin spreads its update over steps, one layer per step; its longest step is given
over the median step, each step's time being the median over rounds.

``--longest`` measures that last figure alone, for networks of ``scale.py`` and 256 tokens: one run
of as many steps as a spread update needs, in the processor's time. Its last column leaves out the
eight watched steps, so it is the longest step of the update itself.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from _measure import report, verdict
from orthotrain import AdaptiveLowRank, attach
from orthotrain.models import GPT
from scale import SIZES, model_of

STEPS, WATCHED = 72, 8
TARGET = 3.0
NETWORKS = ((128, 2, 12), (256, 4, 16))


def times(width: int, depth: int, batch: int, seed: int) -> list[list[float]]:
    """Seconds of each step: dense, with an update in one step, with one that is spread."""
    generator = torch.Generator().manual_seed(seed)
    plain = GPT(context=64, width=width, depth=depth, heads=4, generator=generator)
    twins = [
        (m, torch.optim.AdamW(m.parameters(), lr=1e-4)) for m in map(copy.deepcopy, 3 * [plain])
    ]
    for (model, optimizer), spread in zip(twins[1:], (False, True), strict=True):
        method = AdaptiveLowRank(delay_steps=0, spread=spread)
        attach(model, optimizer, method, total_steps=STEPS)
    seconds: list[list[float]] = [[], [], []]
    for step in range(STEPS):
        x = torch.randint(256, (batch, 65), generator=generator)
        for which in (0, 1, 2) if step % 2 else (2, 1, 0):
            model, optimizer = twins[which]
            start = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seconds[which].append(time.perf_counter() - start)
    return seconds


def parts(dense: list[float], ours: list[float]) -> dict[str, float]:
    """Seconds of a dense step, a watched step, the step of the update, and one after it."""
    return {
        "dense": statistics.median(dense),
        "watched": statistics.median(ours[1 : WATCHED - 1]),
        "update": ours[WATCHED - 1],
        "after": statistics.median(ours[WATCHED + 2 :]),
    }


def longest(size: str) -> tuple[str, ...]:
    """A row: the longest step of a spread cut, over the median step of that run."""
    model, generator = model_of(size), torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    layers = sum(isinstance(m, nn.Linear) for m in model.modules())
    steps = WATCHED + 2 * layers + 16
    attach(model, optimizer, AdaptiveLowRank(delay_steps=0), total_steps=steps)
    seconds = []
    for _ in range(steps):
        x = torch.randint(256, (4, 65), generator=generator)
        start = time.thread_time()
        optimizer.zero_grad()
        F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
        optimizer.step()
        seconds.append(time.thread_time() - start)
    seconds = seconds[1:]  # the first step makes the optimizer's state
    over = max(seconds) / statistics.median(seconds)
    where = seconds.index(max(seconds)) + 2
    update = max(seconds[WATCHED - 1 :]) / statistics.median(seconds)  # none of them is watched
    dense = statistics.median(seconds[: WATCHED - 2])
    return (
        size, str(steps), f"{statistics.median(seconds):.3f}", f"{dense:.3f}",
        f"{max(seconds):.3f} (step {where})", f"{over:.2f}", verdict(over, TARGET), f"{update:.2f}",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=(200, 800, 1520))
    parser.add_argument("--networks", type=int, default=len(NETWORKS), help="the smallest ones")
    parser.add_argument("--longest", nargs="+", choices=SIZES, metavar="SIZE")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.longest:
        headings = (
            "size",
            "steps",
            "median, s",
            "watched, s",
            "longest, s",
            "ratio",
            "target",
            "longest of the update",
        )
        for size in given.longest:
            report("The longest step of a spread cut", headings, [longest(size)])
        return
    table = []
    for width, depth, batch in NETWORKS[: given.networks]:
        rounds = [times(width, depth, batch, seed) for seed in range(given.rounds)]
        found = [parts(dense, ours) for dense, ours, _ in rounds]
        ratios = {
            name: sorted(f[name] / f["dense"] for f in found) for name in ("watched", "update")
        }
        extra = [
            (WATCHED - 1) * (f["watched"] - f["dense"]) + f["update"] - f["dense"] for f in found
        ]
        row = [f"width {width}, depth {depth}, batch {batch}"]
        row += [f"{statistics.median(r):.2f} [{r[0]:.2f}, {r[-1]:.2f}]" for r in ratios.values()]
        for length in given.lengths:
            shares = sorted(e / (length * f["after"]) for e, f in zip(extra, found, strict=True))
            low, middle, high = (
                100 * s for s in (shares[0], statistics.median(shares), shares[-1])
            )
            row.append(f"{middle:.1f} % [{low:.1f}, {high:.1f}]")
        spread = [statistics.median(step) for step in zip(*(r[2] for r in rounds), strict=True)][1:]
        row.append(f"{max(spread) / statistics.median(spread):.2f}")
        table.append(row)
    report(
        "Watching and cutting, one thread: steps over a dense step (median, range), and all extra "
        "time as a share of branches of so many steps",
        (
            "network",
            "watched step",
            "step of the update",
            *(f"{n} steps" for n in given.lengths),
            "longest step, spread",
        ),
        table,
    )


if __name__ == "__main__":
    main()
