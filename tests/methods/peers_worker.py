"""One of two processes that are attached, alike or not; started by ``test_processes.py``.

``python peers_worker.py RANK FOLDER`` runs every scenario and writes what this process was told
to ``FOLDER/rank<RANK>.pt``.
"""

import sys
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lowrank.nets import as_published
from methods.doubles import Diary, EarlyDiary, Unfit, backward, small_model
from orthotrain import AdaptiveLowRank
from orthotrain.diagnostics import ConditionMonitor
from orthotrain.methods import NearestOrthogonalGradient, OptimalLearningRate, attach
from orthotrain.methods import processes as module
from orthotrain.methods.processes import Processes, _counts

WORLD = 2
TIMEOUT = timedelta(seconds=60)
NOG = NearestOrthogonalGradient("0")
LOW = {"delay_steps": 2, "every_steps": 2, "rank_rtol": 0.5, "only_if_cheaper": False}


def low(**settings):
    return as_published(**{**LOW, "dense_last": False, **settings})


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr)


def wrapped(*, wrap=True, model=None, process_group=None):
    model = small_model() if model is None else model
    inner = DistributedDataParallel(model, process_group=process_group) if wrap else model
    return inner, sgd(model)


def told(act):
    """Type and words of what is raised; ``None`` where nothing is."""
    try:
        act()
    except Exception as error:  # what is raised is the outcome
        return [type(error).__name__, str(error)]
    return None


def attached(*methods, wrap=True, model=None, **options):
    """What ``attach`` says, and whether nothing is left on the model afterwards."""
    outer, optimizer = wrapped(wrap=wrap, model=model)
    found = told(lambda: attach(outer, optimizer, *methods, **options))
    if found is not None:
        inner = outer.module if wrap else outer
        clean = not inner._forward_hooks and not optimizer._optimizer_step_post_hooks
        return [*found, clean]
    return None


def attached_at(rate):
    outer, _ = wrapped()
    found = told(lambda: attach(outer, sgd(outer, rate), NOG))
    return None if found is None else [*found, not outer.module._forward_hooks]


def compared(*lists):
    """What a comparison of facts says."""
    facts = [fact for each in lists for fact in each]
    return told(lambda: Processes(dist.group.WORLD).require_same("x", facts))


def frozen(rank):
    model = small_model()
    model[2].requires_grad_(rank == 0)
    return model


def shorter(rank):
    return small_model()[: 3 if rank == 0 else 2]


def other_sites(rank):
    """The same settings, and a layer that one process alone has frozen."""
    group = dist.new_subgroups(1)[0]
    outer, optimizer = wrapped(model=frozen(rank), process_group=group)
    return told(lambda: attach(outer, optimizer, low(), process_group=dist.group.WORLD))


def stepped(rank, load):
    """A handle's state loaded before the first step, then after it; by rank."""
    outer, optimizer = wrapped()
    handle = attach(outer, optimizer, NOG)

    def step():
        optimizer.zero_grad()
        backward(outer)
        optimizer.step()

    def to(count):
        handle.load_state_dict({**handle.state_dict(), "step": count})

    return load(rank, step, to)


def loaded_by_one(rank, step, to):
    if rank == 1:
        to(60)
    return [told(step), None]


def loaded_apart_later(rank, step, to):
    first = told(step)
    to(60 + rank)
    return [first, told(step)]


def loaded_alike(rank, step, to):
    to(60)
    first = told(step)
    to(7)
    return [first, told(step)]


def layers_that_differ_later(rank):
    """The layers of one process change their shape in the middle of training."""
    outer, optimizer = wrapped()
    attach(outer, optimizer, low(delay_steps=1))

    def spoil(step):
        if step == 2 and rank == 1:  # as ``to_dense`` on one process alone
            outer.module[0].core.data = torch.zeros(2, 2)

    def train():
        for step in range(5):
            optimizer.zero_grad()
            spoil(step)
            if step < 2:
                backward(outer)
            optimizer.step()

    return told(train)


def missing(rank):
    """One process attaches; the other comes when that one has given up."""
    outer, optimizer = wrapped()
    store = module.store_of(dist.group.WORLD)
    store.set_timeout(timedelta(seconds=1))
    module._SECONDS_BEFORE_WARNING = 0.1
    found = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for present in range(WORLD):
            if rank == present:
                found = told(lambda: attach(outer, optimizer, NOG))
            else:
                _counts[dist.group.WORLD] += 1
            dist.barrier()
    module._SECONDS_BEFORE_WARNING = 30.0
    store.set_timeout(TIMEOUT)
    return [found, [str(warning.message) for warning in caught]]


def one_by_one(rank):
    """Each process trains a model of its own, in its own way."""
    alone = dist.new_subgroups(1)[0]
    outer, optimizer = wrapped(wrap=False)
    handle = attach(outer, optimizer, [NOG, low()][rank], process_group=alone)
    for _ in range(3 + rank):
        optimizer.zero_grad()
        backward(outer)
        optimizer.step()
    return [handle.run.step, None]


def wrapper_of_a_part(rank):
    """Wrapped for one process alone: nobody else is asked."""
    alone = dist.new_subgroups(1)[0]
    outer, optimizer = wrapped(process_group=alone)
    return told(lambda: attach(outer, optimizer, [NOG, low()][rank]))


class Odd:
    """A setting without a text of its own but its address."""


def main(rank, folder):
    warnings.simplefilter("error")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=TIMEOUT
    )
    first = rank == 0
    layer = small_model()
    ours = nn.Sequential(layer, nn.Linear(2, 2))
    results = {
        "every_steps": attached(low(every_steps=2 + rank)),
        "skip": attached(low(skip=["2"] if first else [])),
        "skip, not wrapped": attached(low(skip=["2"] if first else []), wrap=False),
        "scale": attached(
            NearestOrthogonalGradient("0", scale="none" if first else "gradient_norm")
        ),
        "optimizer_state": attached(low(optimizer_state="rotate" if first else "reset")),
        "rank rule": attached(
            AdaptiveLowRank(stored_budget=0.5, only_if_cheaper=False)
            if first
            else AdaptiveLowRank(energy=0.5, only_if_cheaper=False)
        ),
        "at once": attached(low(delay_steps=0, skip=["2"] if first else [])),
        "params": attached(NearestOrthogonalGradient("0" if first else "2")),
        "module": attached(
            NearestOrthogonalGradient(ours[rank][0] if first else ours[1]), model=ours
        ),
        "one method more": attached(*([NOG, Diary()] if first else [Diary()])),
        "one method less": attached(*([Diary()] if first else [NOG, Diary()])),
        "no method": attached(*([NOG] if first else [])),
        "order": attached(*([NOG, EarlyDiary()] if first else [EarlyDiary(), NOG])),
        "another method": attached(NOG if first else OptimalLearningRate("0")),
        "auto": attached(NOG, auto=first),
        "learning rate": attached_at([0.1, torch.tensor(0.25)][rank]),
        "total_steps": attached(NOG, total_steps=100 + rank),
        "pattern": attached(NearestOrthogonalGradient("2"), wrap=False, model=shorter(rank)),
        "failure of the first": attached(NOG, *([Unfit()] if first else [])),
        "failure of the other": attached(NOG, *([] if first else [Unfit()])),
        "many settings": attached(low(skip=[f"{'x' * 50}{i}" for i in range(200 + rank)])),
        "last of many": attached(*[EarlyDiary("y" * 150)] * 40, EarlyDiary(f"{rank}")),
        "far beyond": attached(
            *[EarlyDiary(diary=[i]) for i in range(300)], EarlyDiary(diary=[f"last of {rank}"])
        ),
        "an order": compared([f"{i} {'é' * 100}" for i in range(90)], "pq" if first else "qp"),
        "a shorter list": compared([f"{i} {'é' * 100}" for i in range(90)], "pq"[: 2 - rank]),
        "long failure": attached(NOG, *([] if first else [Unfit("w" * 9000 + "; take another")])),
        "sites": other_sites(rank),
        "step, loaded by one": stepped(rank, loaded_by_one),
        "step, loaded apart": stepped(rank, loaded_apart_later),
        "layers later": layers_that_differ_later(rank),
        # what is right
        "alike": attached(low(), NOG),
        "watched by one": attached(
            *([NOG, ConditionMonitor("2", every_steps=1)] if first else [NOG])
        ),
        "records": attached(NOG, records=10 + rank),
        "rates of one value": attached_at([0.25, torch.tensor(0.25)][rank]),
        "same object": attached(NearestOrthogonalGradient(layer[0]), model=layer),
        "odd setting": attached(EarlyDiary(diary=[Odd(), {1, 2}, {"a": torch.ones(2 + 0 * rank)}])),
        "step, loaded alike": stepped(rank, loaded_alike),
        "one by one": one_by_one(rank),
        "wrapper of a part": wrapper_of_a_part(rank),
        "first": Processes(dist.group.WORLD).is_first,
        "size": len(module._message("", b"x" * 10**6)) - len(module._message("", b"")),
    }
    results["kept in the store"] = stale_keys()
    results["missing"] = missing(rank)
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def stale_keys():
    """How many of the last comparisons left something in the store."""
    group = dist.group.WORLD
    dist.barrier()
    Processes(group).require_same("x", ["alike"])
    dist.barrier()
    store = module.store_of(group)
    names = ("0", "1", "verdict", "read")
    return sum(store.check([f"orthotrain/{_counts[group]}/{name}"]) for name in names)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
