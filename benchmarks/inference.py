"""Time of a layer without gradients, against the same as two plain layers and against dense.

With one thread, its own time is taken, so that other jobs beside it count for less.

The rank is a share of each factorization's smaller side: of a grouped convolution that of a group,
of attention that of query, key and value each, whose output projection stays dense. In a MiniViT
every linear layer of the blocks is low-rank.

Claim: at most 1.05 of two plain layers at any number of rows, and never above 1.1 of dense.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.benchmark import Timer

from _measure import interleaved_seconds, ratio, report, verdict
from orthotrain.layers import Bases, LowRankConv2d, LowRankLinear, LowRankMultiheadAttention
from orthotrain.layers._factors import factorize_
from orthotrain.models import MiniViT

AGAINST_TWO, AGAINST_DENSE = 1.05, 1.1
SHARES = (0.25, 0.5)
WIDTHS = ((128, 128), (256, 256), (768, 768), (768, 3072), (3072, 768))
ROWS = (1, 16, 256, 4096)
LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    f"Linear {n} to {m}, {rows} rows": (nn.Linear(n, m), (rows, n))
    for n, m in WIDTHS
    for rows in ROWS
}
LAYERS |= {
    f"Conv {c} 3x3{f' in {groups} groups' * (groups > 1)}, {batch}x{c}x{side}x{side}": (
        nn.Conv2d(c, c, 3, padding=1, groups=groups),
        (batch, c, side, side),
    )
    for c, side, groups in ((128, 16, 1), (256, 8, 1), (256, 16, 4))
    for batch in (1, 16)
}


class Attention(nn.Module):
    """Attention of a sequence to itself, without the weights as an output."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, width)`` to the same."""
        return self.attention(x, x, x, need_weights=False)[0]


class PlainAttention(nn.Module):
    """The same with two plain layers for each of query, key and value."""

    def __init__(self, width: int, heads: int, k: int) -> None:
        super().__init__()
        self.heads, self.out = heads, nn.Linear(width, width)
        dense = nn.Linear(width, width)
        self.query, self.key, self.value = (two_plain(dense, k) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, width)`` to the same."""
        projections = (self.query, self.key, self.value)
        q, k, v = (p(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in projections)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


LAYERS |= {
    f"Attention {width}, {heads} heads, {batch}x{tokens}": (
        Attention(nn.MultiheadAttention(width, heads, batch_first=True)),
        (batch, tokens, width),
    )
    for width, heads, tokens in ((192, 3, 64), (768, 12, 64))
    for batch in (1, 8)
}
LAYERS |= {
    f"MiniViT {width}, {batch} images": (
        MiniViT(image_size=32, channels=3, classes=10, patch_size=4, width=width, depth=6, heads=3),
        (batch, 3, 32, 32),
    )
    for width in (96, 192)
    for batch in (1, 8)
}


def at_rank(dense: nn.Module, share: float, bases: Bases) -> nn.Module:
    """A copy with low-rank layers."""
    model = copy.deepcopy(dense)
    if isinstance(model, nn.Linear | nn.Conv2d):
        rank = rank_of(model, share)
        kind = (
            LowRankLinear.from_linear if isinstance(model, nn.Linear) else LowRankConv2d.from_conv
        )
        return kind(model, rank=rank, bases=bases)
    if isinstance(model, Attention):
        of = model.attention
        rank = int(share * of.embed_dim)
        factorize_(of, "in_proj_weight", LowRankMultiheadAttention, rank=rank, bases=bases)
        return model
    for parent, name, child in inner_layers(model):
        setattr(parent, name, at_rank(child, share, bases))
    return model


def two_plain_of(dense: nn.Module, share: float) -> nn.Module:
    """The same with two of torch's own layers in the place of each low-rank one."""
    if isinstance(dense, nn.Linear | nn.Conv2d):
        return two_plain(dense, rank_of(dense, share))
    if isinstance(dense, Attention):
        width = dense.attention.embed_dim
        return PlainAttention(width, dense.attention.num_heads, int(share * width))
    model = copy.deepcopy(dense)
    for parent, name, child in inner_layers(model):
        setattr(parent, name, two_plain_of(child, share))
    return model


def inner_layers(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers of the blocks of a MiniViT, by parent and name."""
    return [
        (parent, name, child)
        for block in model.blocks
        for parent in block.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]


def rank_of(dense: nn.Linear | nn.Conv2d, share: float) -> int:
    rows = dense.weight.shape[0] // getattr(dense, "groups", 1)
    return int(share * min(rows, dense.weight[0].numel()))


def two_plain(dense: nn.Linear | nn.Conv2d, k: int) -> nn.Module:
    """The same two products as torch's own layers."""
    if isinstance(dense, nn.Conv2d):
        c, groups = dense.in_channels, dense.groups
        return nn.Sequential(
            nn.Conv2d(c, k * groups, 3, padding=1, groups=groups, bias=False),
            nn.Conv2d(k * groups, c, 1, groups=groups),
        )
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
        for share in SHARES:
            layers = {
                "two": two_plain_of(dense, share).eval(),
                "dense": dense.eval(),
                "frozen": at_rank(dense, share, "frozen").eval(),
                "trained": at_rank(dense, share, "trained").eval(),
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
