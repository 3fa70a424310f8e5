"""Interleaved timing: every candidate runs once a round, and ratios are taken within a round.

A machine slows down and speeds up over seconds. Within one round both sides meet the same
machine, so the median of the rounds' ratios is steady where a ratio of medians is not.
"""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Ratio:
    """Median of the rounds' ratios and the range of their middle half."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def interleaved_seconds(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    between: Callable[[], object] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every candidate in every round, in an order that is drawn anew for each.

    None follows itself: its weights and its code would be in the cache, and those of others not.

    Args:
        candidates: What is called, by name.
        rounds: How many are counted.
        warmup: Rounds before them.
        clock: ``time.thread_time`` counts the processor's time of this thread alone: what other
            jobs take from a shared machine is left out. It is right for one thread.
        between: Called before each candidate, its time not taken: something that has a program's
            other code and data in the cache, where that is how a candidate is met.
    """
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    shuffle, last = random.Random(0).shuffle, ""
    for turn in range(warmup + rounds):
        shuffle(names)
        if names[0] == last:
            names.append(names.pop(0))
        last = names[-1]
        for name in names:
            if between is not None:
                between()
            start = clock()
            candidates[name]()
            elapsed = clock() - start
            if turn >= warmup:
                seconds[name].append(elapsed)
    return seconds


def ratio(seconds: Mapping[str, Sequence[float]], name: str, baseline: str) -> Ratio:
    """The ratio of two candidates, from their rounds."""
    pairs = zip(seconds[name], seconds[baseline], strict=True)
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    quarter = len(ratios) // 4
    return Ratio(statistics.median(ratios), ratios[quarter], ratios[-1 - quarter])


def kept_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that a forward pass keeps for backward, beside the module's own tensors."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = module(x)
    del y
    return sum(kept.values())


def allocated_bytes(call: Callable[[], object]) -> int:
    """Bytes on the CPU that are taken during a call and not given back while its result lives."""
    with torch.profiler.profile(profile_memory=True) as profile:
        result = call()
    del result
    return sum(event.self_cpu_memory_usage for event in profile.key_averages())


def train_step(module: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    """Forward and backward, input gradient included."""

    def step() -> None:
        for parameter in module.parameters():
            parameter.grad = None
        x.grad = None
        module(x).backward(grad)

    return step


def report(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table with the circumstances it was measured under."""
    threads = torch.get_num_threads()
    print(f"\n{title}")
    print(f"torch {torch.__version__}, {platform.machine()}, {threads} thread(s), float32")
    cells = [[str(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def verdict(value: float, target: float) -> str:
    """Whether a measured figure meets its target, in words for the table."""
    return f"{'met' if value <= target else 'MISSED'} (<= {target})"
