"""Settings of nested dataclasses as options of jsonargparse, such as ``--optim.lr``.

It knows unions of dataclasses, too, but an option then resets the settings beside it, and a file
cannot name another class than the default's. So the class is chosen here: of those that have all
names in what is given, the class of the default, or else the first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

from docstring_parser import parse_from_object
from jsonargparse import ArgumentParser, Namespace

from orthotrain.errors import ConfigError


def given_names(content: dict[str, Any], options: Iterable[str]) -> dict[str, Any]:
    """Names in a file and dotted names of options, nested as in a file."""
    names = deepcopy(content)
    for option in options:
        place = names
        for part in option.split("."):
            place = place.setdefault(part, {}) if isinstance(place, dict) else {}
    return names


def add_settings(
    parser: ArgumentParser,
    kind: Any,
    default: Any,
    *,
    given: Mapping[str, Any],
    prefix: str = "",
    skip: Iterable[str] = (),
) -> None:
    """Add an option for every setting of a dataclass.

    Args:
        parser: Gets the options.
        kind: The dataclass.
        default: Its instance with the defaults, or None where the class itself has them.
        given: Names that are given, nested as in a file; they choose between classes.
        prefix: Stands before each name.
        skip: Names that get no option, dotted as options are.

    Raises:
        ConfigError: One value stands where a group of settings is needed.
    """
    hints = get_type_hints(kind)
    group = parser.add_argument_group(prefix.rstrip(".")) if prefix else parser
    texts = {text.arg_name: text.description for text in parse_from_object(kind).params}
    skip = frozenset(skip)
    for f in (f for f in fields(kind) if prefix + f.name not in skip):
        name, value = prefix + f.name, _default(f, default)
        classes, inner = _classes(hints[f.name], value), given.get(f.name)
        if classes and not (inner is None or isinstance(inner, Mapping)):
            raise ConfigError(f"{name}: {inner!r} is no group of settings; need them by name")
        inner = inner if isinstance(inner, Mapping) else {}
        if classes and (inner or value is not None):
            chosen = _chosen(classes, inner)
            start = value if type(value) is chosen else None
            add_settings(parser, chosen, start, given=inner, prefix=f"{name}.", skip=skip)
        else:
            required = {"required": True} if value is MISSING else {"default": value}
            help_text = texts.get(f.name)
            group.add_argument(f"--{name}", type=hints[f.name], help=help_text, **required)


def built(kind: Any, default: Any, given: Namespace) -> Any:
    """The instance of a dataclass that parsed options describe; the rest is as in ``default``."""
    hints = get_type_hints(kind)
    values = {}
    for f in (f for f in fields(kind) if f.name in given):
        value, parsed = _default(f, default), given[f.name]
        if isinstance(parsed, Namespace):
            chosen = _chosen(_classes(hints[f.name], value), vars(parsed))
            parsed = built(chosen, value if type(value) is chosen else None, parsed)
        values[f.name] = tuple(parsed) if isinstance(parsed, list) else parsed
    return kind(**values) if default is None else replace(default, **values)


def _default(field: Any, default: Any) -> Any:
    if default is not None:
        return getattr(default, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _classes(kind: Any, value: object) -> list[Any]:
    """The dataclasses that ``kind`` allows, that of ``value`` first."""
    classes = [member for member in (kind, *get_args(kind)) if is_dataclass(member)]
    return sorted(classes, key=lambda member: member is not type(value))


def _chosen(classes: list[Any], names: Iterable[str]) -> Any:
    fitting = (c for c in classes if {*names} <= {f.name for f in fields(c)})
    return next(fitting, classes[0])
