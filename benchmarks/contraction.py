"""Time and bytes kept for backward of low-rank layers against dense, over rank.

Claim: a factored layer is faster and keeps less wherever ``AdaptiveLowRank`` converts it, and
with its automatic choice (``only_if_cheaper``: dense until the rank pays) nothing is ever
slower than dense by more than 5 %.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import nn

from _measure import Ratio, interleaved_seconds, kept_bytes, ratio, report, train_step, verdict
from orthotrain.layers import LowRankConv2d, LowRankLinear
from orthotrain.lowrank.decide import factored_pays

RANKS = (0.1, 0.25, 0.4, 0.6, 0.8, 1.0)
LAYERS = {
    "Linear 768 to 3072, 1024 tokens": (nn.Linear(768, 3072), (1024, 768)),
    "Linear 3072 to 768, 1024 tokens": (nn.Linear(3072, 768), (1024, 3072)),
    "Linear 768 to 768, 1024 tokens": (nn.Linear(768, 768), (1024, 768)),
    "Conv 128 3x3, 16x128x16x16": (nn.Conv2d(128, 128, 3, padding=1), (16, 128, 16, 16)),
    "Conv 256 3x3, 16x256x8x8": (nn.Conv2d(256, 256, 3, padding=1), (16, 256, 8, 8)),
}
TARGETS = {
    ("Linear 768 to 3072, 1024 tokens", 0.25): (0.33, 0.27),
    ("Conv 128 3x3, 16x128x16x16", 0.25): (0.38, 0.30),
}


def low_rank(dense: nn.Module, fraction: float) -> tuple[nn.Module, bool]:
    """The layer at a rank as a method makes it, and whether the automatic choice takes it."""
    if isinstance(dense, nn.Conv2d):
        m, n = dense.out_channels, dense.weight[0].numel()
        k = -(-int(fraction * min(m, n)) // 16) * 16
        return LowRankConv2d.from_conv(dense, rank=k), factored_pays(m, n, k)
    assert isinstance(dense, nn.Linear)
    m, n = dense.weight.shape
    k = int(fraction * min(m, n))
    return LowRankLinear.from_linear(dense, rank=k), factored_pays(m, n, k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    rows = []
    worst_automatic = 0.0
    for name, (dense, shape) in LAYERS.items():
        x = torch.randn(shape, generator=generator).requires_grad_()
        grad = torch.randn(dense(x).shape, generator=generator)
        bytes_dense = kept_bytes(dense, x)
        for fraction in RANKS:
            layer, pays = low_rank(dense, fraction)
            automatic = layer if pays else copy.deepcopy(dense)
            steps = {
                "dense": train_step(dense, x, grad),
                "low-rank": train_step(layer, x, grad),
                "automatic": train_step(automatic, x, grad),
            }
            seconds = interleaved_seconds(steps, rounds=arguments.rounds)
            time: Ratio = ratio(seconds, "low-rank", "dense")
            chosen = ratio(seconds, "automatic", "dense")
            kept = kept_bytes(layer, x) / bytes_dense
            worst_automatic = max(worst_automatic, chosen.median)
            goals = TARGETS.get((name, fraction))
            met = "" if goals is None else (
                f"time {verdict(time.median, goals[0])}, bytes {verdict(kept, goals[1])}"
            )  # fmt: skip
            form = "low-rank" if pays else "dense"
            rows.append((name, fraction, time, f"{kept:.3f}", form, chosen, met))
    report(
        "Forward plus backward, ratio to the dense layer",
        ("layer", "rank", "time", "bytes kept", "automatic is", "automatic time", "target"),
        rows,
    )
    print(f"worst automatic ratio {worst_automatic:.3f}: {verdict(worst_automatic, 1.05)}")


if __name__ == "__main__":
    main()
