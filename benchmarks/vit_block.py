"""A ViT block with every rank at a quarter, against the dense block and the same in two ways.

Claim: at most .45 of the dense block at width 768; the Function for autograd alone takes no longer
than the one that transforms of ``torch.func`` need. With one thread, its own time is taken.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import nn

from _measure import interleaved_seconds, kept_bytes, ratio, report, train_step, verdict
from orthotrain.layers import LowRankLinear
from orthotrain.layers import _contraction as contraction
from orthotrain.models.transformer import Block

TARGET, TO_GENERAL = 0.45, 1.0
HEADS = {96: 3, 192: 3, 768: 12}
TOKENS = {96: 65, 192: 65, 768: 197}


def at_a_quarter(dense: nn.Module) -> nn.Module:
    """The block with low-rank layers, their bases frozen."""
    quarter = copy.deepcopy(dense)
    for parent in list(quarter.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                rank = min(child.in_features, child.out_features) // 4
                setattr(parent, name, LowRankLinear.from_linear(child, rank=rank))
    return quarter


def by_general_function(step: Callable[[], None]) -> Callable[[], None]:
    """The step with the Function that transforms need."""
    eager, general = contraction._EAGER, {each: each for each in contraction._EAGER}

    def run() -> None:
        contraction._EAGER = general
        try:
            step()
        finally:
            contraction._EAGER = eager

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--widths", type=int, nargs="+", default=[96, 192, 768])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    rows = []
    for width in arguments.widths:
        dense = Block(width, heads=HEADS[width], mlp_ratio=4.0)
        quarter = at_a_quarter(dense)
        for batch in arguments.batches:
            shape = (batch, TOKENS[width], width)
            x = torch.randn(shape, generator=generator).requires_grad_()
            grad = torch.randn(shape, generator=generator)
            low_rank = train_step(quarter, x, grad)
            steps = {
                "dense": train_step(dense, x, grad),
                "rank 1/4": low_rank,
                "general": by_general_function(low_rank),
            }
            seconds = interleaved_seconds(steps, rounds=arguments.rounds, clock=clock)
            of_dense, of_general = (ratio(seconds, "rank 1/4", b) for b in ("dense", "general"))
            kept = kept_bytes(quarter, x) / kept_bytes(dense, x)
            met = verdict(of_dense.median, TARGET) if width == 768 else "none at this width"
            rows.append(
                (
                    width, batch, of_dense, met, of_general,
                    verdict(of_general.median, TO_GENERAL), f"{kept:.3f}",
                )
            )  # fmt: skip
    report(
        "ViT block, every rank a quarter, forward and backward",
        ("width", "batch", "to dense", "target", "to the general Function", "target", "bytes kept"),
        rows,
    )


if __name__ == "__main__":
    main()
