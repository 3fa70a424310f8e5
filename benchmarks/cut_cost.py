"""What watching and cutting cost a branch, in steps of the training that follows.

A byte-level GPT is attached with ``delay_steps=0``: eight steps are watched, then it is cut to half
of its numbers. The same steps of a twin with nothing attached are taken in turn with them, one
by one. The extra time is given in steps after the cut, and as a share of branches of several
lengths.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from _measure import report
from orthotrain import AdaptiveLowRank, attach
from orthotrain.models import GPT

STEPS, WATCHED = 40, 8


def times(width: int, depth: int, batch: int, seed: int) -> dict[str, float]:
    """Seconds of a dense step, a watched step, the step of the update, and one after it."""
    generator = torch.Generator().manual_seed(seed)
    plain = GPT(context=64, width=width, depth=depth, heads=4, generator=generator)
    watched = copy.deepcopy(plain)
    pair = []
    for model in (plain, watched):
        pair.append((model, torch.optim.AdamW(model.parameters(), lr=1e-4)))
    attach(watched, pair[1][1], AdaptiveLowRank(delay_steps=0), total_steps=STEPS)
    seconds: list[list[float]] = [[], []]
    for step in range(STEPS):
        x = torch.randint(256, (batch, 65), generator=generator)
        for which in (0, 1) if step % 2 else (1, 0):
            model, optimizer = pair[which]
            start = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            seconds[which].append(time.perf_counter() - start)
    dense, ours = seconds
    return {
        "dense": statistics.median(dense),
        "watched": statistics.median(ours[1 : WATCHED - 1]),
        "update": ours[WATCHED - 1],
        "after": statistics.median(ours[WATCHED + 2 :]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=(200, 800, 1520))
    given = parser.parse_args()
    torch.set_num_threads(1)
    table = []
    for width, depth, batch in ((128, 2, 12), (256, 4, 16)):
        found = [times(width, depth, batch, seed) for seed in range(given.rounds)]
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
            row.append(f"{100 * statistics.median(shares):.1f} %")
        table.append(row)
    report(
        "Watching and cutting, one thread: steps over a dense step (median, range), and all extra "
        "time as a share of branches of so many steps",
        ("network", "watched step", "step of the update", *(f"{n} steps" for n in given.lengths)),
        table,
    )


if __name__ == "__main__":
    main()
