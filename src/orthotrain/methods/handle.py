"""``Handle``: what ``attach`` returns, and what calls the methods around each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from orthotrain._resized import looked_after
from orthotrain.errors import ConfigError, StateError
from orthotrain.methods._hooks import BackwardHook, FirstPassHook, ForwardHook, LoadHook
from orthotrain.methods._optimizer import groups_of, is_no_step, rates_are_zero
from orthotrain.methods._state_check import StateCheck
from orthotrain.methods._wrapped_optimizer import step_hooks
from orthotrain.methods.copies import matching_copy
from orthotrain.methods.protocol import Bound, Method, Phase, Record, Run
from orthotrain.methods.summary import Summary, summarize
from orthotrain.methods.targets import left_the_model
from orthotrain.methods.weak_hook import remove_dead

# A method's name and what of it is called.
_Act = tuple[str, Callable[[], None]]


class Handle:
    """One run with its methods attached. Made by :func:`orthotrain.attach`, never directly.

    Attributes:
        run: Model, optimizer, step count and records, as the methods see them.
        auto: Whether the optimizer's own step calls the methods.
        methods: The methods by name, in the order they act.
    """

    def __init__(
        self, run: Run, methods: Sequence[Method], *, outer: nn.Module, auto: bool
    ) -> None:
        self.run = run
        self._compare_step = True
        self.auto = auto
        self.methods: dict[str, Method] = {}
        self._bound: dict[str, Bound] = {}
        self._hooks: list[RemovableHandle] = []
        self._attached = True
        self._state_check = StateCheck(run.model, run.optimizer)
        self._skipped = False
        self._in_step = False
        self._bind(sorted(methods, key=lambda method: method.phase))
        bounds = list(self._bound.values())
        self._seconds = dict.fromkeys(self._bound, 0.0)
        # What a method does not override is not called, so a step with nothing due stays cheap.
        self._before = self._acts("before_step")
        self._after = [
            *self._acts("after_step", until=Phase.UPDATE),
            *self._acts("measure"),
            *self._acts("after_step", since=Phase.STRUCTURE),
        ]
        # Gradients that a closure computes are there only once it has run.
        self._needs_gradients = bool(self._acts("before_step", until=Phase.LEARNING_RATE))
        self._loaded = [b.after_load for b in bounds if _overrides(b, "after_load")]
        for bound in bounds:
            if _overrides(bound, "observe"):
                run.add_observer(bound)
        self._backward_hook = BackwardHook(self)
        self._register(outer)

    def _bind(self, methods: Sequence[Method]) -> None:
        try:
            for method in methods:
                name, count = method.name, 1
                while name in self.methods:
                    count += 1
                    name = f"{method.name}_{count}"
                self._bound[name] = method.bind(self.run)
                self.methods[name] = method
            self.run.processes.require_same("attach", self._acts_on())
        except BaseException:
            for bound in self._bound.values():
                bound.detach()
            raise

    def _acts_on(self) -> list[str]:
        return [
            f"{name} on {weight}"
            for name, bound in self._bound.items()
            if self.methods[name].phase is not Phase.WATCH
            for weight in bound.acts_on()
        ]

    def _acts(
        self, name: str, *, since: Phase = Phase.LOSS, until: Phase = Phase.WATCH
    ) -> list[_Act]:
        """What the methods of some phases do at a moment of the step, in the order they do it."""
        return [
            (label, getattr(bound, name))
            for label, bound in self._bound.items()
            if since <= self.methods[label].phase <= until and _overrides(bound, name)
        ]

    def _register(self, outer: nn.Module) -> None:
        model, optimizer = self.run.model, self.run.optimizer
        for module in {outer, model}:
            remove_dead(module._forward_hooks)
            remove_dead(module._load_state_dict_post_hooks)
        for parameter in model.parameters():
            remove_dead(parameter._post_accumulate_grad_hooks or {})
        self._hooks = [
            FirstPassHook(self).put_on(model),
            outer.register_forward_hook(ForwardHook(self)),
            model.register_load_state_dict_post_hook(LoadHook(self)),  # type: ignore[no-untyped-call]
            *step_hooks(optimizer, self._step_begins, self._step_ended, self._optimizer_loaded),
        ]
        looked_after.add(optimizer)
        held = groups_of(optimizer)
        trained = next((p for p in model.parameters() if p.requires_grad and p in held), None)
        self._backward_hook.put_on(trained)

    def __repr__(self) -> str:
        state = "" if self._attached else ", detached"
        methods = ", ".join(repr(method) for method in self.methods.values())
        optimizer = self.run._optimizer()
        kind = "deleted" if optimizer is None else type(optimizer).__name__
        return (
            f"Handle(model={type(self.run.model).__name__}, optimizer={kind}, "
            f"step={self.run.step}, auto={self.auto}, methods=[{methods}]{state})"
        )

    def __str__(self) -> str:
        return "\n".join([repr(self), *(f"  {line}" for line in self.plan.splitlines())])

    # --- around the step ---------------------------------------------------------------------

    def _step_begins(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        self._backward_hook.pause()
        acting = [n for n, method in self.methods.items() if method.phase is not Phase.WATCH]
        self._state_check.before_step(optimizer, ", ".join(acting))
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is not None and (
            self._needs_gradients or (self.auto and rates_are_zero(optimizer))
        ):
            kwargs = {key: value for key, value in kwargs.items() if key != "closure"}
            return (args[0], self._before_after(optimizer, closure), *args[2:]), kwargs
        if self.auto:
            # A fused optimizer is stepped by GradScaler even when the step is to be skipped, and
            # skips by itself; for the others GradScaler does not call step at all.
            found_inf = optimizer.__dict__.get("found_inf")
            skips = found_inf is not None and bool(found_inf)
            self._skipped = skips or is_no_step(optimizer)
            if not self._skipped:
                self._run_before()
        return None

    def _before_after(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure of a step, with what is due before the step right after it."""
        if not self.auto:
            raise ConfigError(
                f"{', '.join(self.methods)}: the closure computes gradients inside the step, after "
                "handle.before_step(); attach with auto=True, or call the closure yourself first"
            )
        calls = 0

        def evaluate() -> Any:
            nonlocal calls
            calls += 1
            if calls > 1 and not self._needs_gradients:
                return closure()
            if calls > 1:
                raise ConfigError(
                    f"{', '.join(self.methods)}: the optimizer calls its closure more than once "
                    "per step, so the gradient that is acted on is not the one it steps with; take "
                    "an optimizer that calls it once"
                )
            loss = closure()
            self._skipped = is_no_step(optimizer)
            if not self._skipped:
                self._run_before()
            return loss

        return evaluate

    def _step_ended(self) -> None:
        self._backward_hook.resume(stepped=self.auto)
        if self.auto and not self._skipped:
            self._run_after()

    def _run_before(self) -> None:
        self._run(self._before)

    def _run_after(self) -> None:
        self.run.step += 1
        if self._compare_step:
            self._compare_step = False
            self.run.processes.require_same(
                "step", [f"step {self.run.step}"], error=StateError,
                remedy="Load the handle's state on every process",
            )  # fmt: skip
        self._run(self._after)

    def _run(self, acts: Sequence[_Act]) -> None:
        if not acts:
            return
        self._in_step = True
        try:
            for name, act in acts:
                start = time.perf_counter()
                act()
                self._seconds[name] += time.perf_counter() - start
        finally:
            self._in_step = False

    def before_step(self) -> None:
        """With ``auto=False``: call right before ``optimizer.step()``, gradients ready.

        Needed by methods that change gradients or learning rates; harmless otherwise.

        Raises:
            ConfigError: The handle acts by itself (``auto=True``).
            StateError: The handle is detached.
        """
        self._require_manual("before_step")
        self._run_before()

    def step(self) -> None:
        """With ``auto=False``: call right after every ``optimizer.step()`` that was not skipped.

        Raises:
            ConfigError: The handle acts by itself (``auto=True``).
            StateError: The handle is detached.
        """
        self._require_manual("step")
        self._backward_hook.resume(stepped=True)
        self._run_after()

    def _require_manual(self, name: str) -> None:
        if not self._attached:
            raise StateError(f"Handle.{name}: the handle is detached; attach the methods again")
        if self.auto:
            raise ConfigError(
                f"Handle.{name}: optimizer.step() already calls the methods, so each step would "
                "count twice; leave this call out or attach with auto=False"
            )

    def observe(self, loss: Tensor | float) -> None:
        """Show the methods a training loss, for those that act on one.

        Not needed where the model's output has a ``.loss`` or ``["loss"]`` (Transformers): that
        one is seen by itself, except inside a model compiled after it was attached. The tensor
        is kept detached and read later, so this does not wait for a device.

        Raises:
            ConfigError: ``loss`` has more than one element.
        """
        self.run.observe(loss)

    def _optimizer_loaded(self) -> None:
        self._state_check.optimizer_loaded(self.run.optimizer, at_start=not self.run.step)

    def model_loaded(self) -> None:
        """Tell the methods that the model took values, and perhaps shapes, from a state dict."""
        self._state_check.expect()
        for act in self._loaded:
            act()

    # --- what is known -----------------------------------------------------------------------

    def summary(self) -> Summary:
        """What each method did so far, with sizes of the whole model; prints as a table."""
        self.run.deliver_losses()
        bounds = self._bound.values()
        notes = [note for bound in bounds for note in bound.notes()]
        for name, bound in self._bound.items():
            if gone := left_the_model(bound._targets, self.run.model):
                notes.append(
                    f"{name}: {', '.join(gone)} left the model after attach, so it acts on nothing "
                    "there; detach, and attach again for what took the place"
                )
        if dropped := self.run.dropped_records:
            notes.append(
                f"the oldest {dropped:,} records were dropped; attach(..., records=None) keeps "
                "all, handle.on_record gives each to a function"
            )
        return summarize(
            self.run.model,
            self.run._optimizer(),  # may be gone: a function that trains may return the handle
            rows=[row for bound in bounds for row in bound.rows()],
            notes=notes,
        )

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds that the hooks of each method took since ``attach``.

        On an accelerator that is the time to launch their work, not the work.
        """
        return {name: self._seconds[name] + b.forward_seconds for name, b in self._bound.items()}

    @property
    def records(self) -> list[Record]:
        """Plain dicts, one per step and thing measured, oldest first: the last 10,000.

        ``attach(..., records=N)`` keeps another number, ``records=None`` all of them.
        """
        return self.run.records

    @property
    def plan(self) -> str:
        """What will happen at which step, as lines of text."""
        return "\n".join(line for bound in self._bound.values() for line in bound.plan())

    def on_record(self, callback: Callable[[Record], None]) -> None:
        """Call ``callback`` with every record from now on, such as to write it to a file."""
        self.run.on_record(callback)

    # --- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Step count and the state of each method; loads with ``weights_only=True``."""
        self.run.deliver_losses()
        return {
            "step": self.run.step,
            "methods": {name: bound.state_dict() for name, bound in self._bound.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken; before or after model and optimizer load.

        On every process alike: the next step compares their step counts.

        Raises:
            StateError: The state is not a handle's, or belongs to other methods.
        """
        step, methods = state.get("step"), state.get("methods")
        if not isinstance(step, int) or not isinstance(methods, Mapping):
            raise StateError(
                "Handle.load_state_dict: need the entries 'step' and 'methods' that "
                f"handle.state_dict() gives, got {sorted(map(str, state))}"
            )
        if set(methods) != set(self._bound):
            raise StateError(
                f"Handle.load_state_dict: attached are {sorted(self._bound)}, the state is of "
                f"{sorted(methods)}; attach the methods the state was saved with"
            )
        self._state_check.handle_loaded()
        self.run.step = step
        self._compare_step = True
        for name, bound in self._bound.items():
            bound.load_state_dict(methods[name])

    def track(self, model: nn.Module) -> None:
        """Let ``model``, an averaged or other copy, follow every change of structure.

        Args:
            model: A copy with the same parameter names, wrapped or not; an averaging wrapper
                that keeps its copy in ``.module`` may be given itself.

        Raises:
            ConfigError: ``model`` is the model itself or has other parameters.
            StateError: The handle is detached.
        """
        if not self._attached:
            raise StateError("Handle.track: the handle is detached; attach the methods again")
        copy = matching_copy(self.run.model, model)
        if any(copy is tracked for tracked in self.run.tracked):
            return
        for bound in self._bound.values():
            bound.track(copy)
        self.run.tracked.append(copy)

    def detach(self) -> None:
        """Remove every hook; weights, structure, records and summary stay. May be repeated.

        Raises:
            ConfigError: Called from inside a step, such as by a callback of ``on_record``.
        """
        if self._in_step:
            raise ConfigError("Handle.detach: a step is in progress; detach after it")
        if not self._attached:
            return
        self._attached = False
        self.run.deliver_losses()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._backward_hook.remove()
        if (optimizer := self.run._optimizer()) is not None:
            looked_after.discard(optimizer)
        for bound in self._bound.values():
            bound.detach()

    @property
    def attached(self) -> bool:
        """Whether the methods still act."""
        return self._attached


def _overrides(bound: Bound, name: str) -> bool:
    return getattr(type(bound), name) is not getattr(Bound, name)
