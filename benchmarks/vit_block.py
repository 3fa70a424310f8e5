"""A ViT block (width 768, 197 tokens) with every rank at a quarter, against the dense block."""

from __future__ import annotations

import argparse
import copy

import torch
from torch import nn

from _measure import interleaved_seconds, kept_bytes, ratio, report, train_step, verdict
from orthotrain.layers import LowRankLinear
from orthotrain.models.transformer import Block

TARGET = 0.45


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    dense = Block(768, heads=12, mlp_ratio=4.0)
    quarter = copy.deepcopy(dense)
    for parent in list(quarter.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                rank = min(child.in_features, child.out_features) // 4
                setattr(parent, name, LowRankLinear.from_linear(child, rank=rank))
    rows = []
    for batch in arguments.batches:
        x = torch.randn(batch, 197, 768, generator=generator).requires_grad_()
        grad = torch.randn(batch, 197, 768, generator=generator)
        steps = {"dense": train_step(dense, x, grad), "rank 1/4": train_step(quarter, x, grad)}
        seconds = interleaved_seconds(steps, rounds=arguments.rounds)
        time = ratio(seconds, "rank 1/4", "dense")
        kept = kept_bytes(quarter, x) / kept_bytes(dense, x)
        rows.append((batch, time, f"{kept:.3f}", verdict(time.median, TARGET)))
    report(
        "ViT block, width 768, 197 tokens, every rank a quarter, ratio to dense",
        ("batch", "time", "bytes kept", "target"),
        rows,
    )


if __name__ == "__main__":
    main()
