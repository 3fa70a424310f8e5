"""Two processes that train one model: one dies, or they were given other settings.

Where one dies, the other ends with an error and in time. Where they disagree, both are told.
"""

import os
from datetime import timedelta
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from attack.counts import Counts, times
from attack.dying import start
from lowrank.ddp_worker import METHOD, STEPS, Net
from lowrank.nets import as_published
from orthotrain import AdaptiveLowRank, ConditionMonitor, NearestOrthogonalGradient, attach

WORLD, TIMEOUT, PATIENCE = 2, 8, 100
BY_LOSS = as_published(
    energy=0.7, max_drop=0.3, bases="trained", importance="loss", only_if_cheaper=False,
    delay_steps=3, every_steps=2, layer_fraction=1.0,
)  # fmt: skip


def together(folder, work):
    """How two processes of one group ended; ``work(rank)`` in each."""

    def one(rank):
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD,
            timeout=timedelta(seconds=TIMEOUT),
        )  # fmt: skip
        work(rank)
        dist.barrier()

    ends = [start(partial(one, rank), wait=PATIENCE) for rank in range(WORLD)]
    return [end() for end in ends]


def train(rank, methods, *, dies):
    """Ten steps; rank 1 dies at a step and place that ``dies`` names, or never."""

    def die_at(place, step):
        if rank == 1 and dies == (place, step):
            os._exit(9)

    inner = Net()
    model = DistributedDataParallel(inner)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    attach(model, optimizer, *methods)
    optimizer.register_step_pre_hook(lambda *given: die_at("between hooks", step))
    generator = torch.Generator().manual_seed(rank)
    for step in range(STEPS):
        die_at("before the backward pass", step)
        optimizer.zero_grad()
        batch = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        loss = model(batch).square().mean()
        loss.backward()
        die_at("before the step", step)
        optimizer.step()
    for name, tensor in inner.state_dict().items():
        both = [torch.empty_like(tensor) for _ in range(WORLD)]
        dist.all_gather(both, tensor.contiguous())
        assert torch.equal(*both), f"{name} drifted apart"


PLACES = ("before the backward pass", "before the step", "between hooks")
METHODS = {
    "published": [METHOD],
    "by loss": [BY_LOSS],
    "nog": [NearestOrthogonalGradient("wide"), ConditionMonitor("wide", every_steps=1)],
}


def low(**changes):
    """A method that converts after step 2, by all of its settings."""
    settings = {"delay_steps": 2, "every_steps": 2, "only_if_cheaper": False, "dense_last": False}
    rank = {} if {"rank_rtol", "energy", "stored_budget"} & set(changes) else {"rank_rtol": 0.5}
    return AdaptiveLowRank(**settings | rank | changes)


def nog(**changes):
    return NearestOrthogonalGradient("wide", **changes)


# What the first process has, and what the second.
DISAGREE = {
    "every_steps": ([low()], [low(every_steps=3)]),
    "optimizer_state": ([low()], [low(optimizer_state="reset")]),
    "NOG on one alone": ([low(), nog()], [low()]),
    "scale": ([nog()], [nog(scale="gradient_norm")]),
    **{
        f"{name}={value!r}": ([low()], [low(**{name: value})])
        for name, value in {
            "delay_steps": 3, "energy": 0.5, "stored_budget": 0.5, "importance": "weight",
            "bases": "frozen", "layer_fraction": 0.5, "max_drop": 0.5, "min_rank_fraction": 0.5,
            "dense_first": True, "dense_last": True, "only": ["wide"], "skip": ["wide"],
            "also": ["embedding"],
            "max_aspect": 1.5, "only_if_cheaper": True, "factor_step": 2.0,
        }.items()
    },
    "rank_rtol": ([low()], [low(rank_rtol=0.25)]),
    "complete": ([nog()], [nog(complete=True)]),
    "when": ([nog()], [nog(when="update")]),
    "layer": ([nog()], [NearestOrthogonalGradient("square")]),
    "nothing on one": ([low()], []),
}  # fmt: skip


def disagreements(folder, counts, names):
    for number, name in enumerate(names):
        place = folder / str(number)
        place.mkdir()
        ends = together(place, lambda rank, name=name: train(rank, DISAGREE[name][rank], dies=None))
        kinds = {end.kind for end in ends}
        outcome = next((kind for kind in ("hang", "crash", "killed") if kind in kinds), None)
        if outcome is None:
            outcome = "both told" if kinds == {"typed"} else "not told"
        counts.add(outcome, f"{name}: {ends}")


def deaths(folder, counts, cases):
    for number, (name, dies) in enumerate(cases):
        place = folder / str(number)
        place.mkdir()
        left, dead = together(place, partial(train, methods=METHODS[name], dies=dies))
        assert (dead.kind, dead.text) == ("raw", ""), dead
        kinds = {"ended": "went on alone", "typed": "ends with an error"}
        outcome = {**kinds, "raw": "ends with an error"}.get(left.kind, left.kind)
        counts.add(outcome, f"{name} {dies}: {left}")


TOLD = {"not told": 0, "hang": 0, "crash": 0, "killed": 0}


def test_processes_that_disagree_are_told(tmp_path):
    counts = Counts("two processes with other settings, sample", **TOLD)
    disagreements(tmp_path, counts, list(DISAGREE)[:4])
    counts.check(least=4)


@pytest.mark.slow
def test_processes_that_disagree_in_anything_are_told(tmp_path):
    counts = Counts("two processes with other settings", **TOLD)
    disagreements(tmp_path, counts, DISAGREE)
    counts.check(least=len(DISAGREE))


CEILINGS = {"went on alone": 0, "hang": 0, "crash": 0, "killed": 0}


def test_two_processes_train_where_none_dies(tmp_path):
    for name, methods in METHODS.items():
        (tmp_path / name).mkdir()
        for end in together(tmp_path / name, partial(train, methods=methods, dies=None)):
            assert end.kind == "ended", end


def test_a_process_that_dies_ends_the_other(tmp_path):
    counts = Counts("one of two processes dies, sample", **CEILINGS)
    # The switch comes after step 3, the first cut after step 5.
    deaths(tmp_path, counts, [("published", (PLACES[1], 3)), ("by loss", (PLACES[2], 5))])
    counts.check(least=2)


@pytest.mark.slow
def test_a_process_that_dies_anywhere_ends_the_other(tmp_path):
    counts = Counts("one of two processes dies", **CEILINGS)
    cases = [
        (name, (place, step))
        for name in METHODS
        for place in PLACES
        for step in (0, 2, 3, 5, STEPS - 1)
    ]
    cases = cases[:: times(4, 1)]
    deaths(tmp_path, counts, cases)
    counts.check(least=times(11, 45))
