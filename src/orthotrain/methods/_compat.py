"""Private names of torch, each in one function, each held by a self-test."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle


def active_ddp_module() -> DistributedDataParallel | None:
    """The ``DistributedDataParallel`` whose forward is running now, or ``None``.

    A model does not know its wrapper. torch keeps the running one in a private class attribute
    for its compiler; asking there from a forward hook finds a wrapper that was made after
    ``attach``.
    """
    found = DistributedDataParallel._get_active_ddp_module()  # type: ignore[no-untyped-call]
    return found if isinstance(found, DistributedDataParallel) else None


def is_replica(module: nn.Module) -> bool:
    """Whether a module is a copy that ``DataParallel`` made for one forward on one device."""
    return bool(module.__dict__.get("_is_replica"))


def cannot_resize_under(wrapper: DistributedDataParallel) -> str | None:
    """The option of a wrapper under which no parameter may change its shape, or ``None``."""
    if wrapper.mixed_precision is not None:
        return "mixed_precision, which keeps low-precision twins of the parameters"
    if wrapper._delay_all_reduce_params:
        return "delay_all_reduce_named_params, which keeps views of their gradients"
    return None


def may_run_out_of_inputs_alone(wrapper: DistributedDataParallel) -> bool:
    """Whether some processes may be done with their inputs while others go on, inside ``join``."""
    join = wrapper._join_config
    return bool(join.enable and not join.throw_on_early_termination)


def keep_buffers_at_home(wrapper: DistributedDataParallel, names: Iterable[str]) -> None:
    """Leave buffers, by name in ``wrapper.module``, out of the broadcast before each forward.

    The set is that of ``_ddp_params_and_buffers_to_ignore``, which the wrapper reads when it is
    made. It is extended afterwards, so that the first synchronization still covers the buffers.
    """
    wrapper.parameters_to_ignore.update(names)
    wrapper._assign_modules_buffers()  # type: ignore[no-untyped-call]


def rebuild_reducer(wrapper: DistributedDataParallel) -> None:
    """Make a wrapper reduce the gradients of its parameters' present shapes.

    Does what the wrapper itself does when it is unpickled: the same object gets another reducer,
    with all settings, module hooks and attributes kept, and without communication. Its
    communication hooks are registered again; one that remembers tensors of the old buckets
    (PowerSGD) forgets them and starts again two steps later, as torch asks of it at the start.
    """
    private: Any = wrapper
    builtin = _builtin_comm_hook(private)
    hooks, private._comm_hooks = private._comm_hooks, []
    # The old reducer goes first: two sets of buckets would double the peak, and while it lives
    # its hooks on gradients do, too.
    private.logger = None
    del private.reducer
    # Buckets made in inference mode, such as by a first forward in evaluation, could not train.
    with torch.inference_mode(False):
        parameters, sparse = private._build_params_for_reducer()
        names = private._build_debug_param_to_name_mapping(parameters)
        private._ddp_init_helper(parameters, sparse, names, private.static_graph)
    private._has_rebuilt_buckets = False
    if private.static_graph:
        private.reducer._set_static_graph()
        private.logger._set_static_graph()
        _StaticGraphStart().watch(private)
    for hook, state in hooks:
        _forget_buckets(state)
        wrapper.register_comm_hook(state, hook)
    if builtin is not None:
        private._register_builtin_comm_hook(builtin)


class _StaticGraphStart:
    """Lets a static graph be learned from a synchronized backward, also amid an accumulation.

    With ``static_graph=True`` a reducer learns from the first backward it sees and a wrapper
    reduces all gradients at its end, whatever ``no_sync`` says. At the start of training one can
    make that backward a synchronized one; after a change of shapes one cannot. So that end is
    put off, and a reducer that saw unsynchronized passes is replaced before the first other.
    """

    def __init__(self) -> None:
        self._synchronized = False
        self._saw_others = False
        self._hook: RemovableHandle | None = None

    def watch(self, private: Any) -> None:
        """Look before each forward, and at the one that may be running, until it is learned."""
        self._hook = private.register_forward_pre_hook(self)
        private._static_graph_delay_allreduce_enqueued = False
        self(private, ())

    def __call__(self, private: Any, inputs: tuple[object, ...]) -> None:
        learned = self._synchronized and private._static_graph_delay_allreduce_enqueued
        self._synchronized = private.require_backward_grad_sync and torch.is_grad_enabled()
        if learned or (self._synchronized and self._saw_others):
            if self._hook is not None:
                self._hook.remove()
            if not learned:
                rebuild_reducer(private)
            return
        private._static_graph_delay_allreduce_enqueued = not self._synchronized
        self._saw_others |= torch.is_grad_enabled() and not self._synchronized


def _builtin_comm_hook(private: Any) -> Any:
    """The built-in communication hook, if any; a wrapper keeps it in its log only."""
    name = private._get_ddp_logging_data().get("comm_hook")
    kinds = dist.BuiltinCommHookType.__members__.values()  # type: ignore[attr-defined]
    return next((kind for kind in kinds if str(kind) == name), None)


def _forget_buckets(state: Any) -> None:
    if type(state).__name__ == "PowerSGDState":
        for memory in (state.error_dict, state.p_memory_dict, state.q_memory_dict):
            memory.clear()
        state.iter = min(state.iter, state.start_powerSGD_iter - 2)


def fires_step_hooks(optimizer: Optimizer) -> bool:
    """Whether hooks on the steps of an optimizer are called.

    ``Optimizer.__init__`` sees to it. A subclass that leaves it out has no place for hooks, or
    makes some of these places by itself.
    """
    hooked = getattr(type(optimizer).step, "hooked", False)
    places = ("step_pre", "step_post", "load_state_dict_post")
    return bool(hooked) and all(hasattr(optimizer, f"_optimizer_{p}_hooks") for p in places)


def store_of(group: dist.ProcessGroup) -> dist.Store | None:
    """The key-value store of a group of several processes, or ``None``.

    There is none for a single process, a destroyed group, MPI, and torch's ``fake`` backend,
    where one process pretends to be many.
    """
    private: Any = dist.distributed_c10d
    entry = private._world.pg_map.get(group)
    if entry is None or dist.get_world_size(group) == 1 or entry[0] == "fake":
        return None
    store: dist.Store | None = entry[1]
    return store


def compiler_is_on() -> bool:
    """Whether ``torch.compile`` looks at each function that is called now, and runs this one as is.

    A compiled model calls the hooks of the whole model so.
    """
    return callable(torch._C._dynamo.eval_frame.get_eval_frame_callback())
