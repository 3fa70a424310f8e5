"""What a method is: a frozen description, bound to a run, called around each optimizer step."""

from __future__ import annotations

import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from orthotrain._checks import described, is_dense
from orthotrain.errors import ConfigError, OrthotrainWarning, StateError
from orthotrain.linalg.decompose import widest_dtype
from orthotrain.methods._optimizer import groups_of, kinds_of
from orthotrain.methods._round import Round
from orthotrain.methods.processes import Processes
from orthotrain.methods.summary import Row

Record = dict[str, Any]

# Losses on an accelerator are read together, one wait for the device per this many.
_LOSSES_PER_READ = 32


class Phase(IntEnum):
    """When a method acts within a step; methods of one phase act in the order given."""

    LOSS = 0  #: before the step: adds to gradients, as a term of the loss would
    GRADIENT = 1  #: before the step: changes gradients
    LEARNING_RATE = 2  #: reads gradients before the step, sets the step's length after it
    UPDATE = 3  #: after the step: changes values, keeps shapes
    STRUCTURE = 4  #: after the step: changes shapes
    WATCH = 5  #: after the step: changes nothing


class Bound:
    """A method at work on one run. Every part is optional; what is not overridden costs nothing.

    ``before_step`` and ``after_step`` are called in the order of :class:`Phase`, ``measure``
    between the methods that change values and those that change shapes. In ``before_step``,
    ``run.step`` counts the steps finished so far; after the step it includes the one that just
    ended. A step that ``GradScaler`` skips calls none of them.

    Where several optimizers train the model, ``run.stepping`` tells whose step it is. All calls
    come around the step of each of them, but for ``after_step`` of the phases ``STRUCTURE`` and
    ``WATCH``: that one comes once, when a step of training ends.

    Attributes:
        forward_seconds: Wall-clock seconds that hooks of its own took in forward passes, which
            the handle does not see. It adds them to what it measured itself.
    """

    forward_seconds: float = 0.0
    _targets: Sequence[Any] = ()  # of methods that act on weights one by one

    def before_step(self) -> None:
        """Act when gradients are ready and parameters are not yet updated."""

    def after_step(self) -> None:
        """Act right after the update, when no gradient is needed any more."""

    def measure(self) -> None:
        """Record what the step did to values, once no other method changes them any more."""

    def after_each(self) -> None:
        """Act right after the step of each optimizer, whatever the phase, once all is measured."""

    def observe(self, loss: float, *, step: int) -> None:
        """Take one training loss, seen when ``step`` optimizer steps were finished.

        Losses come in order. On an accelerator they come late and several at once;
        ``run.deliver_losses()`` brings all that are pending.
        """

    def after_load(self) -> None:
        """Act after ``load_state_dict`` of the model: values and shapes may be others now."""

    def rows(self) -> list[Row]:
        """One row per weight this method has an account of, for ``handle.summary()``."""
        return []

    def notes(self) -> list[str]:
        """Sentences below the table of ``handle.summary()``."""
        return []

    def plan(self) -> list[str]:
        """What will happen at which step, one line each; logged by ``attach``."""
        return []

    def acts_on(self) -> list[str]:
        """Name and sizes of each weight it acts on; processes that train together compare them."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dicts only, so it loads with ``weights_only``."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` gave.

        Raises:
            StateError: The state belongs to something else.
        """
        if state:
            raise StateError(
                f"{type(self).__name__}.load_state_dict: it keeps no state, "
                f"got entries {sorted(state)}; was the state saved by another method?"
            )

    def track(self, model: nn.Module) -> None:
        """Make ``model``, a copy of the run's model, follow every change of structure."""

    def detach(self) -> None:
        """Undo what ``bind`` put on the model or the optimizer; weights stay as they are."""


class Method(ABC):
    """Base of every method: subclasses are frozen dataclasses that hold settings only.

    Checks of single settings belong in ``__post_init__``; checks against the model and the
    length of training belong in ``bind``.
    """

    phase: ClassVar[Phase]
    name: ClassVar[str]

    @abstractmethod
    def bind(self, run: Run) -> Bound:
        """Resolve patterns and return the working half. Nothing is trained or hooked yet.

        Raises:
            ConfigError: A setting cannot work with this model, optimizer or run length.
        """


class Run:
    """The training run that methods act on: model, optimizer, step count, records.

    Attributes:
        model: The inner module, without wrappers.
        compiled: Whether it, or a part of it, was given to ``torch.compile`` before ``attach``.
        step: Optimizer steps finished since the start of training, also across a resume. With
            several optimizers, how often all of them have stepped.
        total_steps: Planned number of steps, or ``None`` if it is not known.
        tracked: Copies of the model (without wrappers) that follow changes of structure.
        records: Plain dicts, one per step and thing measured, oldest first; the oldest go where
            there are more than ``keep_records``.
        dropped_records: How many went.
        recorded: How many records there were in all, also across a resume.
        id: The same across a resume; ``None`` until a file needs one.
        processes: Those that train this model together.
        round: Which of several optimizers have stepped since the last step of training ended.
        places: Inside of a step the places of the optimizers whose it is; ``None`` for all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        *,
        wrapper: DistributedDataParallel | None = None,
        total_steps: int | None = None,
        keep_records: int | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.model = model
        self.compiled = False
        self.processes = processes or Processes(None)
        self.step = self.recorded = self.dropped_records = 0
        self.total_steps = total_steps
        self.tracked: list[nn.Module] = []
        self.records: list[Record] = []
        self.id: str | None = None
        self._keep_records = keep_records
        self._sinks: list[Callable[[Record], None]] = []
        # The optimizer holds the hooks and through them this object. A strong reference back
        # would be a cycle, and model and state would outlive their last user until a collection.
        given = [optimizers] if isinstance(optimizers, Optimizer) else optimizers
        self._optimizers = [weakref.ref(each) for each in given]
        self._kinds = kinds_of(given)
        self.round = Round(len(given))
        self.places: Sequence[int] | None = None
        self._wrapper = None if wrapper is None else weakref.ref(wrapper)
        self._wrapper_callbacks: list[Callable[[DistributedDataParallel], None]] = []
        self._observers: list[Bound] = []
        self.losses_observed = 0
        self._pending: list[tuple[int, Tensor]] = []

    @property
    def optimizer(self) -> Optimizer:
        """The torch optimizer, without wrappers; of several the one whose step this is.

        Raises:
            StateError: The optimizer no longer exists.
            ConfigError: There are several, and this is not the step of one of them.
        """
        stepping = self.stepping
        if len(stepping) > 1:
            raise ConfigError(
                f"Run.optimizer: several optimizers train this model ({self._kinds}), and this is "
                "not the step of one of them; use run.optimizers or run.optimizer_of(parameter)"
            )
        return stepping[0]

    @property
    def optimizers(self) -> list[Optimizer]:
        """All torch optimizers given to ``attach``, in that order, without wrappers.

        Raises:
            StateError: One of them no longer exists.
        """
        found = self.living_optimizers
        if len(found) < len(self._optimizers):
            which = "the optimizer" if len(self._optimizers) == 1 else f"one of ({self._kinds})"
            raise StateError(
                f"Run.optimizer: {which} given to attach was deleted; "
                "keep it alive or attach to the new one"
            )
        return found

    @property
    def living_optimizers(self) -> list[Optimizer]:
        """Those that still exist: a function that trains may return the handle alone."""
        return [alive for each in self._optimizers if (alive := each()) is not None]

    @property
    def has_all_optimizers(self) -> bool:
        """Whether all still exist."""
        return len(self.living_optimizers) == len(self._optimizers)

    @property
    def has_several(self) -> bool:
        """Whether several optimizers train the model."""
        return len(self._optimizers) > 1

    @property
    def stepping(self) -> list[Optimizer]:
        """The optimizers whose step this is; all of them outside of a step."""
        found = self.optimizers
        return found if self.places is None else [found[place] for place in self.places]

    def groups(self) -> dict[nn.Parameter, dict[str, Any]]:
        """The parameter group of every parameter that this step is of."""
        return groups_of(self.stepping)

    def owners(self) -> dict[nn.Parameter, Optimizer]:
        """The optimizer of every parameter that one holds."""
        found = self.optimizers
        return {p: each for each in found for group in each.param_groups for p in group["params"]}

    def optimizer_of(self, parameter: nn.Parameter) -> Optimizer:
        """The optimizer that holds a parameter.

        Raises:
            StateError: None does.
        """
        owner = self.owners().get(parameter)
        if owner is None:
            raise StateError(
                f"Run.optimizer_of: a parameter of shape {tuple(parameter.shape)} is in none of "
                f"the optimizers given to attach ({self._kinds}); add it with add_param_group"
            )
        return owner

    def may_change_shape(self, parameter: nn.Parameter) -> bool:
        """Whether no gradient of a parameter waits for the step of its optimizer.

        So it is right after that step, and until the next backward pass.
        """
        if not self.has_several:
            return True
        owner = self.owners().get(parameter)
        return owner is None or self.round.is_untouched(self.optimizers.index(owner))

    @property
    def wrapper(self) -> DistributedDataParallel | None:
        """The DDP wrapper around the model, found at its first forward, or ``None``."""
        return None if self._wrapper is None else self._wrapper()

    @wrapper.setter
    def wrapper(self, wrapper: DistributedDataParallel) -> None:
        self._wrapper = weakref.ref(wrapper)
        for callback in self._wrapper_callbacks:
            callback(wrapper)

    def on_wrapper(self, callback: Callable[[DistributedDataParallel], None]) -> None:
        """Call ``callback`` with each DDP wrapper that is found, from within its forward."""
        self._wrapper_callbacks.append(callback)

    def record(self, **fields: Any) -> None:
        """Keep a record of plain values, the current step added, and tell every listener."""
        entry: Record = {"step": self.step, **fields}
        self.records.append(entry)
        self.recorded += 1
        if self._keep_records is not None and len(self.records) > self._keep_records:
            del self.records[0]
            self.dropped_records += 1
            if self.dropped_records == 1 and self._keep_records and not self._sinks:
                warnings.warn(
                    f"attach: the handle holds its {self._keep_records:,} latest records, and "
                    "nothing hears the older ones, which are dropped from now on; write all with "
                    "orthotrain.diagnostics.JsonlWriter(handle, path), or keep them in memory with "
                    "attach(..., records=None)",
                    OrthotrainWarning,
                    stacklevel=3,
                )
        for sink in self._sinks:
            sink(entry)

    def dropped_note(self) -> list[str]:
        """Where the records went that are no longer held, as a line of a summary."""
        if not self.dropped_records:
            return []
        dropped = f"the oldest {self.dropped_records:,} records were dropped"
        if self._sinks:
            return [f"{dropped} from memory; each was written to its listeners first"]
        return [
            f"{dropped}; attach(..., records=None) keeps all, handle.on_record gives each to a "
            "function"
        ]

    def on_record(self, callback: Callable[[Record], None]) -> None:
        """Call ``callback`` with every record from now on.

        Raises:
            ConfigError: It cannot be called.
        """
        if not callable(callback):
            raise ConfigError(
                f"on_record needs a function of one record, got {described(callback)}"
            )
        self._sinks.append(callback)

    def add_observer(self, bound: Bound) -> None:
        """Deliver losses to ``bound.observe``."""
        self._observers.append(bound)

    def observe(self, loss: Tensor | float) -> None:
        """Keep one training loss for the methods that want it; no wait for a device.

        Raises:
            ConfigError: ``loss`` is no number, or a tensor of more than one element.
        """
        if isinstance(loss, Tensor) and loss.numel() != 1:
            shape = tuple(loss.shape)
            raise ConfigError(f"observe: need a scalar loss, got shape {shape}; pass loss.mean()")
        if isinstance(loss, Tensor):
            real = is_dense(loss, None) and not loss.is_complex()
        else:
            real = isinstance(loss, Real) and not isinstance(loss, bool)
        if not real:
            raise ConfigError(f"observe: need a loss, a real number, got {described(loss)}")
        if not self._observers:
            return
        self.losses_observed += 1
        if not isinstance(loss, Tensor) or _is_free_to_read(loss):
            self.deliver_losses()
            self._deliver(loss.item() if isinstance(loss, Tensor) else float(loss), self.step)
            return
        # A copy: the caller, or a captured graph that is replayed, may write into the original.
        self._pending.append((self.step, loss.detach().clone().reshape(())))
        if len(self._pending) >= _LOSSES_PER_READ:
            self.deliver_losses()

    def deliver_losses(self) -> None:
        """Hand all kept losses to the methods now; waits for the device if losses are there."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        device = pending[0][1].device
        # Wide enough for every dtype a loss may have, so nothing is rounded on the way.
        wide = widest_dtype(device)
        values = torch.stack([loss.to(device, wide) for _, loss in pending]).tolist()
        for (step, _), value in zip(pending, values, strict=True):
            self._deliver(value, step)

    def _deliver(self, loss: float, step: int) -> None:
        for bound in self._observers:
            bound.observe(loss, step=step)


def _is_free_to_read(loss: Tensor) -> bool:
    """Whether the value is at hand without waiting for a device."""
    return loss.device.type == "cpu"
