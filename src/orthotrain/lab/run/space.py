"""What a search varies and what it aims at: settings of a run with their bounds, by dotted name.

This module imports neither torch nor Optuna, so a command line can be parsed before they load.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final, Self, TypeVar

from orthotrain._names import did_you_mean
from orthotrain.errors import ConfigError
from orthotrain.lab.run.config import RunConfig, need

C = TypeVar("C")
R = TypeVar("R", bound=RunConfig)


@dataclass(frozen=True)
class Number:
    """A setting between two bounds.

    Attributes:
        low: Least value.
        high: Largest value.
        log: Whether its logarithm is even.
        whole: Whether it is a whole number.
        of: Name of a setting that the value is a multiple of.
        form: The text that holds the value, such as ``"energy={:.3g}"``.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False
    of: str = ""
    form: str = ""

    def __post_init__(self) -> None:
        ends = f"[{self.low}, {self.high}]"
        need(
            math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high,
            f"search: bounds {ends} must be finite, the lower one first",
        )
        need(not self.log or self.low > 0, f"search: bounds {ends} with log need to be positive")
        whole = float(self.low).is_integer() and float(self.high).is_integer()
        need(not self.whole or whole, f"search: bounds {ends} must be whole numbers")

    def value(self, found: Any, base: float) -> Any:
        """The setting, from what was drawn and from the setting that it is a multiple of."""
        value = round(found * base) if self.whole else found * base
        return self.form.format(value) if self.form else value

    def at(self, share: float) -> float:
        """What lies at this share of the range, in [0, 1)."""
        low, high = self.low - self.whole / 2, self.high + self.whole / 2
        found = low * (high / low) ** share if self.log else low + (high - low) * share
        return min(max(round(found), int(self.low)), int(self.high)) if self.whole else found

    def at_edge(self, found: float) -> bool:
        """Whether what was drawn lies within a twentieth of the range of a bound."""
        low, high, at = self.low, self.high, found
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return min(at - low, high - at) <= (high - low) / 20


@dataclass(frozen=True)
class OneOf:
    """A setting that is one of several numbers or texts.

    Attributes:
        values: To choose from.
        of: Name of a setting that the numbers are multiples of; of itself for the recipe's own.
    """

    values: tuple[Any, ...]
    of: str = ""

    def __post_init__(self) -> None:
        need(len(self.values) > 1, f"search: {self.values} leaves no choice; give two at least")

    def value(self, found: Any, base: float) -> Any:
        """The setting, from what was drawn and from the setting that it is a multiple of."""
        return found * base if self.of else found

    def at(self, share: float) -> Any:
        """What lies at this share of the list, in [0, 1)."""
        return self.values[int(share * len(self.values))]

    def at_edge(self, found: Any) -> bool:
        """Whether what was drawn is the least or the largest of several numbers."""
        numbers = [value for value in self.values if isinstance(value, int | float)]
        whole = len(numbers) == len(self.values) > 2
        return whole and found in (min(numbers), max(numbers))


@dataclass(frozen=True)
class Aim:
    """What a search makes small or large, a number of result.json.

    Attributes:
        field: Its name there.
        less: Whether less of it is better.
        per: The number that it is divided by; empty for none.
        name: What the command line and the report call it.
    """

    field: str
    less: bool = True
    per: str = ""
    name: str = "loss"

    def read(self, result: Mapping[str, Any]) -> float:
        """Its value in a result.

        Raises:
            ConfigError: The result does not have it.
        """
        for field in filter(None, (self.field, self.per)):
            need(
                isinstance(result.get(field), int | float),
                f"search: a result of {result.get('variant')} has no number {field!r} to aim at; "
                "leave that objective out",
            )
        return float(result[self.field]) / float(result[self.per] if self.per else 1)

    @property
    def looked(self) -> str:
        """Name of the same number where a training is looked at on its way."""
        return self.field.removeprefix("validation_")


#: Further objectives by their names: share of the dense numbers, operations of the training.
STORED: Final = Aim("stored", per="dense", name="stored")
COMPUTE: Final = Aim("compute", name="compute")


@dataclass(frozen=True)
class Part:
    """One variant of a recipe that is tuned.

    Attributes:
        variant: Its name.
        space: Its settings by dotted name, as ``orthotrain train`` takes them.
        aims: The loss first. Several give a front.
        within: With several, the chosen setting is the least in the second one whose loss is at
            most so far above ``beside``, or above the least loss of the front.
        beside: Name of the variant, with the recipe's own settings, for ``within``.
        times: So many times as many trials as other parts, where more settings are varied.
        also: Variants that get the same settings.
    """

    variant: str
    space: Mapping[str, Number | OneOf]
    aims: tuple[Aim, ...]
    within: float = 0.0
    beside: str = ""
    times: int = 1
    also: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        need(len(self.space) > 0, f"search: {self.variant} has no settings to vary")
        need(len(self.aims) > 0, f"search: {self.variant} has nothing to aim at")

    def settings(self, config: Any, found: Mapping[str, Any]) -> dict[str, Any]:
        """The value of each setting, from what was drawn."""
        ordered = sorted(self.space.items(), key=lambda item: bool(item[1].of))
        values: dict[str, Any] = {}
        for name, one in ordered:
            base = 1.0
            if one.of:
                base = values[one.of] if one.of in values else setting(config, one.of)
            values[name] = one.value(found[name], base)
        return values

    def with_objectives(self, names: Sequence[str]) -> Self:
        """The same with these objectives; its own where none is named."""
        known = {aim.name: aim for aim in (STORED, COMPUTE, *self.aims)}
        need(
            not names or (names[0] == self.aims[0].name and len({*names}) == len(names)),
            f"--objectives {' '.join(names)}: need {self.aims[0].name} first and each once",
        )
        return replace(self, aims=tuple(known[name] for name in names)) if names else self


@dataclass(frozen=True)
class Search:
    """What ``orthotrain tune`` searches for a recipe.

    Attributes:
        parts: Variants that are tuned, each by a search of its own.
        seeds: Seeds of the search; never those of the comparison.
        trials: Settings that are tried for each of them.
    """

    parts: tuple[Part, ...]
    seeds: tuple[int, ...] = (100,)
    trials: int = 20

    @property
    def decides(self) -> frozenset[str]:
        """Settings of the run that the search decides itself."""
        return frozenset(name for part in self.parts for name in part.space)

    def config(self, config: C) -> C:
        """The recipe's own run, with the search's seeds.

        Raises:
            ConfigError: The search would use a seed of the comparison, or a setting of its space
                does not exist.
        """
        shared = set(self.seeds) & set(getattr(config, "seeds", ()))
        need(not shared, f"tune: seeds {sorted(shared)} belong to the final comparison")
        for name in self.decides:
            setting(config, name)
        return replace(config, seeds=self.seeds, variants=())  # type: ignore[type-var]

    def chosen(self, names: Sequence[str]) -> tuple[Part, ...]:
        """The parts of these variants, all where none is named.

        Raises:
            ConfigError: One is not searched.
        """
        known = [part.variant for part in self.parts]
        for name in names:
            need(
                name in known,
                f"--parts: {name!r} is not searched; {did_you_mean(name, known)}choose from "
                f"{', '.join(known)}",
            )
        return tuple(part for part in self.parts if not names or part.variant in names)


def setting(config: Any, name: str) -> Any:
    """The setting called by a dotted name, such as ``"optim.lr"``.

    Raises:
        ConfigError: There is none.
    """
    for place in name.split("."):
        known = [f.name for f in fields(config)] if is_dataclass(config) else []
        if place not in known:
            raise ConfigError(
                f"there is no setting {name!r}; {did_you_mean(place, known)}"
                f"choose from {', '.join(known) or 'none'}"
            )
        config = getattr(config, place)
    return config


def with_settings(config: C, values: Mapping[str, Any]) -> C:
    """The same configuration with some settings, by dotted name, all at once.

    Raises:
        ConfigError: They do not fit each other.
    """
    groups: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        setting(config, name)
        head, _, rest = name.partition(".")
        groups.setdefault(head, {})[rest] = value
    changes = {
        head: inner[""] if "" in inner else with_settings(getattr(config, head), inner)
        for head, inner in groups.items()
    }
    try:
        return replace(config, **changes)  # type: ignore[type-var]
    except TypeError as error:
        raise ConfigError(f"settings {dict(values)} are of a wrong kind ({error})") from error


def own_config(config: R, variant: str) -> R:
    """The run of one variant: with the settings that it has of its own, and no others of those.

    Raises:
        ConfigError: There is no such setting, or they do not fit each other.
    """
    own = config.own.get(variant, {})
    try:
        return with_settings(replace(config, own={}), own)
    except ConfigError as error:
        raise ConfigError(f"own, of {variant}: {error}") from error
