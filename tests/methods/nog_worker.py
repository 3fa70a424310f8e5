"""One of two processes that train one model with NOG and OLR; run by test_nearest_orthogonal."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from methods.doubles import small_model
from methods.lockstep import seeded
from orthotrain.methods import NearestOrthogonalGradient, OptimalLearningRate, attach

WORLD = 2


def train(model, inner, batches, *, when):
    """Weights and records after a step on each batch; ``inner`` is the model without wrapper."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    methods = [
        NearestOrthogonalGradient(["0", "2"], when=when, record_every=1),
        OptimalLearningRate("0", record_every=1),
    ]
    handle = attach(model, optimizer, *methods)
    for batch in batches:
        optimizer.zero_grad()
        (model(batch) ** 2).mean().backward()
        optimizer.step()
    return [p.detach() for p in inner.parameters()], handle.records


def batches(rank=None):
    """Four batches, whole or the share of one process."""
    whole = [seeded((8, 3), step, torch.float32) for step in range(4)]
    return whole if rank is None else [batch.chunk(WORLD)[rank] for batch in whole]


def main(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    found = {}
    for when in ("gradient", "update"):
        inner = small_model()
        found[when] = train(DistributedDataParallel(inner), inner, batches(rank), when=when)
    torch.save(found, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
