"""One of two processes that whiten together; started by ``test_whitening_distributed.py``.

``python whitening_worker.py RANK FOLDER`` runs every scenario and writes what this process ended
with to ``FOLDER/rank<RANK>.pt``. Run without processes, the same functions give the whole batch.
"""

import math
import sys
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from orthotrain.errors import OrthotrainError
from orthotrain.layers import DecorrelatedBatchNorm2d

WORLD, CHANNELS, STEPS = 2, 6, 3
SPLITS = {"even": (4, 4), "uneven": (6, 2), "one sample of one": (7, 1), "none of one": (8, 0)}
SETTINGS = {"plain": {}, "groups": {"groups": 3}, "cumulative": {"momentum": None}}


def batch(seed, channels=CHANNELS, count=8):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, channels, 2, 2, generator=generator, dtype=torch.float64)
    # The halves differ, so that statistics of one are not those of both.
    x[: count // 2] = 2 * x[: count // 2].cumsum(1) + 1
    return x


def part(x, split, rank):
    """What a process sees; the whole where ``rank`` is None."""
    return x if rank is None else x.split(split)[rank]


def layer_alone(split, settings, rank=None, *, synchronize=True, last=False):
    """Outputs, gradients and statistics of a few training steps of the layer."""
    settings = {"synchronize": synchronize, **settings}
    layer = DecorrelatedBatchNorm2d(CHANNELS, dtype=torch.float64, **settings)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(1, 2, CHANNELS))
        layer.bias.copy_(torch.linspace(-1, 1, CHANNELS))
    seen = {}
    for step in range(STEPS):
        x, target = (part(batch(seed), split, rank).clone() for seed in (step, 100 + step))
        if last:
            x = x.contiguous(memory_format=torch.channels_last)
        x.requires_grad_()
        y = layer(x)
        (y * target).sum().backward()
        seen |= {f"y{step}": y.detach(), f"grad{step}": x.grad}
    seen |= {name: p.grad for name, p in layer.named_parameters()}
    return seen | {name: value.clone() for name, value in layer.named_buffers()}


def network(*, synchronize=True):
    generator = torch.Generator().manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, CHANNELS, 1, bias=False),
        DecorrelatedBatchNorm2d(CHANNELS, groups=2, synchronize=synchronize),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, 4, 2, bias=False),
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def training(rank=None, *, synchronize=True):
    """Parameters and buffers after some steps; DDP takes the mean of the processes' losses."""
    model = network(synchronize=synchronize)
    wrapper = model if rank is None else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(STEPS):
        x = part(batch(step, channels=3), (4, 4), rank)
        optimizer.zero_grad()
        wrapper(x).square().mean().backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def raised(call):
    try:
        call()
    except OrthotrainError as error:
        return f"{type(error).__name__}: {error}"
    return None


def bad_input(rank):
    """Every process raises where the trouble of one reaches all; none waits for another."""
    layer = DecorrelatedBatchNorm2d(CHANNELS, synchronize=True, dtype=torch.float64)
    x = part(batch(0), (4, 4), rank).clone()
    if rank == 1:
        x[0, 0, 0, 0] = math.nan
    one_value = part(batch(0)[:1, :, :1, :1], (1, 0), rank)
    bare = DecorrelatedBatchNorm2d(CHANNELS, synchronize=True, ridge=0.0, dtype=torch.float64)
    few = part(batch(0)[:4, :, :1, :1], (2, 2), rank)
    return {
        "not a number": raised(lambda: layer(x)),
        "one value": raised(lambda: layer(one_value)),
        "few samples": raised(lambda: bare(few)),
        "batches": int(layer.num_batches_tracked),
    }


def alone(rank):
    """What must not communicate, done by the first process only."""
    if rank:
        return {}
    x = part(batch(0), (4, 4), rank)
    layer = DecorrelatedBatchNorm2d(CHANNELS, synchronize=True, dtype=torch.float64)
    untracked = DecorrelatedBatchNorm2d(
        CHANNELS, synchronize=True, track_running_stats=False, dtype=torch.float64
    )
    return {
        "evaluation": layer.eval()(x).detach(),
        "evaluation by its batch": untracked.eval()(x).detach(),
        "covariance": layer.train().covariance(x),
    }


def main(rank, folder):
    warnings.simplefilter("error")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=30),
    )  # fmt: skip
    results = {
        f"{split}, {name}": layer_alone(SPLITS[split], SETTINGS[name], rank)
        for split in SPLITS
        for name in SETTINGS
    }
    results["channels last"] = layer_alone((6, 2), {}, rank, last=True)
    results["not shared"] = layer_alone((4, 4), {}, rank, synchronize=False)
    results["training"] = training(rank)
    results["training, not shared"] = training(rank, synchronize=False)
    results["bad input"] = bad_input(rank)
    results["alone"] = alone(rank)
    # A group of the process itself: its own statistics.
    groups = [dist.new_group([each]) for each in range(WORLD)]
    results["own group"] = layer_alone((4, 4), {"process_group": groups[rank]}, rank)
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
