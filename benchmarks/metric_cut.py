"""Loss right after a cut at equal stored size, by what the ranks and the cut are chosen.

A small byte-level GPT is trained on the sources of Python's own standard library and cut once,
with no training afterwards. Four ways: the same share of every layer's rank, each layer's share
of its energy, the metric of each layer's inputs, and the metric of the loss. Held-out files
decide, in bits per byte.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _measure import report
from orthotrain import StoredBudget, compress
from orthotrain.layers import stored_numbers
from orthotrain.lowrank import Candidate, RankRule

CONTEXT, WIDTH, DEPTH, HEADS = 64, 128, 2, 4
BATCH, RATE, WARMUP = 16, 1.5e-3, 100
BATCHES_FOR_METRIC = 16
SHARES = (0.75, 0.5, 0.35)


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
            if sum(x.blocks * stored_numbers(x.m, x.n, k) for x, k in pairs) <= budget:
                return ranks
        return list(min_ranks)


class Block(nn.Module):
    """Causal attention and a multilayer perceptron, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, length, width)`` to the same."""
        q, k, v = (
            t.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for t in self.qkv(self.norms[0](x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Gpt(nn.Module):
    """Bytes in, logits of the next byte out."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH)
        for embedding in (self.bytes, self.places):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, length)`` bytes to ``(batch, length, 256)``."""
        places = torch.arange(x.shape[1], device=x.device)
        x = self.blocks(self.bytes(x) + self.places(places))
        return self.norm(x) @ self.bytes.weight.mT


def sources() -> tuple[Tensor, Tensor]:
    """Bytes of the standard library's modules: every eighth file is held out."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_"))
    if not files:
        raise SystemExit(f"no sources of the standard library in {folder}; install them first")
    parts = [path.read_bytes() for path in files]
    held, kept = (b"".join(p for i, p in enumerate(parts) if (i % 8 == 0) == h) for h in (1, 0))
    return tuple(torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in (kept, held))  # type: ignore[return-value]


def batch_of(text: Tensor, generator: torch.Generator, size: int = BATCH) -> Tensor:
    starts = torch.randint(len(text) - CONTEXT - 1, (size, 1), generator=generator)
    return text[starts + torch.arange(CONTEXT + 1)].long()


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def trained(text: Tensor, *, seed: int, steps: int) -> nn.Module:
    torch.manual_seed(seed)
    model, generator = Gpt(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95))
    for step in range(steps):
        warm, done = (step + 1) / WARMUP, step / steps
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(warm, 0.5 * (1 + math.cos(math.pi * done)))
        optimizer.zero_grad()
        loss_of(model, batch_of(text, generator)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@torch.no_grad()
def bits(model: nn.Module, held: Tensor) -> float:
    """Bits per byte on the same windows of the held-out files for every model."""
    generator = torch.Generator().manual_seed(1234)
    losses = [float(loss_of(model, batch_of(held, generator, 64))) for _ in range(16)]
    return statistics.mean(losses) / math.log(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    text, held = sources()
    rows: dict[tuple[str, str], list[str]] = {}
    seconds = []
    for seed in range(arguments.seeds):
        started = time.perf_counter()
        dense = trained(text, seed=seed, steps=arguments.steps)
        per_step = (time.perf_counter() - started) / arguments.steps
        rows.setdefault(("1.00", "dense"), []).append(f"{bits(dense, held):.3f}")
        generator = torch.Generator().manual_seed(99 + seed)
        data = [batch_of(text, generator) for _ in range(BATCHES_FOR_METRIC)]
        inputs = [batch[:, :-1] for batch in data]
        for share in SHARES:
            budget = StoredBudget(share)
            ways = {
                "same share of every rank": {"rank": Uniform(share), "only_if_cheaper": False},
                "share of energy": {"rank": budget},
                "metric of inputs": {"rank": budget, "data": inputs},
                "metric of the loss": {"rank": budget, "data": data, "loss": loss_of},
            }
            for name, settings in ways.items():
                started = time.perf_counter()
                model = compress(copy.deepcopy(dense), **settings)
                if name == "metric of the loss":
                    seconds.append((time.perf_counter() - started) / per_step)
                done = model.compression
                stored = f"{done.stored / done.stored_before:.3f}"
                rows.setdefault((f"{share:.2f}", name), []).append(
                    f"{bits(model, held):.3f} ({stored})"
                )
    report(
        f"Bits per byte on held-out files right after a cut (share stored), GPT of width {WIDTH} "
        f"and depth {DEPTH}, {arguments.steps} steps",
        ("stored", "cut by", *(f"seed {seed}" for seed in range(arguments.seeds))),
        [(*key, *values) for key, values in rows.items()],
    )
    print(f"measuring and cutting by the loss took {statistics.median(seconds):.0f} dense steps")


if __name__ == "__main__":
    main()
