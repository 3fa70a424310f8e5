"""What the processes of the two-process tests have in common."""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import integrations.conftest  # noqa: F401  # torchvision's operators, before the frameworks

WORLD = 2


def main(scenarios):
    """Join the other process, run ``scenarios(rank, folder)`` and keep what it returns."""
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    # What torchrun sets, and the frameworks read; a store in a file needs no free port.
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500",
    }  # fmt: skip
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    torch.save(scenarios(rank, folder), folder / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def held(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def error_of(action):
    """Type and text of the error that an action ends with."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"
