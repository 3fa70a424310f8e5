"""``attach``: one line that makes methods act around every step of an optimizer."""

from __future__ import annotations

import gc
import logging
import weakref

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from orthotrain._checks import require_count, require_steps
from orthotrain._sharded import require_own_steps
from orthotrain.errors import ConfigError
from orthotrain.methods._facts import facts_of
from orthotrain.methods._hooks import refuse_data_parallel
from orthotrain.methods._optimizer import require_model
from orthotrain.methods._wrapped_optimizer import stepped_optimizer
from orthotrain.methods.handle import Handle
from orthotrain.methods.processes import Processes
from orthotrain.methods.protocol import Method, Run
from orthotrain.methods.select import unwrap, wrappers

_logger = logging.getLogger("orthotrain")

# Weak on both sides: being attached keeps neither a model, an optimizer nor a handle alive.
_attached: weakref.WeakKeyDictionary[nn.Module | Optimizer, weakref.ref[Handle]] = (
    weakref.WeakKeyDictionary()
)


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    *methods: Method,
    auto: bool = True,
    total_steps: int | None = None,
    records: int | None = 10_000,
    process_group: dist.ProcessGroup | None = None,
) -> Handle:
    """Make ``methods`` act around every ``optimizer.step()``; the training loop stays as it is.

    May be called before or after the scheduler, the wrapper (DDP, ``torch.compile``, Accelerate)
    and the first step. Only true optimizer steps count: not the backward passes of gradient
    accumulation, not evaluation, not a step that ``GradScaler`` skips. With ``torch.compile``
    around DDP, pass the DDP module: a compiled forward does not tell its wrapper.

    Under ``torch.distributed`` every process calls ``attach``, and all must agree: on the methods
    and their settings, ``auto`` and ``total_steps``, the weights that are acted on, and the step
    after the first one and after ``load_state_dict``. Methods that only watch may differ.

    Args:
        model: The module that is trained, wrapped or not.
        optimizer: A ``torch.optim.Optimizer`` that holds parameters of ``model``, or a wrapper
            that keeps one in any attribute (SAM, Lookahead, Accelerate). Give the outermost. Its
            inner optimizer's steps count, and what acts after a step acts when the wrapper's own
            step ends, if it was called.
        *methods: What acts, such as ``AdaptiveLowRank(...)``. Ordered by :class:`Phase`, within
            a phase as given.
        auto: ``True`` hooks the optimizer. ``False`` leaves the calls to you: ``handle.step()``
            after every ``optimizer.step()``, and ``handle.before_step()`` before it where a
            method changes gradients or learning rates.
        total_steps: Planned number of optimizer steps, if known; methods then check that their
            schedule fits.
        records: How many records ``handle.records`` holds, the latest ones; ``None`` keeps all of
            them, and memory grows with the run. ``handle.on_record`` sees each, kept or not.
        process_group: The processes that train this model together. By default those of its DDP
            wrapper, and without one all. Needed where processes train models of their own, such
            as the stages of a pipeline; ``dist.new_subgroups(1)[0]`` is each process alone.

    Returns:
        The handle. It need not be kept: the optimizer keeps the methods working.

    Raises:
        ConfigError: No method; something that is not a method, such as a class or a list; model
            and optimizer swapped; an optimizer that holds none of the model's parameters; a model
            or optimizer that already has methods attached; an engine of DeepSpeed; ``records``
            that is no count; or a setting that does not fit the model. At the first step: the
            model was sharded after ``attach``. On all processes alike: they do not agree, one of
            them failed, or one did not call ``attach`` within the timeout of the group.
    """
    processes = Processes(_group_of(model, process_group))
    with processes.told_of_failure("attach"):
        require_model("attach", model, optimizer)
        _check_methods(methods)
        if not isinstance(auto, bool):
            raise ConfigError(f"attach needs auto to be True or False, got {auto!r}; leave it out")
        if total_steps is not None:
            require_steps("attach", "total_steps", total_steps)
        if records is not None:
            require_count("attach", "records", records, "records to keep (None: all)", least=0)
        require_own_steps("attach", model, optimizer)
        if any(isinstance(w, DataParallel) and len(w.device_ids) > 1 for w in wrappers(model)):
            refuse_data_parallel(methods)
        inner = unwrap(model)
        optimizer = stepped_optimizer("attach", optimizer)
        _check_parameters(inner, optimizer)
        for owner in (inner, optimizer):
            _check_free(owner)
        # Before a method that switches at once changes the model.
        given = f"attach({auto=}, {total_steps=})"
        processes.require_same("attach", [*facts_of(methods, inner), given])
        run = Run(
            inner, optimizer, wrapper=_ddp_inside(model), total_steps=total_steps,
            keep_records=records, processes=processes,
        )  # fmt: skip
        handle = Handle(run, methods, outer=model, auto=auto)
    for owner in (inner, optimizer):
        _attached[owner] = weakref.ref(handle)
    for line in handle.plan.splitlines():
        _logger.info(line)
    return handle


def _check_methods(methods: tuple[Method, ...]) -> None:
    if not methods:
        raise ConfigError(
            "attach: no method given; pass at least one, such as AdaptiveLowRank(...)"
        )
    for method in methods:
        if isinstance(method, type) and issubclass(method, Method):
            raise ConfigError(
                f"attach: got the class {method.__name__}; pass an instance, {method.__name__}(...)"
            )
        if isinstance(method, list | tuple | set):
            raise ConfigError(
                f"attach: got a {type(method).__name__} of methods; unpack it with a star: "
                "attach(model, optimizer, *methods)"
            )
        if not isinstance(method, Method):
            raise ConfigError(
                f"attach: got {method!r} of type {type(method).__name__} as a method; need an "
                "instance of a subclass of orthotrain.methods.Method, such as AdaptiveLowRank(...)"
            )


def _check_parameters(model: nn.Module, optimizer: Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in model.parameters()):
        raise ConfigError(
            f"attach: the optimizer ({type(optimizer).__name__}, {len(held)} parameters) holds "
            f"none of the parameters of the model ({type(model).__name__}); build it from "
            "model.parameters() of this very model, after the model is in its final place"
        )


def _check_free(owner: nn.Module | Optimizer) -> None:
    if _is_taken(owner):
        # An optimizer that was deleted in a cycle is still there until the next collection.
        gc.collect()
    if _is_taken(owner):
        raise ConfigError(
            f"attach: this {type(owner).__name__} already has methods attached; give all methods "
            "in one call, or call detach() on the first handle"
        )


def _is_taken(owner: nn.Module | Optimizer) -> bool:
    reference = _attached.get(owner)
    handle = None if reference is None else reference()
    return handle is not None and handle.attached


def _group_of(model: nn.Module, group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The processes that train a model together, if there may be several."""
    several = dist.is_available() and dist.is_initialized()
    if group is not None and not (several and isinstance(group, dist.ProcessGroup)):
        raise ConfigError(
            f"attach needs process_group to be a group of torch.distributed that holds this "
            f"process, got {group!r}; leave it out where all processes train one model"
        )
    if group is not None or not several:
        return group
    wrapper = _ddp_inside(model) if isinstance(model, nn.Module) else None
    return dist.group.WORLD if wrapper is None else wrapper.process_group


def _ddp_inside(model: nn.Module) -> DistributedDataParallel | None:
    return next((w for w in wrappers(model) if isinstance(w, DistributedDataParallel)), None)
