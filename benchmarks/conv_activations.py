"""What a low-rank ResNet-18 keeps for backward, and what recomputing a part of it costs.

A norm keeps what a low-rank convolution gives it. That is a 1x1 product away from the ``k``
channels which the convolution keeps, so it is multiplied again in backward. Bytes are what the
forward pass allocates and does not give back: hooks on saved tensors, which would count them, take
the place of the ones that recompute. With one thread, its own time is taken.

Claim: at half the stored size at most 1.0 of what the dense network keeps, at no more than 3 % of
the step, to the same bits.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from _measure import allocated_bytes, interleaved_seconds, ratio, report, train_step, verdict
from orthotrain.layers import Bases, LowRankConv2d
from orthotrain.layers import _recomputed as recomputed
from orthotrain.models import ResNet

BYTES, STEP = 1.0, 1.03
AS_SHIPPED, NEVER = recomputed._LEAST_RATIO, 1 << 30


def low_rank(dense: nn.Module, bases: Bases) -> nn.Module:
    """Every convolution but the stem at the rank that stores half as much."""
    net = copy.deepcopy(dense)
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and child.in_channels > 3:
                m, n = child.out_channels, child.weight[0].numel()
                k = max(1, m * n // (2 * (m + n)))
                setattr(parent, name, LowRankConv2d.from_conv(child, rank=k, bases=bases))
    return net


def with_ratio(least: int, call: Callable[[], object]) -> Callable[[], object]:
    """The call, where only layers of ``n >= least m`` are recomputed."""

    def run() -> object:
        recomputed._LEAST_RATIO = least
        try:
            return call()
        finally:
            recomputed._LEAST_RATIO = AS_SHIPPED

    return run


def same_bits(net: nn.Module, x: Tensor, grad: Tensor) -> bool:
    """Whether the gradients are the same to the last bit, with and without recomputing."""
    found = []
    for least in (AS_SHIPPED, NEVER):
        other, again = copy.deepcopy(net), x.detach().requires_grad_()
        with_ratio(least, train_step(other, again, grad))()
        found.append([again.grad, *(p.grad for p in other.parameters())])
    return all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    dense = ResNet(depth=18, width=arguments.width, classes=10, generator=generator)
    x = torch.randn(arguments.batch, 3, 32, 32, generator=generator).requires_grad_()
    grad = torch.randn(arguments.batch, 10, generator=generator)
    of_dense = allocated_bytes(lambda: dense(x))
    rows = []
    for bases in ("trained", "frozen"):
        net = low_rank(dense, bases)
        step = train_step(net, x, grad)
        steps = {
            "dense": train_step(dense, x, grad),
            "recomputed": with_ratio(AS_SHIPPED, step),
            "kept": with_ratio(NEVER, step),
        }
        seconds = interleaved_seconds(steps, rounds=arguments.rounds, clock=clock)
        kept, now = (
            allocated_bytes(with_ratio(least, lambda net=net: net(x))) / of_dense  # type: ignore[misc]
            for least in (NEVER, AS_SHIPPED)
        )
        cost = ratio(seconds, "recomputed", "kept")
        rows.append(
            (
                bases, f"{kept:.3f}", f"{now:.3f}", verdict(now, BYTES), cost,
                verdict(cost.median, STEP), ratio(seconds, "recomputed", "dense"),
                "same" if same_bits(net, x, grad) else "DIFFERENT",
            )
        )  # fmt: skip
    report(
        f"ResNet-18, width {arguments.width}, batch {arguments.batch} of 32x32, half the stored "
        f"size; dense keeps {of_dense / 2**20:.1f} MiB",
        (
            "bases", "all kept, to dense", "recomputed, to dense", "target", "step to all kept",
            "target", "step to dense", "bits",
        ),
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
