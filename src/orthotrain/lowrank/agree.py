"""One process decides the ranks, all processes hold the same factors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from orthotrain._resized import earlier_shapes
from orthotrain.errors import ConfigError, OrthotrainWarning, StateError
from orthotrain.layers._factor_names import factor_names
from orthotrain.layers._factors import LowRankModule, is_factored
from orthotrain.linalg import working_dtype
from orthotrain.lowrank.look import Cut
from orthotrain.lowrank.sites import Site
from orthotrain.methods import Run
from orthotrain.methods._compat import (
    cannot_resize_under,
    keep_buffers_at_home,
    may_run_out_of_inputs_alone,
    rebuild_reducer,
)
from orthotrain.methods.processes import Processes


class Agreement:
    """Makes what one process decided the same on all; a single process has nothing to agree on.

    Under ``DistributedDataParallel`` the first process of the wrapper's group alone looks at
    spectra and losses, and sends the new ranks and each decomposition to the others: no two
    machines need to agree on the last bit of an SVD, and nothing that differs between processes
    (losses, histories) decides which of them communicates. The wrapper is then fitted to the
    new shapes, and the frozen factors, which are equal everywhere, stay out of the broadcast
    of buffers before each forward.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._shapes = self._present_shapes()
        # A wrapper may be older than the shapes: a checkpoint was loaded inside it before attach.
        self._unfitted = any(map(earlier_shapes, run.model.parameters()))
        self._warned = False
        run.on_wrapper(self._wrapper_found)
        if run.wrapper is not None:
            self._wrapper_found(run.wrapper)

    @property
    def decides(self) -> bool:
        """Whether this process computes the decisions that all follow."""
        group = self._group
        return group is None or dist.get_rank(group) == 0

    @property
    def shared(self) -> bool:
        """Whether several processes train this model together."""
        return self._group is not None

    @property
    def _group(self) -> dist.ProcessGroup | None:
        """The processes that must agree; ``None`` where there is nobody to agree with."""
        wrapper = self._run.wrapper
        if wrapper is None or dist.get_world_size(wrapper.process_group) == 1:
            return None
        group: dist.ProcessGroup = wrapper.process_group
        return group

    def require_same(self, sites: Sequence[Site]) -> None:
        """Raise the same error on all processes unless they can communicate about these layers.

        Messages about layers have their sizes, and such of different sizes end a process.

        Raises:
            StateError: Processes are at different steps, or their layers have other names or
                shapes.
            ConfigError: Processes may run out of inputs at different steps.
        """
        if self._group is None:
            return
        self._require_all_have_inputs()
        shapes = [f"{site.name} {tuple(site.parameter.shape)}" for site in sites]
        Processes(self._group).require_same(
            "AdaptiveLowRank", [f"step {self._run.step}", *shapes], error=StateError,
            remedy="Load states and change layers on every process alike",
        )  # fmt: skip

    def ranks(self, decide: Callable[[], list[int]], *, count: int) -> list[int]:
        """The deciding process's list of ``count`` integers; only that process computes it.

        Raises:
            StateError: The deciding process failed.
            ConfigError: Processes may run out of inputs at different steps.

        Warns:
            OrthotrainWarning: Several processes run, and no wrapper is known that joins them.
        """
        if self._group is None:
            self._warn_if_others_decide()
            return decide()
        self._require_all_have_inputs()
        message = torch.ones(1 + count, dtype=torch.int64, device=self._device)
        shared: list[int] = self._from_first(lambda: torch.tensor(decide()), message).tolist()
        return shared

    def cut(self, compute: Callable[[], Cut], site: Site, *, rank: int) -> Cut:
        """The deciding process's cut of a site; only that process decomposes.

        Raises:
            StateError: The deciding process failed.
        """
        if self._group is None:
            return compute()
        parameter, (m, n) = site.parameter, (site.layout.m, site.layout.n)
        if site.factored:  # of a pair it is the core of its product that was decomposed, too
            m = n = site.rank
        blocks = site.layout.blocks
        lead = (blocks,) if blocks > 1 else ()
        shapes = [(*lead, m, rank), (*lead, rank), (*lead, rank, n), (blocks,), (blocks,)]
        sizes = [torch.Size(shape).numel() for shape in shapes]

        def flat() -> Tensor:
            return torch.cat([part.reshape(-1) for part in compute()])

        message = parameter.new_ones(1 + sum(sizes), dtype=working_dtype(parameter))
        shared = torch.split(self._from_first(flat, message), sizes)
        return Cut(*(part.view(shape) for part, shape in zip(shared, shapes, strict=True)))

    def summed(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place; each gives one of the same shape.

        Raises:
            ConfigError: Processes may run out of inputs at different steps.
        """
        if self._group is not None:
            self._require_all_have_inputs()
            on_device = values.to(self._device)
            dist.all_reduce(on_device, group=self._group)
            values.copy_(on_device)
        return values

    def share(self, parameter: nn.Parameter) -> None:
        """Give all processes the deciding one's values, to the last bit.

        For a pair: each process takes the bases of its own, whose last bits may differ between
        machines.
        """
        if self._group is not None:
            dist.broadcast(parameter.detach(), group=self._group, group_src=0)

    def structure_changed(self) -> None:
        """Fit the wrapper, known or found later, to parameters that were given new tensors."""
        self._shapes = self._present_shapes()
        self._unfitted = True
        if self._run.wrapper is not None:
            self._fit(self._run.wrapper)

    def model_loaded(self) -> None:
        """Fit the wrapper to what ``load_state_dict`` made of the model.

        Where no shape changed, its reducer stays: a process that loads weights alone, to
        evaluate them, must not fall out of step with the others.
        """
        if self._shapes != self._present_shapes():
            self.structure_changed()
        elif self._run.wrapper is not None:
            self._fit(self._run.wrapper)

    def _present_shapes(self) -> list[torch.Size]:
        return [parameter.shape for parameter in self._run.model.parameters()]

    # --- the wrapper --------------------------------------------------------------------------

    def _wrapper_found(self, wrapper: DistributedDataParallel) -> None:
        """Take care of a wrapper from its first forward on, or from ``attach`` on.

        The model may have been low-rank before it was wrapped, or have changed its shapes under
        a wrapper that was not known yet.
        """
        option = cannot_resize_under(wrapper)
        if option is not None:
            raise ConfigError(
                "AdaptiveLowRank changes the shapes of parameters. This DistributedDataParallel "
                f"cannot follow because it was made with {option}; leave that out"
            )
        self._fit(wrapper)

    def _fit(self, wrapper: DistributedDataParallel) -> None:
        keep_buffers_at_home(wrapper, _frozen_names(wrapper.module))
        if self._unfitted:
            rebuild_reducer(wrapper)
        self._unfitted = False

    def _warn_if_others_decide(self) -> None:
        count = self._run.processes.count
        if count == 1 or self._run.wrapper is not None or self._warned:
            return
        self._warned = True
        warnings.warn(
            f"AdaptiveLowRank found {count} processes but no "
            "DistributedDataParallel around the model. Each process decides its ranks by itself. "
            "To train one model, pass the DistributedDataParallel module to attach, or run its "
            "forward before the first update. To train several, name those that train one "
            "together: attach(..., process_group=...)",
            OrthotrainWarning,
            stacklevel=2,
        )

    # --- communication ------------------------------------------------------------------------

    def _require_all_have_inputs(self) -> None:
        wrapper = self._run.wrapper
        if wrapper is not None and may_run_out_of_inputs_alone(wrapper):
            raise ConfigError(
                "AdaptiveLowRank needs every process at each update. Inside this model.join() one "
                "may end before the others; pass throw_on_early_termination=True to it"
            )

    @property
    def _device(self) -> torch.device:
        return next(self._run.model.parameters()).device

    def _from_first(self, compute: Callable[[], Tensor], message: Tensor) -> Tensor:
        """What the first process computes, on all of them.

        A failure is sent, too: the other processes would wait for an answer that never comes.

        Args:
            compute: Gives the answer, one-dimensional.
            message: A one, and room for the answer.
        """
        group = self._group
        if self.decides:
            try:
                message[1:] = compute()
            except Exception:
                dist.broadcast(message.zero_(), group=group, group_src=0)
                raise
        dist.broadcast(message, group=group, group_src=0)
        if message[0] == 0:
            raise StateError(
                "AdaptiveLowRank: the process that decides for all failed in this update; its own "
                "error says why"
            )
        return message[1:]


def _frozen_names(model: nn.Module) -> Iterator[str]:
    """Names of every ``u`` and ``vh`` there can be, under each name of a shared module."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, LowRankModule):
            for weight in module.weights_of(module):
                if is_factored(module, weight):
                    u, _, vh = factor_names(weight)
                    yield from (f"{name}.{each}".removeprefix(".") for each in (u, vh))
