"""Checks of settings that methods and scores share."""

from __future__ import annotations

from orthotrain.errors import ConfigError


def require_steps(owner: str, name: str, value: object, *, least: int = 1) -> None:
    """Raise ConfigError unless ``value`` is a whole number of steps, ``least`` or more.

    Args:
        owner: Who has the setting, for the message.
        name: The setting, for the message.
        value: What was given.
        least: The smallest count that makes sense.
    """
    require_count(owner, name, value, "optimizer steps", least=least)


def require_count(owner: str, name: str, value: object, what: str = "", *, least: int = 1) -> None:
    """Raise ConfigError unless ``value`` is a whole number, ``least`` or more, of ``what``.

    Truth values and floating-point numbers are refused, whole ones, too: a method that acts
    every 1.5 steps would act at steps 3 and 6, and one that acts every NaN steps never.
    """
    of = f" of {what}" if what else ""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"{owner} needs {name} to be a whole number{of}, {least} or more, got {value!r}; "
            "round a computed one with int(...)"
        )
