"""``attach``: one line that makes methods act around every step of one or several optimizers."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Container, Sequence

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from orthotrain._checks import require_count, require_steps
from orthotrain._sharded import require_own_steps
from orthotrain.errors import ConfigError
from orthotrain.methods._compiled import has_compiled_parts
from orthotrain.methods._facts import facts_of
from orthotrain.methods._hooks import refuse_data_parallel
from orthotrain.methods._optimizer import groups_of, kinds_of, rates_of, require_model
from orthotrain.methods._wrapped_optimizer import stepped_optimizer
from orthotrain.methods.handle import Handle
from orthotrain.methods.processes import Processes
from orthotrain.methods.protocol import Method, Run
from orthotrain.methods.select import named_parameters_clean, unwrap, wrappers

_logger = logging.getLogger("orthotrain")

# Weak: being attached keeps no handle alive, and through it neither model nor optimizer.
_handles: weakref.WeakSet[Handle] = weakref.WeakSet()


def attach(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer],
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

    Several optimizers over parts of one model are given as a list: Muon and AdamW, or generator
    and discriminator in one module. Then a step of training ends when each of them has stepped
    since the last one ended. What acts on a weight acts around the steps of the optimizer that
    holds it. A layer changes its shape right after such a step, before the next backward pass.
    Parts that have nothing to do with each other may have a handle each instead.

    Under ``torch.distributed`` every process calls ``attach``, and all must agree: on the methods
    and their settings, ``auto`` and ``total_steps``, learning rates, the weights that are acted
    on, and the step after the first one and after ``load_state_dict``. Methods that only watch may
    differ.

    Args:
        model: The module that is trained, wrapped or not.
        optimizer: A ``torch.optim.Optimizer`` that holds parameters of ``model``, or a wrapper
            that keeps one in any attribute (SAM, Lookahead, Accelerate). Give the outermost. Its
            inner optimizer's steps count, and what acts after a step acts when the wrapper's own
            step ends, if it was called. Or a list of such, which hold no parameter twice.
        *methods: What acts, such as ``AdaptiveLowRank(...)``. Ordered by :class:`Phase`, within
            a phase as given.
        auto: ``True`` hooks the optimizer. ``False`` leaves the calls to you: ``handle.step()``
            after every ``optimizer.step()``, and ``handle.before_step()`` before it where a
            method changes gradients or learning rates. Both take one of several optimizers, or
            mean all of them at once.
        total_steps: Planned number of optimizer steps, if known; methods then check that their
            schedule fits. Of several optimizers the steps of the one that steps least.
        records: How many records ``handle.records`` holds, the latest ones; ``None`` keeps all of
            them, and memory grows with the run. ``handle.on_record`` sees each, kept or not.
        process_group: The processes that train this model together. By default those of its DDP
            wrapper, and without one all. Needed where processes train models of their own, such
            as the stages of a pipeline; ``dist.new_subgroups(1)[0]`` is each process alone.

    Returns:
        The handle. It need not be kept: the optimizer keeps the methods working.

    Raises:
        ConfigError: No method; something that is not a method, such as a class or a list; model
            and optimizer swapped; an optimizer that holds none of the model's parameters; a
            parameter that two optimizers hold, or that a handle acts on already; an engine of
            DeepSpeed; ``records`` that is no count; or a setting that does not fit the model. At
            the first step: the model was sharded after ``attach``. On all processes alike: they do
            not agree, one of them failed, or one did not call ``attach`` within the timeout of
            the group.
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
        optimizers = _optimizers(optimizer)
        _check_parameters(inner, optimizers)
        _check_free(inner, optimizers)
        # Before a method that switches at once changes the model.
        given = [f"attach({auto=}, {total_steps=})", f"optimizers {kinds_of(optimizers)}"]
        given.append(f"learning rates {rates_of(optimizers)}")
        processes.require_same("attach", [*facts_of(methods, inner), *given])
        run = Run(
            inner, optimizers, wrapper=_ddp_inside(model), total_steps=total_steps,
            keep_records=records, processes=processes,
        )  # fmt: skip
        run.compiled = has_compiled_parts(model)
        handle = Handle(run, methods, outer=model, auto=auto)
    _handles.add(handle)
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
        if isinstance(method, Optimizer):
            raise ConfigError(
                f"attach: got the optimizer {type(method).__name__} as a method; several "
                "optimizers go in a list: attach(model, [one, other], *methods)"
            )
        if not isinstance(method, Method):
            raise ConfigError(
                f"attach: got {method!r} of type {type(method).__name__} as a method; need an "
                "instance of a subclass of orthotrain.methods.Method, such as AdaptiveLowRank(...)"
            )


def _optimizers(given: Optimizer | Sequence[Optimizer]) -> list[Optimizer]:
    """Those that take the steps, inside their wrappers."""
    if not isinstance(given, list | tuple):
        return [stepped_optimizer("attach", given)]
    if not given:
        raise ConfigError(
            "attach: got an empty list of optimizers; need one that holds parameters of the model"
        )
    found = [stepped_optimizer("attach", each) for each in given]
    for place, each in enumerate(found):
        if (first := found.index(each)) < place:
            raise ConfigError(
                f"attach: optimizers {first} and {place} of the list are the same "
                f"{type(each).__name__}, or wrapped around it; give each once, the outermost"
            )
    return found


def _check_parameters(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    own = set(model.parameters())
    seen: dict[nn.Parameter, Optimizer] = {}
    for optimizer in optimizers:
        held = groups_of([optimizer])
        if own.isdisjoint(held):
            raise ConfigError(
                f"attach: the optimizer ({type(optimizer).__name__}, {len(held)} parameters) holds "
                f"none of the parameters of the model ({type(model).__name__}); build it from "
                "model.parameters() of this very model, after the model is in its final place"
            )
        if twice := [p for p in held if p in seen]:
            kinds = kinds_of([seen[twice[0]], optimizer])
            raise ConfigError(
                f"attach: {_named(model, twice)} in two of the optimizers ({kinds}); give each "
                "parameter to one of them, since both would step it"
            )
        seen |= dict.fromkeys(held, optimizer)


def _check_free(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    held = groups_of(optimizers)
    if _taken(held) or _left_over(model):
        # An optimizer that was deleted in a cycle is still there until the next collection.
        gc.collect()
    if taken := _taken(held):
        raise ConfigError(
            f"attach: {_named(model, taken)} in an optimizer that has methods attached already; "
            "call detach() on that handle, then give all methods in one call: attach(model, "
            "optimizer, *methods). Several optimizers over parts of a model go there as a list, or "
            "into a call each if they share no parameter"
        )
    if _left_over(model):
        raise ConfigError(
            f"attach: this {type(model).__name__} already has methods attached, by a handle whose "
            "optimizer was deleted; call detach() on that handle first"
        )


def _attached() -> list[Handle]:
    return [handle for handle in _handles if handle.attached]


def _taken(held: Container[nn.Parameter]) -> list[nn.Parameter]:
    """Parameters that some handle acts on."""
    owned = (p for handle in _attached() for p in groups_of(handle.run.living_optimizers))
    return [parameter for parameter in owned if parameter in held]


def _left_over(model: nn.Module) -> bool:
    """Whether a handle of a model waits for an optimizer that is gone."""
    runs = (handle.run for handle in _attached())
    return any(run.model is model and not run.has_all_optimizers for run in runs)


def _named(model: nn.Module, parameters: Sequence[nn.Parameter]) -> str:
    """Names of the first few, and whether one or several are."""
    names = {parameter: name for name, parameter in named_parameters_clean(model)}
    known = [names.get(p, f"a parameter of shape {tuple(p.shape)}") for p in parameters]
    more = f" and {len(known) - 3} more" if len(known) > 3 else ""
    return f"{', '.join(known[:3])}{more} {'are' if len(known) > 1 else 'is'}"


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
