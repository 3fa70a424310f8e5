"""One of two processes that shard a model; run by test_sharded."""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import orthotrain
from documentation import ROOT, python_blocks
from orthotrain import attach
from orthotrain.errors import OrthotrainError

WORLD = 2
STEPS = 5
BASES = ("trained", "frozen")


class DeepSpeedEngine(nn.Module):
    """What DeepSpeed's own looks like from outside."""

    __module__ = "deepspeed.runtime.engine"

    def __init__(self, module):
        super().__init__()
        self.module = module


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4)
    ).double()


def batch(step, rank=None):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 16, generator=generator, dtype=torch.float64)
    return x if rank is None else x.chunk(WORLD)[rank]


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def train(model, optimizer, steps, rank=None):
    for step in steps:
        optimizer.zero_grad()
        model(batch(step, rank)).square().mean().backward()
        optimizer.step()


def half(bases="trained"):
    return orthotrain.compress(net(), stored_budget=0.5, bases=bases)


def mesh():
    return init_device_mesh("cpu", (WORLD,))


def fsdp2(model):
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh())
    return fully_shard(model, mesh=mesh())


def fsdp2_at_the_root(model):
    return fully_shard(model, mesh=mesh())


def fsdp1(model, *, original=True):
    cpu = torch.device("cpu")
    return FullyShardedDataParallel(model, device_id=cpu, use_orig_params=original)


def tensor_parallel(model):
    return parallelize_module(model, mesh(), {"0": ColwiseParallel(), "2": RowwiseParallel()})


SHARDED = {
    "FSDP2": fsdp2,
    "FSDP2 at the root": fsdp2_at_the_root,
    "FSDP1": fsdp1,
    "FSDP1, flat": lambda model: fsdp1(model, original=False),
    "tensor parallel": tensor_parallel,
    "DeepSpeed": DeepSpeedEngine,
}

CUT_BEFORE = ["FSDP2", "FSDP2 at the root", "FSDP1", "FSDP1, flat"]

METHODS = {
    "AdaptiveLowRank": lambda: orthotrain.AdaptiveLowRank(
        delay_steps=3, every_steps=3, rank_rtol=0.5, only_if_cheaper=False
    ),
    "BasisStability": lambda: orthotrain.BasisStability(every_steps=3),
    "ConditionMonitor": lambda: orthotrain.ConditionMonitor("0"),
    "NearestOrthogonalGradient": lambda: orthotrain.NearestOrthogonalGradient("0"),
    "OptimalLearningRate": lambda: orthotrain.OptimalLearningRate("0"),
    "OrthogonalPenalty": lambda: orthotrain.methods.OrthogonalPenalty("0", weight=1.0),
    "SpectralNormalization": lambda: orthotrain.methods.SpectralNormalization("0"),
    "Retraction": lambda: orthotrain.methods.Retraction("0"),
}


def doors(path):
    """What looks at whole weights, or gives a model its structure, or writes it down."""
    loss = lambda model, x: model(x).square().mean()  # noqa: E731
    return {
        "compress": lambda m: orthotrain.compress(m, stored_budget=0.5),
        "compress, data": lambda m: orthotrain.compress(
            m, stored_budget=0.5, data=[batch(0)], loss=loss
        ),
        "sizes": lambda m: orthotrain.sizes(m, adamw(m), [0.5], train_on=lambda branch: None),
        "to_dense": orthotrain.to_dense,
        "to_factored": orthotrain.to_factored,
        "save": lambda m: orthotrain.save(m, path),
        "load": lambda m: orthotrain.load(m, path),
        "restore_structure": lambda m: orthotrain.restore_structure(m, half().state_dict()),
        "follow": orthotrain.follow,
        "frozen_copy": orthotrain.frozen_copy,
        **{
            name: lambda m, method=method: attach(m, adamw(m), method())
            for name, method in METHODS.items()
        },
    }


def told(call, *args):
    """Type and words of the error; None where there is none."""
    try:
        call(*args)
    except Exception as error:
        kind = type(error).__name__
        return [kind if isinstance(error, OrthotrainError) else f"raw {kind}", str(error)]
    return None


# --- scenarios --------------------------------------------------------------------------------


def compressed_then_sharded(bases, shard, rank):
    model = shard(half(bases))
    train(model, adamw(model), range(STEPS), rank)
    return gathered(model)


def gathered(model):
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def refused_doors(shard, folder):
    found = {}
    for name, door in doors(folder / f"door{dist.get_rank()}.safetensors").items():
        model = shard(net())
        found[name] = told(door, model)
    return found


def low_rank_doors(bases):
    model = fsdp2_at_the_root(half(bases))
    asked = {
        "to_dense": orthotrain.to_dense,
        "dense_parameters": lambda m: [v for _, v in orthotrain.dense_parameters(m)],
    }
    found = {name: told(door, model) for name, door in asked.items()}
    followed = fsdp2_at_the_root(orthotrain.follow(half(bases)))
    other = orthotrain.compress(net(), stored_budget=0.3, bases=bases).state_dict()
    return {**found, "another structure": told(followed.load_state_dict, other)}


def attached_before(name, shard, rank):
    """Errors of the first pass and of two first steps, and what the handle counted until then."""
    model = net()
    optimizer = adamw(model)
    handle = attach(model, optimizer, METHODS[name]())
    trained = shard(model)
    if hasattr(next(trained.parameters()), "device_mesh"):
        optimizer.param_groups[0]["params"] = list(trained.parameters())  # as Accelerate does
    passed = told(trained, batch(0, rank))
    return passed, told(optimizer.step), told(optimizer.step), handle.run.step


def replaced_parameters():
    """What DeepSpeed does to an optimizer: it trains flat copies."""
    model = net()
    optimizer = adamw(model)
    attach(model, optimizer, METHODS["AdaptiveLowRank"]())
    flat = nn.Parameter(torch.cat([p.detach().flatten() for p in model.parameters()]))
    optimizer.param_groups[0]["params"] = [flat]
    return told(optimizer.step)


def tensor_parallel_beside(*, sharded):
    """What a model gives that is cut in one layer and tensor parallel in others."""
    model = orthotrain.compress(net(), energy=0.5, only=["2"], only_if_cheaper=False)
    if sharded:
        whole = {"output_layouts": Replicate()}
        parallelize_module(model, mesh(), {"0": ColwiseParallel(**whole), "4": ColwiseParallel()})
    y = model(batch(0)).detach()
    return y if not sharded else _all_gathered(y)


def _all_gathered(y):
    parts = [torch.empty_like(y) for _ in range(WORLD)]
    dist.all_gather(parts, y.contiguous())
    return torch.cat(parts, -1)


def watched_covariances(rank):
    model = fsdp2_at_the_root(
        nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).double()
    )
    optimizer = adamw(model)
    handle = attach(model, optimizer, orthotrain.ConditionMonitor(covariances="1"))
    train(model, optimizer, range(2), rank)
    return [record["layer"] for record in handle.records]


def saved(parts, folder):
    dcp.save(parts, checkpoint_id=folder)
    dist.barrier()


def parts_of(model, optimizer):
    weights, state = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": state}


def loaded(model, optimizer, folder):
    parts = parts_of(model, optimizer)
    dcp.load(parts, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=parts["model"], optim_state_dict=parts["optimizer"]
    )


def entries_of(folder):
    """Names and shapes of what a checkpoint holds."""
    return dcp.FileSystemReader(folder).read_metadata().state_dict_metadata


def restored(folder):
    """A fresh model with the structure that a checkpoint has."""
    return orthotrain.restore_structure(net(), entries_of(folder))


def adaptive(inner, bases):
    model = DistributedDataParallel(inner)
    optimizer = adamw(model)
    method = orthotrain.AdaptiveLowRank(
        delay_steps=6, every_steps=6, energy=0.8, bases=bases, only_if_cheaper=False
    )
    return model, optimizer, attach(model, optimizer, method)


def resumed_under_ddp(bases, at, folder, rank):
    """State after an unbroken run, and after one that was stopped and resumed."""
    model, optimizer, handle = adaptive(net(), bases)
    train(model, optimizer, range(at), rank)
    saved(parts_of(model, optimizer), folder)
    state = copy.deepcopy(handle.state_dict())
    train(model, optimizer, range(at, 16), rank)
    again, other, resumed = adaptive(restored(folder), bases)
    loaded(again, other, folder)
    resumed.load_state_dict(state)
    train(again, other, range(at, 16), rank)
    return [_held(model, optimizer), _held(again, other)]


def _held(model, optimizer):
    state = optimizer.state_dict()["state"]
    tensors = {f"{i}.{k}": v for i, entry in state.items() for k, v in entry.items()}
    return {k: v.detach().clone() for k, v in {**model.state_dict(), **tensors}.items()}


def resumed_under_fsdp2(folder, rank):
    model = fsdp2(half())
    optimizer = adamw(model)
    train(model, optimizer, range(3), rank)
    saved(parts_of(model, optimizer), folder)
    train(model, optimizer, range(3, 6), rank)
    again = fsdp2(restored(folder))
    other = adamw(again)
    loaded(again, other, folder)
    train(again, other, range(3, 6), rank)
    return [gathered(model), gathered(again)]


def stage_of_a_pipeline(rank):
    whole = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.Linear(24, 4))
    part = (whole[:2] if rank == 0 else whole[2:]).double()
    stage = PipelineStage(part, rank, WORLD, torch.device("cpu"))
    schedule = ScheduleGPipe(
        stage, n_microbatches=2, loss_fn=lambda y, target: (y - target).square().mean()
    )
    optimizer = adamw(part)
    method = orthotrain.AdaptiveLowRank(
        stored_budget=0.6, delay_steps=9, dense_last=False, only_if_cheaper=False, spread=False
    )
    handle = attach(part, optimizer, method, process_group=dist.new_subgroups(1)[0])
    for step in range(10):
        x = batch(step)
        optimizer.zero_grad()
        _ = schedule.step(x) if rank == 0 else schedule.step(target=x[:, :4])
        optimizer.step()
    return handle.summary().to_dict()["total"], [row.rank for row in handle.summary().rows]


def page():
    """The page's blocks, in a group that is there already."""
    code = compile(python_blocks(ROOT / "docs" / "sharding.md"), "sharding.md", "exec")
    names = {"__name__": "page"}
    exec(code, names)
    return [getattr(layer, "rank", None) for layer in names["inner"]]


def main(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    warnings.simplefilter("ignore")
    found = {
        "doors": {name: refused_doors(shard, folder) for name, shard in SHARDED.items()},
        "low-rank doors": {bases: low_rank_doors(bases) for bases in BASES},
        "before": {
            f"{method}, {name}": attached_before(method, shard, rank)
            for method in ("AdaptiveLowRank", "BasisStability", "NearestOrthogonalGradient")
            for name, shard in SHARDED.items()
            if name != "DeepSpeed"
        },
        "replaced": replaced_parameters(),
        "covariances": watched_covariances(rank),
        "sharded": {
            f"{bases}, {name}": compressed_then_sharded(bases, SHARDED[name], rank)
            for bases in BASES
            for name in CUT_BEFORE
        },
        "beside": tensor_parallel_beside(sharded=True),
        "not parallel": tensor_parallel_beside(sharded=False),
        "gathered": gathered(tensor_parallel(net())),
        "resumed": {
            f"{bases}, {at}": resumed_under_ddp(bases, at, folder / f"{bases}{at}", rank)
            for bases in BASES
            for at in (4, 9)
        },
        "resumed, FSDP2": resumed_under_fsdp2(folder / "fsdp2", rank),
        "pipeline": stage_of_a_pipeline(rank),
        "page": page(),
    }
    torch.save(found, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
