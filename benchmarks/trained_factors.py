"""Time of a layer with trained bases against two plain layers and against the dense one.

Claim: ``left @ right`` in one tensor costs no more than 1.05 of two plain layers, and at 50 %
stored no more than .66 of the dense layer from width 256 on. The layer of one tensor has one
gradient to clear, to clip and to step on, so a second table has the optimizer's step in it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from _measure import interleaved_seconds, ratio, report, train_step, verdict
from orthotrain.layers import LowRankConv2d, LowRankLinear
from orthotrain.lowrank import to_factored

AGAINST_TWO, AGAINST_DENSE = 1.05, 0.66
TOKENS = 1024
LAYERS = {
    **{
        f"Linear {n} to {m}, {TOKENS} tokens": (nn.Linear(n, m), (TOKENS, n))
        for n, m in ((128, 128), (256, 256), (256, 1024), (1024, 256), (512, 512), (768, 768))
    },
    "Conv 128 3x3, 16x128x16x16": (nn.Conv2d(128, 128, 3, padding=1), (16, 128, 16, 16)),
    "Conv 256 3x3, 16x256x8x8": (nn.Conv2d(256, 256, 3, padding=1), (16, 256, 8, 8)),
}


def at_half(dense: nn.Linear | nn.Conv2d) -> nn.Module:
    """The layer with trained bases that stores half as much."""
    m, n = dense.weight.shape[0], dense.weight[0].numel()
    k = m * n // (2 * (m + n))
    if isinstance(dense, nn.Conv2d):
        return LowRankConv2d.from_conv(dense, rank=k, bases="trained")
    return LowRankLinear.from_linear(dense, rank=k, bases="trained")


def whole_step(module: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Forward, backward and a step of AdamW."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    passes = train_step(module, x, grad)

    def step() -> None:
        passes()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    for title, step_of in (
        ("Forward plus backward, ratios within a round", train_step),
        ("Forward, backward and AdamW, ratios within a round", whole_step),
    ):
        rows = []
        for name, (dense, shape) in LAYERS.items():
            x = torch.randn(shape, generator=generator).requires_grad_()
            grad = torch.randn(dense(x).shape, generator=generator)
            layer = at_half(dense)
            two = to_factored(nn.Sequential(at_half(dense)))
            steps = {
                "dense": step_of(dense, x, grad),
                "two plain": step_of(two, x, grad),
                "trained": step_of(layer, x, grad),
            }
            seconds = interleaved_seconds(steps, rounds=arguments.rounds)
            to_two, to_dense = (
                ratio(seconds, "trained", "two plain"),
                ratio(seconds, "trained", "dense"),
            )
            wide = min(dense.weight.shape[0], dense.weight[0].numel()) >= 256
            met = verdict(to_dense.median, AGAINST_DENSE) if wide else "no target below width 256"
            rows.append(
                (name, layer.rank, to_two, verdict(to_two.median, AGAINST_TWO), to_dense, met)
            )
        headings = ("layer", "rank", "to two plain layers", "target", "to dense", "target")
        report(title, headings, rows)


if __name__ == "__main__":
    main()
