"""The methods of a run, bound to it, and what of them is due at each moment of a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from orthotrain.errors import ConfigError
from orthotrain.methods.protocol import Bound, Method, Phase, Run

#: A method's name and what of it is called.
Act = tuple[str, Callable[[], None]]


class Acts:
    """Methods at work, and what is called when.

    What a method does not override is not called, so a step with nothing due stays cheap.

    Attributes:
        methods: The methods by name, in the order they act.
        bounds: Their working halves.
        before: Due before the step of an optimizer.
        after: Due after the step of each optimizer.
        at_end: Due when a step of training ends.
        loaded: Due after a state dict of the model was loaded.
        need_gradients: Whether something acts on gradients. Those that a closure computes are
            there only once it has run.
        running: Whether something acts now.

    Raises:
        ConfigError: A method does not fit the run, or two would change the shape of one weight;
            what was bound before is detached again.
    """

    def __init__(self, run: Run, methods: Sequence[Method]) -> None:
        self.methods: dict[str, Method] = {}
        self.bounds: dict[str, Bound] = {}
        self.running = False
        self._run = run
        self._bind(run, sorted(methods, key=lambda method: method.phase))
        self._seconds = dict.fromkeys(self.bounds, 0.0)
        self.before = self._of("before_step")
        self.after = [
            *self._of("after_step", until=Phase.UPDATE),
            *self._of("measure"),
            *self._of("after_each"),
        ]
        self.at_end = self._of("after_step", since=Phase.STRUCTURE)
        self.loaded = self._of("after_load")
        self.need_gradients = bool(self._of("before_step", until=Phase.LEARNING_RATE))
        for bound in self.bounds.values():
            if _overrides(bound, "observe"):
                run.add_observer(bound)

    def _bind(self, run: Run, methods: Sequence[Method]) -> None:
        try:
            for method in methods:
                name, count = method.name, 1
                while name in self.methods:
                    count += 1
                    name = f"{method.name}_{count}"
                self.bounds[name] = method.bind(run)
                self.methods[name] = method
            self._require_apart()
            run.processes.require_same("attach", self._acts_on())
        except BaseException:
            for bound in self.bounds.values():
                bound.detach()
            raise

    def _require_apart(self) -> None:
        owners: dict[str, str] = {}
        for name, method in self.methods.items():
            for weight in self.bounds[name].acts_on() if method.phase is Phase.STRUCTURE else ():
                if (other := owners.setdefault(weight, name)) != name:
                    raise ConfigError(
                        f"attach: {other} and {name} would both change the shape of {weight}; "
                        "give each its own layers with only= or skip="
                    )

    @property
    def acting(self) -> list[str]:
        """Names of the methods that do more than watch."""
        return [n for n, method in self.methods.items() if method.phase is not Phase.WATCH]

    def _acts_on(self) -> list[str]:
        bounds = ((name, self.bounds[name]) for name in self.acting)
        return [f"{name} on {weight}" for name, bound in bounds for weight in bound.acts_on()]

    def _of(self, name: str, *, since: Phase = Phase.LOSS, until: Phase = Phase.WATCH) -> list[Act]:
        """What the methods of some phases do at a moment of the step, in the order they do it."""
        return [
            (label, getattr(bound, name))
            for label, bound in self.bounds.items()
            if since <= self.methods[label].phase <= until and _overrides(bound, name)
        ]

    def run(self, acts: Sequence[Act], places: Sequence[int] | None = None) -> None:
        """Call what is due in the step of some optimizers, and take the time.

        Args:
            acts: What is due.
            places: Those of the optimizers; ``None`` for all.
        """
        self.running, self._run.places = True, places
        try:
            for name, act in acts:
                start = time.perf_counter()
                act()
                self._seconds[name] += time.perf_counter() - start
        finally:
            self.running, self._run.places = False, None

    @property
    def seconds(self) -> dict[str, float]:
        """Wall-clock seconds that each method took so far."""
        return {name: self._seconds[name] + b.forward_seconds for name, b in self.bounds.items()}


def _overrides(bound: Bound, name: str) -> bool:
    return getattr(type(bound), name) is not getattr(Bound, name)
