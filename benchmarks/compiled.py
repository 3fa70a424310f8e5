"""A model that ``torch.compile`` runs through twelve cuts: how often it compiles, and its steps.

Each of twelve updates cuts a quarter of the layers by one multiple of 32. The compiled model and
its twin that is not compiled are trained by the same batches and take the same cuts; their steps
are timed in one process, in turn: dense, low-rank after the switch, and after the last cut.
``torch.compile`` for itself, which takes ranks as constants, is counted with a backend that
compiles nothing.

A graph that holds for every rank never builds the weight, which is cheaper above the break-even
rank. The last table says what that costs at full rank, where only ``only_if_cheaper=False`` leads.
"""

from __future__ import annotations

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from _measure import Ratio, interleaved_seconds, ratio, report, train_step, verdict
from orthotrain import AdaptiveLowRank, attach
from orthotrain.layers import LowRankLinear, _rank_symbols
from orthotrain.lowrank import LayerRule
from orthotrain.lowrank import compiled as how_it_compiles
from orthotrain.lowrank.rank_rule import Candidate
from orthotrain.models import GPT

CUTS = 12
TARGET_VERSIONS, TARGET_STEP = 2, 1.0
WIDTH, DEPTH, CONTEXT, BATCH = 256, 2, 64, 8


@dataclass(frozen=True)
class InTurn(LayerRule):
    """Half of the full rank at the switch; then every fourth update takes a multiple of it."""

    seen: dict[str, int] = field(default_factory=dict)

    def rank(self, layer: Candidate) -> int:
        """By how often the layer was looked at, and where it stands among all layers."""
        turn = self.seen[layer.name] = self.seen.get(layer.name, -1) + 1
        if turn == 0:
            return layer.full_rank // 2
        mine = list(self.seen).index(layer.name) % 4
        return layer.ceiling - (layer.multiple if turn % 4 == mine else 0)


class Twin:
    """One model in training."""

    def __init__(self, bases: str, compile_it: Callable[[nn.Module], nn.Module]) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.model = GPT(
            vocabulary=256, context=CONTEXT, width=WIDTH, depth=DEPTH, heads=4,
            generator=self.generator,
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.run = compile_it(self.model)
        method = AdaptiveLowRank(
            delay_steps=1, every_steps=1, rank=InTurn(), importance="weight", bases=bases,
            only_if_cheaper=False, rank_multiple=32, core_step=1.0,
        )  # fmt: skip
        self.handle = attach(self.run, self.optimizer, method, auto=False)

    def batch(self) -> Tensor:
        """Sequences of random bytes, one longer than what the model reads."""
        return torch.randint(256, (BATCH, CONTEXT + 1), generator=self.generator)

    def step(self) -> None:
        """One step of training; a cut only where ``cut`` says so."""
        x = self.batch()
        self.optimizer.zero_grad()
        scores = self.run(x[:, :-1])
        F.cross_entropy(scores.flatten(0, 1), x[:, 1:].flatten()).backward()
        self.optimizer.step()

    def cut(self) -> None:
        """The update that is due."""
        self.handle.step()


@contextmanager
def ranks_as_constants() -> Any:
    """Torch by itself."""
    ours, torch.compiler.config.dynamic_sources = _rank_symbols.let_ranks_vary, ""
    how_it_compiles.let_ranks_vary = lambda: None
    try:
        yield
    finally:
        how_it_compiles.let_ranks_vary = ours


def counted(bases: str) -> int:
    """Versions that torch makes by itself, up to its limit."""
    torch.compiler.reset()
    with ranks_as_constants():
        counter = CompileCounterWithBackend("eager")
        twin = Twin(bases, lambda model: torch.compile(model, backend=counter))
        for _ in range(CUTS + 2):
            twin.step()
            twin.cut()
        twin.step()
    return counter.frame_count


def measured(bases: str, rounds: int) -> tuple[list[Ratio], int, list[float]]:
    """Ratios of steps in three phases, versions after the first, and seconds of first steps."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("inductor")
    twins = {
        "compiled": Twin(bases, lambda model: torch.compile(model, backend=counter)),
        "eager": Twin(bases, lambda model: model),
    }
    ratios, seconds = [], []

    def compare() -> None:
        start = time.perf_counter()
        twins["compiled"].step()
        seconds.append(time.perf_counter() - start)
        steps = {name: twin.step for name, twin in twins.items()}
        ratios.append(ratio(interleaved_seconds(steps, rounds=rounds), "compiled", "eager"))

    compare()
    for update in range(CUTS + 1):
        for twin in twins.values():
            twin.step()
            twin.cut()
        if update == 0:
            compare()
    compare()
    ranks = [{row.rank for row in twin.handle.summary().rows} for twin in twins.values()]
    assert ranks[0] == ranks[1] == {32}, ranks
    return ratios, counter.frame_count - 1, seconds


def at_full_rank(width: int, rows: int, rounds: int) -> tuple[object, ...]:
    """A row: a compiled layer at full rank beside one that is not compiled, and a dense one."""
    torch.compiler.reset()
    _rank_symbols.let_ranks_vary()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator).requires_grad_()
    grad = torch.randn(rows, width, generator=generator)
    layer = LowRankLinear.from_linear(nn.Linear(width, width))
    steps = {
        "dense": train_step(nn.Linear(width, width), x, grad),
        "eager": train_step(layer, x, grad),
        "compiled": train_step(torch.compile(copy.deepcopy(layer)), x, grad),
    }
    seconds = interleaved_seconds(steps, rounds=rounds)
    pairs = (("compiled", "eager"), ("eager", "dense"), ("compiled", "dense"))
    return (f"{width} x {width}, {rows} rows", *(ratio(seconds, *pair) for pair in pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    warnings.filterwarnings("ignore", "[0-9]+ backward passes")  # cuts come when they are called
    rows = []
    for bases in ("trained", "frozen"):
        alone = counted(bases) - 1
        (dense, first, last), versions, seconds = measured(bases, rounds)
        rows.append(
            (
                bases, alone, versions, verdict(versions, TARGET_VERSIONS), dense, first, last,
                verdict(last.median, TARGET_STEP), f"{seconds[0]:.0f}", f"{seconds[1]:.0f}",
                f"{seconds[2]:.2f}",
            )
        )  # fmt: skip
    report(
        f"GPT of width {WIDTH} and depth {DEPTH}, {BATCH * CONTEXT} tokens, a switch and {CUTS} "
        "cuts.\nVersions after the first; steps compiled / eager; seconds of the first step",
        ("bases", "torch alone", "versions", "target", "dense", "after the switch", "after 12 cuts",
         "target", "dense, s", "low-rank, s", "after 12 cuts, s"),
        rows,
    )  # fmt: skip
    report(
        "A layer with frozen bases at full rank, where building the weight is cheaper",
        ("layer", "compiled over eager", "eager over dense", "compiled over dense"),
        [at_full_rank(768, rows, rounds) for rows in (256, 1024)],
    )
    print("torch alone stops at 7: from there on it runs the model uncompiled")


if __name__ == "__main__":
    main()
