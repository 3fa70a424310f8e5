"""One of two processes that train together; started by ``test_agree.py``.

``python ddp_worker.py RANK FOLDER`` runs every scenario and writes what this process ended with
to ``FOLDER/rank<RANK>.pt``.
"""

import sys
import warnings
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from lowrank.nets import as_published
from orthotrain import attach
from orthotrain.errors import OrthotrainWarning, StateError
from orthotrain.lowrank import look
from orthotrain.lowrank.agree import Agreement

WORLD, BATCH, STEPS = 2, 8, 10

# Switches after step 3 and cuts after 5, 7 and 9; the last step is one between updates.
SCHEDULE = {"delay_steps": 3, "every_steps": 2, "layer_fraction": 1.0, "only_if_cheaper": False}
METHOD = as_published(rank_rtol=0.9, max_drop=0.2, **SCHEDULE)
TRAINED = as_published(rank_rtol=0.9, max_drop=0.2, bases="trained", **SCHEDULE)
BY_LOSS = as_published(energy=0.7, max_drop=0.3, bases="trained", importance="loss", **SCHEDULE)
BY_LOSS_FROZEN = as_published(energy=0.7, max_drop=0.3, importance="loss", **SCHEDULE)

SPREAD = as_published(
    energy=0.7, bases="trained", importance="loss", spread=True, max_drop=1.0,
    **{**SCHEDULE, "every_steps": 20},
)  # fmt: skip

MODES = {
    "default": {},
    "static_graph": {"static_graph": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
}


class Net(nn.Module):
    """Two layers to convert, a head that stays; on request a layer that no forward uses."""

    def __init__(self, *, seed=0, spare=False, buffer=False):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.wide = nn.Linear(6, 16)
        self.square = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        if spare:
            self.spare = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)
        if buffer:
            self.register_buffer("offset", torch.zeros(3))
        self.double()
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if name.startswith("spare"):  # leaves the other weights as they are without it
                    parameter.fill_(0.4)
                else:
                    parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))

    def forward(self, x):
        y = self.head(self.norm(self.square(torch.tanh(self.wide(x)))))
        return y + self.offset if hasattr(self, "offset") else y


def batch(step, rank):
    """What a process sees at a step: not the same on any two of them."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return (
        torch.randn(BATCH, 6, dtype=torch.float64, generator=generator),
        torch.randint(3, (BATCH,), generator=generator),
    )


def joined_batch(step, _rank=0):
    inputs, targets = zip(*(batch(step, rank) for rank in range(WORLD)), strict=True)
    return torch.cat(inputs), torch.cat(targets)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.01)


def train(model, optimizer, *, steps, first=0, batches=batch, rank=0, after=lambda step: None):
    for step in range(first, first + steps):
        x, y = batches(step, rank)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        after(step)


def outcome(model, optimizer, **more):
    """Everything that must be the same on all processes, by name."""
    held = dict(model.state_dict())
    for i, state in optimizer.state_dict()["state"].items():
        held |= {f"{i}.{key}": torch.as_tensor(value).clone() for key, value in state.items()}
    return {"held": {name: value.clone() for name, value in held.items()}, **more}


def dense_weights(model):
    return [model.wide.weight.detach(), model.square.weight.detach()]


def wrapped(rank, *, method=METHOD, mode=None, **net):
    """The usual order: model, wrapper, optimizer, attach."""
    model = Net(**net)
    wrapper = DistributedDataParallel(model, **(mode or {}))
    optimizer = adamw(model)
    return model, wrapper, optimizer, attach(wrapper, optimizer, method)


# --- scenarios: each returns what this process ended with -----------------------------------------


def in_mode(rank, name, method=METHOD):
    spare = name in {"static_graph", "find_unused_parameters"}
    model, wrapper, optimizer, _ = wrapped(rank, method=method, mode=MODES[name], spare=spare)
    wrapper.note, reached = "kept", []
    wrapper.register_forward_hook(lambda *_: reached.append(1))
    train(wrapper, optimizer, steps=STEPS, rank=rank)
    return outcome(
        model,
        optimizer,
        dense=dense_weights(model),
        ranks=[getattr(layer, "rank", None) for layer in (model.wide, model.square)],
        kept=(wrapper.note, len(reached), wrapper.training, wrapper.static_graph),
    )


def first_process_decides(rank):
    """Each process would find other factors; only the first is to look for any."""
    calls = {"leading": 0, "spectrum": 0}

    def counted(name, then):
        original = getattr(look, name)

        def call(site, *settings):
            calls[name] += 1
            return then(original(site, *settings))

        return original, call

    leading, other_signs = counted("leading", lambda psq: (-psq[0], psq[1], -psq[2]))
    spectrum, counted_spectrum = counted("spectrum", lambda s: s)
    look.leading, look.spectrum = other_signs, counted_spectrum
    try:
        model, wrapper, optimizer, _ = wrapped(rank)
        train(wrapper, optimizer, steps=3, rank=rank)
    finally:
        look.leading, look.spectrum = leading, spectrum
    return outcome(model, optimizer, calls=calls)


def communication_hook(rank):
    calls = []

    def hook(state, bucket):
        state.append(bucket.buffer().numel())
        return allreduce_hook(None, bucket)

    model, wrapper, optimizer, _ = wrapped(rank)
    wrapper.register_comm_hook(calls, hook)
    seen = []
    train(wrapper, optimizer, steps=STEPS, rank=rank, after=lambda _: seen.append(sum(calls)))
    trained = sum(p.numel() for p in model.parameters())
    return outcome(model, optimizer, sent=torch.tensor(seen).diff().tolist(), trained=trained)


def power_sgd(rank):
    """A hook that keeps tensors of the shapes of the last step."""
    method = as_published(
        delay_steps=3, every_steps=4, rank_rtol=0.9, layer_fraction=1.0, only_if_cheaper=False
    )
    model, wrapper, optimizer, _ = wrapped(rank, method=method)
    state = PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=0.5)
    wrapper.register_comm_hook(state, powerSGD_hook)
    compressed = []

    def look(step):
        compressed.append(bool(state.error_dict))

    train(wrapper, optimizer, steps=STEPS, rank=rank, after=look)
    return outcome(model, optimizer, compressed=compressed)


def accumulation(rank, name, method=METHOD):
    """Two halves of the batch one after the other, the first without communication."""
    model, wrapper, optimizer, _ = wrapped(rank, method=method, mode=MODES[name])
    for step in range(STEPS):
        x, y = batch(step, rank)
        optimizer.zero_grad()
        # torch itself does not bear a static graph whose very first backward is not synchronized
        alone = wrapper.no_sync if step > 0 else nullcontext
        for part, context in ((slice(0, 4), alone()), (slice(4, 8), nullcontext())):
            with context:
                (F.cross_entropy(wrapper(x[part]), y[part]) / 2).backward()
        optimizer.step()
    return outcome(model, optimizer, dense=dense_weights(model))


def factors_stay_at_home(rank):
    """Numbers broadcast before each forward; the model's other buffer must still travel."""
    model, wrapper, optimizer, _ = wrapped(rank, buffer=True)
    original, sent, offsets = wrapper._distributed_broadcast_coalesced, [], []

    def broadcast(tensors, *args):
        sent.append(sum(t.numel() for t in tensors))
        original(tensors, *args)

    wrapper._distributed_broadcast_coalesced = broadcast

    def differ(step):
        offsets.append(model.offset.tolist())
        model.offset.fill_(rank + step)

    train(wrapper, optimizer, steps=STEPS, rank=rank, after=differ)
    return outcome(model, optimizer, sent=sent, offsets=offsets)


def low_rank_before_it_is_wrapped(rank):
    """Other weights on each process, each low-rank by itself, then wrapped: one model again."""
    model = Net(seed=rank)
    optimizer = adamw(model)
    method = as_published(
        delay_steps=0, every_steps=4, rank_rtol=0.99, layer_fraction=1.0, only_if_cheaper=False
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OrthotrainWarning)
        attach(model, optimizer, method)
    wrapper = DistributedDataParallel(model)
    after_wrapping = {name: value.clone() for name, value in model.state_dict().items()}
    traveling = []
    train(
        wrapper, optimizer, steps=STEPS, rank=rank,
        after=lambda _: traveling.append(len(wrapper.modules_buffers)),
    )  # fmt: skip
    model.wide.u.add_(rank)  # what another wrapper must mend
    again = DistributedDataParallel(model)
    train(again, optimizer, steps=1, first=STEPS, rank=rank)
    traveling.append(len(again.modules_buffers))
    return outcome(
        model,
        optimizer,
        after_wrapping=after_wrapping,
        traveling=traveling,
        warned=[str(warning.message) for warning in caught],
    )


RESUMES = {  # when the wrapper is known, and its mode
    "known": ("at once", {}),
    "found": ("in a forward", {}),
    "found, static graph": ("in a forward", MODES["static_graph"]),
    "found, bucket view": ("in inference mode", MODES["gradient_as_bucket_view"]),
}


def resume(rank, folder, name, method=METHOD):
    """Stop after the switch and a cut, start anew, go on; the model is loaded into its wrapper."""
    known, mode = RESUMES[name]
    stop = 6
    model, wrapper, optimizer, handle = wrapped(rank, method=method)
    train(wrapper, optimizer, steps=stop, rank=rank)
    file = Path(folder) / f"{name}, {method.importance}.pt"
    if rank == 0:
        torch.save([model.state_dict(), optimizer.state_dict(), handle.state_dict()], file)
    dist.barrier()
    train(wrapper, optimizer, steps=STEPS - stop, first=stop, rank=rank)
    straight = outcome(model, optimizer)["held"]

    states = torch.load(file, weights_only=True)
    if known == "at once":
        model, wrapper, optimizer, handle = wrapped(rank, method=method, mode=mode, seed=7)
    else:
        model = Net(seed=7)
        optimizer = adamw(model)
        handle = attach(model, optimizer, method)
        wrapper = DistributedDataParallel(model, **mode)
    wrapper.load_state_dict({f"module.{key}": value for key, value in states[0].items()})
    optimizer.load_state_dict(states[1])
    handle.load_state_dict(states[2])
    if known == "in inference mode":
        with torch.inference_mode():
            wrapper.eval()(batch(0, rank)[0])
        wrapper.train()
    train(wrapper, optimizer, steps=STEPS - stop, first=stop, rank=rank)
    return outcome(model, optimizer, straight=straight)


def evaluation_on_one_process(rank):
    model, wrapper, optimizer, _ = wrapped(rank)
    weights = Net(seed=3).state_dict()
    ranks = []

    def evaluate(step):
        if rank == 0:
            before = {name: value.clone() for name, value in model.state_dict().items()}
            with torch.no_grad():
                for _ in range(3):
                    wrapper.eval()(batch(99, rank)[0])
            wrapper.train()
            if step < 2:  # evaluates other weights of the same structure, then puts its own back
                model.load_state_dict(weights)
                model.load_state_dict(before)
        ranks.append([getattr(layer, "rank", 0) for layer in (model.wide, model.square)])

    train(wrapper, optimizer, steps=STEPS, rank=rank, after=evaluate)
    return outcome(model, optimizer, ranks=ranks)


def losses_that_disagree(rank, jumps_on):
    """The guard of one process sees a jump, that of the other sees none."""
    method = as_published(
        delay_steps=12, every_steps=12, rank_rtol=0.3, layer_fraction=1.0, only_if_cheaper=False
    )
    model, wrapper, optimizer, handle = wrapped(rank, method=method)

    def observe(step):
        jumped = 100.0 if rank == jumps_on and step >= 12 else 0.0
        handle.observe(1.0 + 0.01 * (step % 3) + jumped)

    train(wrapper, optimizer, steps=25, rank=rank, after=observe)
    events = [r["event"] for r in handle.records if r["event"] != "update"]
    return outcome(model, optimizer, events=events)


def automatic_delay(rank):
    method = as_published(delay_steps="auto", every_steps=1, rank_rtol=0.3, only_if_cheaper=False)
    model, wrapper, optimizer, handle = wrapped(rank, method=method)
    train(wrapper, optimizer, steps=3 * STEPS, rank=rank)
    switches = [record["step"] for record in handle.records if record["event"] == "switch"]
    return outcome(model, optimizer, switches=switches)


def failure_of_the_first(rank):
    model, wrapper, optimizer, _ = wrapped(rank)

    def spoil(step):
        if step == 1 and rank == 0:
            model.square.weight.data[0, 0] = float("nan")

    try:
        train(wrapper, optimizer, steps=4, rank=rank, after=spoil)
    except Exception as error:  # what is raised is the outcome
        return {"error": type(error).__name__}
    return {"error": None}


def another_step(rank):
    """At the first step, and at an update after someone wrote into the count."""
    method = as_published(delay_steps=2, every_steps=20, rank_rtol=0.0)
    _, wrapper, optimizer, handle = wrapped(rank, method=method)
    errors = []
    for count in (10 * rank, 1 + 20 * rank):
        handle.run.step = count
        try:
            train(wrapper, optimizer, steps=1, rank=rank)
        except StateError as error:  # what is raised is the outcome
            errors.append(str(error))
    return {"errors": errors}


def uneven_inputs(rank):
    _, wrapper, optimizer, _ = wrapped(rank)
    try:
        with wrapper.join():
            train(wrapper, optimizer, steps=4, rank=rank)
    except Exception as error:  # what is raised is the outcome
        return {"error": str(error)}
    return {"error": None}


def wrapper_not_told(rank):
    """The negative control: nothing is done to the wrapper after a change.

    With a square layer at full rank, so that the shape stays and torch has nothing to notice.
    """
    method = as_published(rank_rtol=0.0, skip=["wide"], **SCHEDULE)
    told, Agreement.structure_changed = Agreement.structure_changed, lambda self: None
    try:
        return in_mode(rank, "find_unused_parameters", method)
    finally:
        Agreement.structure_changed = told


def main(rank, folder):
    warnings.simplefilter("error")
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD,
        timeout=timedelta(seconds=30),
    )  # fmt: skip
    results = {name: in_mode(rank, name) for name in MODES}
    results |= {
        "first process decides": first_process_decides(rank),
        "trained bases": in_mode(rank, "default", TRAINED),
        "trained bases, static graph": in_mode(rank, "static_graph", TRAINED),
        "by loss": in_mode(rank, "default", BY_LOSS),
        "by loss, unused": in_mode(rank, "find_unused_parameters", BY_LOSS),
        "by loss, accumulation": accumulation(rank, "default", BY_LOSS),
        "by loss, frozen bases": in_mode(rank, "default", BY_LOSS_FROZEN),
        "spread": in_mode(rank, "default", SPREAD),
        "spread, resume": resume(rank, folder, "found, static graph", SPREAD),
        "by loss, resume": resume(rank, folder, "found", BY_LOSS),
        "communication hook": communication_hook(rank),
        "PowerSGD": power_sgd(rank),
        "accumulation": accumulation(rank, "default"),
        "accumulation, static graph": accumulation(rank, "static_graph"),
        "factors stay at home": factors_stay_at_home(rank),
        "low-rank before it is wrapped": low_rank_before_it_is_wrapped(rank),
        "evaluation on one process": evaluation_on_one_process(rank),
        "jump on the first": losses_that_disagree(rank, 0),
        "jump on another": losses_that_disagree(rank, 1),
        "automatic delay": automatic_delay(rank),
        "another step": another_step(rank),
        "uneven inputs": uneven_inputs(rank),
    }
    results |= {f"resume, {name}": resume(rank, folder, name) for name in RESUMES}
    results["wrapper not told"] = wrapper_not_told(rank)
    results["failure of the first"] = failure_of_the_first(rank)
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
