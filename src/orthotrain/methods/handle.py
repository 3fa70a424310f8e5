"""``Handle``: what ``attach`` returns, and what calls the methods around each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from orthotrain._resized import looked_after
from orthotrain.errors import ConfigError, StateError
from orthotrain.methods._acts import Act, Acts
from orthotrain.methods._hooks import BackwardHook, FirstPassHook, ForwardHook, LoadHook
from orthotrain.methods._optimizer import groups_of, is_no_step, kinds_of, rates_are_zero
from orthotrain.methods._round import PassHook
from orthotrain.methods._state_check import StateCheck
from orthotrain.methods._wrapped_optimizer import inner_optimizer, step_hooks
from orthotrain.methods.copies import matching_copy
from orthotrain.methods.protocol import Method, Record, Run
from orthotrain.methods.summary import Summary, summarize
from orthotrain.methods.targets import left_the_model
from orthotrain.methods.weak_hook import remove_dead


class Handle:
    """One run with its methods attached. Made by :func:`orthotrain.attach`, never directly.

    What it knows of each layer (shape, rank, sizes) is in ``summary().rows``, the ranks alone in
    ``ranks``; what was measured at each step is in ``records``.

    Attributes:
        run: Model, optimizers, step count and records, as the methods see them.
        auto: Whether the optimizer's own step calls the methods.
        methods: The methods by name, in the order they act.
    """

    def __init__(
        self, run: Run, methods: Sequence[Method], *, outer: nn.Module, auto: bool
    ) -> None:
        self.run = run
        self.auto = auto
        self._acts = Acts(run, methods)
        self.methods, self._bound = self._acts.methods, self._acts.bounds
        self._attached = self._compare_step = True
        self._skipped: set[int] = set()  # of each optimizer its place among all
        self._state_checks = [StateCheck(run.model, each) for each in run.optimizers]
        self._backward_hooks = [BackwardHook(self, each) for each in run.optimizers]
        self._hooks = self._registered(outer)

    def _registered(self, outer: nn.Module) -> list[RemovableHandle]:
        model, run = self.run.model, self.run
        for module in {outer, model}:
            remove_dead(module._forward_hooks)
            remove_dead(module._load_state_dict_post_hooks)
        for parameter in model.parameters():
            remove_dead(parameter._post_accumulate_grad_hooks or {})
        hooks = [
            FirstPassHook(self).put_on(model),
            outer.register_forward_hook(ForwardHook(self)),
            model.register_load_state_dict_post_hook(LoadHook(self)),  # type: ignore[no-untyped-call]
        ]
        for place, optimizer in enumerate(run.optimizers):
            moments = (self._step_begins, self._step_ended, self._optimizer_loaded)
            hooks += step_hooks(optimizer, *(partial(moment, place) for moment in moments))
            looked_after.add(optimizer)
            held = groups_of([optimizer])
            trained = [p for p in model.parameters() if p.requires_grad and p in held]
            self._backward_hooks[place].put_on(trained)
            if run.has_several:  # a pass may end amid a part, or begin there
                hooks += [PassHook(run.round).put_on(p) for p in {*trained[:1], *trained[-1:]}]
        return hooks

    def __repr__(self) -> str:
        state = "" if self._attached else ", detached"
        methods = ", ".join(repr(method) for method in self.methods.values())
        kinds = kinds_of(self.run.living_optimizers) or "deleted"
        kind = f"[{kinds}]" if self.run.has_several else kinds
        return (
            f"Handle(model={type(self.run.model).__name__}, optimizer={kind}, "
            f"step={self.run.step}, auto={self.auto}, methods=[{methods}]{state})"
        )

    def __str__(self) -> str:
        return "\n".join([repr(self), *(f"  {line}" for line in self.plan.splitlines())])

    # --- around the step ---------------------------------------------------------------------

    def _step_begins(self, place: int, optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
        for hook in self._backward_hooks:
            hook.pause()
        if self.run.has_several:  # without one of them no step of training would ever end
            _ = self.run.optimizers
        self._state_checks[place].before_step(optimizer, ", ".join(self._acts.acting))
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is not None and (
            self._acts.need_gradients or (self.auto and rates_are_zero(optimizer))
        ):
            kwargs = {key: value for key, value in kwargs.items() if key != "closure"}
            return (args[0], self._before_after(place, optimizer, closure), *args[2:]), kwargs
        if self.auto:
            # A fused optimizer is stepped by GradScaler even when the step is to be skipped, and
            # skips by itself; for the others GradScaler does not call step at all.
            found_inf = optimizer.__dict__.get("found_inf")
            skips = found_inf is not None and bool(found_inf)
            self._run_before_unless(skips or is_no_step(optimizer), place)
        return None

    def _before_after(
        self, place: int, optimizer: Optimizer, closure: Callable[[], Any]
    ) -> Callable[[], Any]:
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
            if calls > 1 and not self._acts.need_gradients:
                return closure()
            if calls > 1:
                raise ConfigError(
                    f"{', '.join(self.methods)}: the optimizer calls its closure more than once "
                    "per step, so the gradient that is acted on is not the one it steps with; take "
                    "an optimizer that calls it once"
                )
            loss = closure()
            self._run_before_unless(is_no_step(optimizer), place)
            return loss

        return evaluate

    def _run_before_unless(self, skipped: bool, place: int) -> None:
        if skipped:
            self._skipped.add(place)
        else:
            self._skipped.discard(place)
            self._run_before([place])

    def _step_ended(self, place: int) -> None:
        for i, hook in enumerate(self._backward_hooks):
            hook.resume(stepped=self.auto and i == place, other=i != place)
        if self.auto and place not in self._skipped:
            self._run_after([place])

    def _run_before(self, places: Sequence[int]) -> None:
        self._run(self._acts.before, places)

    def _run_after(self, places: Sequence[int]) -> None:
        ends = self.run.round.stepped(places)
        self.run.step += 1  # until it ends, the step of training that is under way
        try:
            if ends and self._compare_step:
                self._compare_step = False
                self.run.processes.require_same(
                    "step", [f"step {self.run.step}"], error=StateError,
                    remedy="Load the handle's state on every process",
                )  # fmt: skip
            self._run(self._acts.after, places)
            if ends:
                self._run(self._acts.at_end)
        finally:
            self.run.step -= not ends

    def _run(self, acts: Sequence[Act], places: Sequence[int] | None = None) -> None:
        if acts:
            self._acts.run(acts, places)

    def before_step(self, optimizer: Optimizer | None = None) -> None:
        """With ``auto=False``: call right before ``optimizer.step()``, gradients ready.

        Needed by methods that change gradients or learning rates; harmless otherwise.

        Args:
            optimizer: Of several, the one that is about to step. Without it all are: call it once
                before the first of them steps.

        Raises:
            ConfigError: The handle acts by itself (``auto=True``), or ``optimizer`` is another one.
            StateError: The handle is detached.
        """
        self._require_manual("before_step")
        self._run_before(self._places("before_step", optimizer))

    def step(self, optimizer: Optimizer | None = None) -> None:
        """With ``auto=False``: call right after every ``optimizer.step()`` that was not skipped.

        Args:
            optimizer: Of several, the one that has stepped. Without it all have: call it once
                after the last of them.

        Raises:
            ConfigError: The handle acts by itself (``auto=True``), or ``optimizer`` is another one.
            StateError: The handle is detached.
        """
        self._require_manual("step")
        places = self._places("step", optimizer)
        for place in places:
            self._backward_hooks[place].resume(stepped=True)
        self._run_after(places)

    def _places(self, name: str, optimizer: Optimizer | None) -> list[int]:
        found = self.run.optimizers
        if optimizer is None:
            return list(range(len(found)))
        inner = inner_optimizer(f"Handle.{name}", optimizer)
        if inner not in found:
            raise ConfigError(
                f"Handle.{name}: this {type(optimizer).__name__} is none of the optimizers given "
                f"to attach ({kinds_of(found)}); give the one that steps, or none for all of them"
            )
        return [found.index(inner)]

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

    def _optimizer_loaded(self, place: int) -> None:
        optimizer = self.run.optimizers[place]
        self._state_checks[place].optimizer_loaded(optimizer, at_start=not self.run.step)

    def model_loaded(self) -> None:
        """Tell the methods that the model took values, and perhaps shapes, from a state dict."""
        for check in self._state_checks:
            check.expect()
        for _, act in self._acts.loaded:
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
        notes += self.run.dropped_note()
        return summarize(
            self.run.model,
            *self.run.living_optimizers,
            rows=[row for bound in bounds for row in bound.rows()],
            notes=notes,
        )

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of each layer that is low-rank now, by name; for all else see ``summary().rows``."""
        rows = (row for bound in self._bound.values() for row in bound.rows())
        return {row.name: row.rank for row in rows if row.rank is not None}

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds that the hooks of each method took since ``attach``.

        On an accelerator that is the time to launch their work, not the work.
        """
        return self._acts.seconds

    @property
    def records(self) -> list[Record]:
        """Plain dicts, one per step and thing measured, oldest first: the last 10,000.

        ``attach(..., records=N)`` keeps another number, ``records=None`` all of them.
        """
        return self.run.records

    @property
    def plan(self) -> str:
        """What will happen at which step, as lines of text."""
        lines = [line for bound in self._bound.values() for line in bound.plan()]
        if self.run.has_several:
            kinds = kinds_of(self.run.living_optimizers)
            lines.insert(0, f"a step of training ends when each of {kinds} has stepped")
        return "\n".join(lines)

    def on_record(self, callback: Callable[[Record], None]) -> None:
        """Call ``callback`` with every record from now on, such as to write it to a file."""
        self.run.on_record(callback)

    # --- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Step count and the state of each method; loads with ``weights_only=True``."""
        self.run.deliver_losses()
        state: dict[str, Any] = {
            "step": self.run.step,
            "run": self.run.id,
            "recorded": self.run.recorded,
            "methods": {name: bound.state_dict() for name, bound in self._bound.items()},
        }
        if self.run.has_several:
            state["round"] = self.run.round.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state_dict`` was taken; before or after model and optimizer load.

        On every process alike: the next step compares their step counts.

        Raises:
            StateError: The state is not a handle's, or belongs to other methods.
        """
        found = state if isinstance(state, Mapping) else {}
        step, methods = found.get("step"), found.get("methods")
        if not isinstance(step, int) or step < 0 or not isinstance(methods, Mapping):
            raise StateError(
                "Handle.load_state_dict: need the entries 'step' and 'methods' that "
                f"handle.state_dict() gives, got {sorted(map(str, found)) or type(state).__name__}"
            )
        if set(methods) != set(self._bound):
            raise StateError(
                f"Handle.load_state_dict: attached are {sorted(self._bound)}, the state is of "
                f"{sorted(methods)}; attach the methods the state was saved with"
            )
        for check in self._state_checks:
            check.handle_loaded()
        self.run.step = step
        self.run.id = found.get("run")  # older states have neither
        self.run.recorded = int(found.get("recorded", 0))
        self.run.round.load_state_dict(state.get("round", {}))
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
        if self._acts.running:
            raise ConfigError("Handle.detach: a step is in progress; detach after it")
        if not self._attached:
            return
        self._attached = False
        self.run.deliver_losses()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for backward_hook in self._backward_hooks:
            backward_hook.remove()
        for optimizer in self.run.living_optimizers:
            looked_after.discard(optimizer)
        for bound in self._bound.values():
            bound.detach()

    @property
    def attached(self) -> bool:
        """Whether the methods still act."""
        return self._attached
