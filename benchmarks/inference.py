"""Time of a layer without gradients, against the same as two plain layers and against dense.

With one thread, its own time is taken, so that other jobs beside it count for less.

Claim: at most 1.05 of two plain layers at any number of rows, and never above 1.1 of dense.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from _measure import interleaved_seconds, ratio, report, verdict
from orthotrain.layers import Bases, LowRankConv2d, LowRankLinear

AGAINST_TWO, AGAINST_DENSE = 1.05, 1.1
SHARES = (0.25, 0.5)
WIDTHS = ((128, 128), (256, 256), (768, 768), (768, 3072), (3072, 768))
ROWS = (1, 16, 256, 4096)
LAYERS: dict[str, tuple[nn.Linear | nn.Conv2d, tuple[int, ...]]] = {
    f"Linear {n} to {m}, {rows} rows": (nn.Linear(n, m), (rows, n))
    for n, m in WIDTHS
    for rows in ROWS
}
LAYERS |= {
    f"Conv {c} 3x3, {batch}x{c}x{side}x{side}": (
        nn.Conv2d(c, c, 3, padding=1),
        (batch, c, side, side),
    )
    for c, side in ((128, 16), (256, 8))
    for batch in (1, 16)
}


def at_rank(dense: nn.Linear | nn.Conv2d, k: int, bases: Bases) -> nn.Module:
    if isinstance(dense, nn.Conv2d):
        return LowRankConv2d.from_conv(dense, rank=k, bases=bases)
    return LowRankLinear.from_linear(dense, rank=k, bases=bases)


def two_plain(dense: nn.Linear | nn.Conv2d, k: int) -> nn.Module:
    """The same two products as torch's own layers."""
    if isinstance(dense, nn.Conv2d):
        c = dense.in_channels
        return nn.Sequential(nn.Conv2d(c, k, 3, padding=1, bias=False), nn.Conv2d(k, c, 1))
    return nn.Sequential(
        nn.Linear(dense.in_features, k, bias=False), nn.Linear(k, dense.out_features)
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of the names of layers")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    rows, worst = [], {"frozen": 0.0, "trained": 0.0, "dense": 0.0}
    for name, (dense, shape) in LAYERS.items():
        if not any(part in name for part in arguments.only):
            continue
        x = torch.randn(shape, generator=generator)
        m, n = dense.weight.shape[0], dense.weight[0].numel()
        for share in SHARES:
            k = int(share * min(m, n))
            layers = {
                "two": two_plain(dense, k),
                "dense": dense.eval(),
                "frozen": at_rank(dense, k, "frozen").eval(),
                "trained": at_rank(dense, k, "trained").eval(),
            }
            seconds = one_count(layers, x, arguments.rounds)
            cells = []
            for form in ("frozen", "trained"):
                to_two = ratio(seconds, form, "two")
                worst[form] = max(worst[form], to_two.median)
                to_dense = ratio(seconds, form, "dense")
                worst["dense"] = max(worst["dense"], to_dense.median)
                cells += [to_two, to_dense]
            rows.append((name, share, *cells))
    report(
        "Forward without gradients, ratios within a round",
        ("layer", "rank", "frozen to two", "to dense", "trained to two", "to dense"),
        rows,
    )
    for form, target in (("frozen", AGAINST_TWO), ("trained", AGAINST_TWO)):
        print(
            f"worst of {form} bases to two plain {worst[form]:.3f}: {verdict(worst[form], target)}"
        )
    print(f"worst to dense {worst['dense']:.3f}: {verdict(worst['dense'], AGAINST_DENSE)}")


def one_count(layers: dict[str, nn.Module], x: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of each layer for the same number of calls."""
    timer = Timer("f(x)", globals={"f": layers["two"], "x": x})
    count = max(1, round(2e-3 / timer.timeit(5).mean))

    def calls(module: nn.Module) -> Callable[[], None]:
        def run() -> None:
            for _ in range(count):
                module(x)

        return run

    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    return interleaved_seconds({n: calls(f) for n, f in layers.items()}, rounds=rounds, clock=clock)


if __name__ == "__main__":
    main()
